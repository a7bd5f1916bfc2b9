"""Combinations of keys that cannot work, refused before anything is built; each with its reason and its remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rlrt.config.schema import Settings
from rlrt.errors import UserError, first_line, nearest, shown

UNREAD = "sibling"
"""``teacher.context`` where nobody typed one (conf/teacher/sibling.yaml)."""


def check(settings: Settings) -> None:
    """Refuse impossible combinations.

    Raises:
        UserError: one sentence.
    """
    train, method = settings.train, settings.method
    if method.advantage.needs_group and train.rollouts_per_prompt < 2:
        raise UserError(
            f"train.rollouts_per_prompt: method {method.name} compares the rollouts of a group, so it needs at least 2, "
            f"got {train.rollouts_per_prompt}; set train.rollouts_per_prompt=8."
        )
    if train.minibatches > train.prompts_per_step:
        raise UserError(
            f"train.minibatches: a mini-batch holds whole groups, so it can be at most train.prompts_per_step="
            f"{train.prompts_per_step}, got {train.minibatches}."
        )
    if train.overlong_cache >= settings.engine.max_new_tokens:
        raise UserError(
            f"train.overlong_cache: expected fewer tokens than engine.max_new_tokens={settings.engine.max_new_tokens}, "
            f"got {train.overlong_cache}."
        )
    if train.lr_schedule != "constant" and train.warmup_steps >= train.steps:
        raise UserError(
            f"train.warmup_steps: expected fewer than train.steps={train.steps} under a schedule that decays, got "
            f"{train.warmup_steps}."
        )
    if isinstance(train.token_budget, str) and train.token_budget != "auto":
        raise UserError(f"train.token_budget: expected a whole number or auto, got {shown(train.token_budget)}.")
    if train.beta1 >= 1 or train.beta2 >= 1:
        raise UserError("train.beta1 and train.beta2: expected numbers below 1, got 1.")
    if settings.model.offload_activations and not settings.model.gradient_checkpointing:
        raise UserError(
            "model.offload_activations: keeps what the layers are recomputed from, and nothing is recomputed under "
            "model.gradient_checkpointing=false; set it to true, or model.offload_activations=false."
        )
    if train.sample_ahead:
        check_ahead(settings)
    if method.advantage.taught() is not None:
        check_taught(settings)
    check_importance(settings)
    check_teacher(settings)
    check_views(settings)
    check_device(settings.device)
    if settings.tracking.uri is not None:
        from rlrt.records.mlflow_uri import check_uri

        check_uri(settings.tracking.uri)
    if settings.tracking.trackio is not None:
        from rlrt.records.trackio import check_store

        check_store(settings.tracking.trackio, settings.tracking.experiment)
    if settings.tracking.uri is not None and not settings.tracking.experiment.strip():
        raise UserError("tracking.experiment: expected the name of an experiment of MLflow's, got an empty text.")
    if train.keep_best is not None and "/" not in train.keep_best:
        raise UserError(
            f"train.keep_best: expected a metric such as eval/greedy or reward/mean, got {shown(train.keep_best)}."
        )


def lacking(settings: Settings) -> list[tuple[str, str]]:
    """Return what a run's options need and this environment lacks: the part of the run, and one sentence, for each."""
    from rlrt.model.load import check_attention  # here: they import torch, and describe and report go without
    from rlrt.model.lora import check_peft
    from rlrt.records.trackio import check_trackio

    model = settings.model
    checks: list[tuple[str, Callable[[], None]]] = [
        ("engine", settings.engine.check_installed),
        ("model", lambda: check_attention(model.attn_implementation)),
        ("model", lambda: check_peft() if model.lora is not None else None),
        ("data", settings.data.check_installed),
        ("tracking", lambda: check_trackio() if settings.tracking.trackio is not None else None),
    ]
    found = []
    for part, check_one in checks:
        try:
            check_one()
        except UserError as error:
            found.append((part, str(error)))
    return found


def check_installed(settings: Settings) -> None:
    """Refuse options that need what this environment lacks; kept out of ``check``, since a config may be written elsewhere.

    Raises:
        UserError: the first sentence.
    """
    for _, sentence in lacking(settings):
        raise UserError(sentence)


def check_taught(settings: Settings) -> None:
    """Refuse what has no meaning where the data's responses are learned and none is sampled.

    Raises:
        UserError: naming the key.
    """
    train, name = settings.train, settings.method.name
    wanted = {
        "train.rollouts_per_prompt": (train.rollouts_per_prompt, 1),
        "train.max_refills": (train.max_refills, 0),
        "train.mixed_groups_only": (train.mixed_groups_only, False),
        "train.sample_ahead": (train.sample_ahead, False),
        "train.old_logp": (train.old_logp, "trainer"),
        "engine.temperature": (settings.engine.temperature, 1.0),
    }
    for key, (came, needed) in wanted.items():
        if came != needed:
            raise UserError(
                f"{key}: method {name} learns the data's own responses at temperature 1, and samples none to learn from; got "
                f"{came}, set {key}={str(needed).lower()}."
            )


def check_ahead(settings: Settings) -> None:
    """Refuse train.sample_ahead for engines that share the trainer's weights, for refills, and for engines that release memory.

    Raises:
        UserError: saying why.
    """
    if settings.engine.exact:
        raise UserError(
            "train.sample_ahead: expected an engine with weights of its own, got one that samples by the trainer's, which "
            "change meanwhile; set engine=vllm_server, engine=vllm engine.release_memory=false, or train.sample_ahead=false."
        )
    if settings.train.max_refills:
        raise UserError(
            f"train.sample_ahead: groups are replaced by what their rewards say, which is not known ahead; got "
            f"train.max_refills={settings.train.max_refills}, set train.max_refills=0 or train.sample_ahead=false."
        )
    if settings.engine.release_memory:
        raise UserError(
            "train.sample_ahead: the engine works while the update runs, so it cannot give its memory back for it; set "
            "engine.release_memory=false or train.sample_ahead=false."
        )


def check_views(settings: Settings) -> None:
    """Refuse, for a method that compares a teacher with the question and one without it, a context that has no question, and
    one whose text the two could read in different lengths.

    Raises:
        UserError: saying why.
    """
    from rlrt.methods.contexts import ReferenceAlone, WithoutQuestion, configured

    teacher, name = settings.teacher, settings.method.name
    if WithoutQuestion() not in settings.method.contexts():
        return
    if isinstance(configured(teacher.context, teacher.on_unique_correct), ReferenceAlone):
        raise UserError(
            f"teacher.context: method {name} compares the teacher that is shown the question with one that is not, got "
            f"{shown(teacher.context)}, where neither is; set teacher.context=reference."
        )
    if teacher.too_long == "shorter_sibling":
        raise UserError(
            f"teacher.too_long: method {name} compares two teachers that are shown one text, and shorter_sibling "
            "could give the one with the question another; set teacher.too_long=no_teacher."
        )


def check_importance(settings: Settings) -> None:
    """Refuse importance weights where all ratios are 1, and bounds that reject what agrees.

    Raises:
        UserError: naming the key.
    """
    train, engine = settings.train, settings.engine
    names = [f"importance_{name}_bounds" for name in ("token", "sequence", "geometric")]
    asked = [name for name in (*names, "importance_veto") if getattr(train, name) is not None]
    asked += ["importance_level"] if train.importance_level != "token" else []
    if asked and engine.exact:
        raise UserError(
            f"train.{asked[0]}: expected an engine with weights or arithmetic of its own, got one that samples by the "
            f"trainer's, where every ratio is 1; set engine=vllm, or leave train.{asked[0]} out."
        )
    if asked and train.old_logp == "sampler":
        raise UserError(
            f"train.{asked[0]}: expected train.old_logp=trainer, got sampler, where the trainer's probabilities at rollout "
            f"time, which it reads, are not computed; set train.old_logp=trainer, or leave train.{asked[0]} out."
        )
    for name in names:
        bounds = getattr(train, name)
        if bounds is not None and not around_one(bounds):
            example = "[0.99,1.01]" if "geometric" in name else "[0.5,2]"
            raise UserError(
                f"train.{name}: expected [LOW,HIGH], two ratios around 1, got {shown(bounds)}; set for example "
                f"train.{name}={example}."
            )
    if train.importance_veto is not None and train.importance_veto >= 1:
        raise UserError(
            f"train.importance_veto: expected a ratio below 1, got {train.importance_veto:g}, which would reject every "
            "rollout; set train.importance_veto=1e-4."
        )
    if train.importance_level != "token" and engine.importance_clip is None:
        raise UserError(
            f"train.importance_level: {type(engine).__name__} has no importance_clip, so all weights are 1; give the engine "
            "that key, or leave train.importance_level out."
        )


def check_teacher(settings: Settings) -> None:
    """Refuse a teacher context that is none, or that no rollout can have.

    Raises:
        UserError: naming the key.
    """
    from rlrt.methods.contexts import CONFIGURED, Default, Sibling, configured  # here: it imports torch

    teacher = settings.teacher
    kind = teacher.context.partition("@")[0].partition(":")[0]
    if kind not in CONFIGURED:
        raise UserError(
            f"teacher.context: expected one of {', '.join(CONFIGURED)}, got {shown(teacher.context)}."
            f"{nearest(kind[:99], CONFIGURED)}"
        )
    try:
        context = configured(teacher.context, teacher.on_unique_correct)
    except ValueError as error:
        raise UserError(f"teacher.context: {first_line(error)}.") from None
    method, group = settings.method, settings.train.rollouts_per_prompt
    if not method.needs_teacher:
        return
    if Default() not in method.contexts() and teacher.context != UNREAD:
        raise UserError(
            f"teacher.context: method {method.name} names its teacher contexts itself, so {shown(teacher.context)} would "
            "change nothing; leave teacher.context out."
        )
    if (
        isinstance(context, Sibling)
        and context.number + 2 > group
        and (context.alone == "plain" or not context.correct)
    ):
        raise UserError(
            f"teacher.context: {shown(teacher.context)} needs groups of at least {context.number + 2} rollouts, got "
            f"train.rollouts_per_prompt={group}; raise it, or set another teacher.context."
        )


def around_one(bounds: Sequence[float]) -> bool:
    """True for two finite ratios of which the first is at most 1, the ratio of what agrees, and the second at least 1."""
    return len(bounds) == 2 and 0 <= bounds[0] <= 1 <= bounds[1] < math.inf and bounds[0] < bounds[1]


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        UserError: naming it.
    """
    if device in ("auto", "cpu"):
        return
    name, _, index = device.partition(":")
    if name != "cuda" or (index and not index.isdigit()):
        raise UserError(f"device: expected auto, cpu, cuda or cuda:N, got {shown(device)}.")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count <= int(index or 0):
        raise UserError(f"device: {device} was asked for, but this machine has {count} CUDA devices; set device=cpu.")
