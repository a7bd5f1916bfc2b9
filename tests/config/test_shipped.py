"""Every shipped YAML composes to settings that can be built, and every key is documented."""

from __future__ import annotations

import dataclasses

import pytest

from rlrt.config.compose import composer
from rlrt.config.load import fields_of
from rlrt.config.schema import SECTIONS, Top
from rlrt.paths import CONFIG
from tests.helpers import METHODS, MODELS, settings

GROUPS = {
    g.name: sorted(str(p.relative_to(g).with_suffix("")) for p in g.rglob("[!_]*.yaml"))
    for g in CONFIG.iterdir()
    if g.is_dir() and g.name != "hydra"
}


PAIRS = {(method, model) for method in METHODS for model in ("tiny", "smollm2_135m", "qwen3_4b_base")} | {
    (method, model) for method in ("rlrt", "sd") for model in MODELS
}
"""Every method, every model, and (of the pairs that have defaults of their own) all: see the next test but one."""


def made_of(method, model):
    return settings(f"method={method}", f"model={model}", *(["model.path=x"] if model == "hf" else []))


@pytest.mark.parametrize(("method", "model"), sorted(PAIRS))
def test_methods_with_models(method, model):
    assert made_of(method, model).method.name == method


@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes_with_the_small_real_model(method):
    """Its short answers, its step size and its teacher's prompt are set beside its own section, as the embedded model's are."""
    made = made_of(method, "smollm2_135m")
    assert (made.engine.max_new_tokens, made.train.token_budget) == (24, "auto")
    assert made.teacher.template.startswith("{prompt}\nAnswer: {solution}")


@pytest.mark.parametrize("model", [m for m in MODELS if not m.startswith("tiny") and m != "smollm2_135m"])
def test_a_model_sets_its_own_section_alone(model):
    """So every method composes with every model where it does with one."""
    rest = [
        {k: v for k, v in made_of("grpo", name).plain.items() if k not in ("model", "data")}
        for name in (model, "qwen3_4b_base")
    ]
    assert rest[0] == rest[1]


def test_pairs_with_defaults_of_their_own_are_among_those_tried():
    pairs = {(method, model) for model in MODELS for method in METHODS if f"{model}_{method}" in GROUPS["tuned"]}
    assert pairs
    assert pairs <= PAIRS


@pytest.mark.parametrize(
    "choice",
    [
        f"{g}={o}"
        for g in ("engine", "teacher", "tracking", "eval", "data", "experiment")
        for o in GROUPS.get(g, [])
        if not o.startswith("real")
    ],
)
def test_every_other_option(choice):
    more = {
        "data=file": ["data.path=x"],
        "data=reasoning_gym": ["data.task=chain_sum"],
        "data=mixture": ["+data@data.sources.a=countdown"],
        "data=custom": ["data._target_=rlrt.tasks.countdown.Countdown", *custom_keys()],
        "engine=custom": [
            "engine._target_=rlrt.engines.hf.HfEngine",
            "+engine.max_rows=8",
            "+engine.grade_truncated=false",
        ],
    }.get(choice, [])
    made = settings(choice, *more)
    section = choice.split("=")[0]
    if section == "experiment":
        _, model, method = choice.split("/")
        assert made.names == {} and made.train.steps == 100  # noqa: PT018
        assert made.method.name == method.removesuffix("_std")
        assert made.model.path == settings(f"model={model}").model.path
        return
    assert getattr(made, section) is not None
    assert made.plain[section]


def test_the_experiments_of_make_real_are_a_start_and_what_begins_there():
    start, made = settings("experiment=real_start"), settings("experiment=real")
    assert start.model.path == settings("model=smollm2_135m").model.path
    with composer() as compose:
        assert compose(["experiment=real_start"]).hydra.run.dir == made.model.path
    assert (start.method.name, start.train.lr, made.method.name, made.tracking.show_samples) == ("sft", 2e-5, "rlrt", 5)
    assert type(start.data) is type(made.data)
    assert (start.model.examples, start.data.answer_field) == (made.model.examples, made.data.answer_field)
    assert start.engine.max_new_tokens == made.engine.max_new_tokens
    assert made.train.steps % made.tracking.samples_every == 0  # so that rollouts of the last step are there to read


def custom_keys():
    """Countdown's keys, added to a section that has none."""
    keys = settings("data=countdown").plain["data"]
    return [f"+data.{k}={'null' if v is None else v}" for k, v in keys.items() if k != "_target_"]


def test_every_tuned_pair_names_a_model_and_a_method():
    for name in GROUPS["tuned"]:
        assert any(name == f"{model}_{method}" for model in MODELS for method in METHODS), name


def test_a_pairs_defaults_come_last_and_what_is_typed_wins():
    assert settings("method=rlrt").method.credit.epsilon_w == 0.2
    for model, epsilon_w in (
        ("4b_base", 1.0),
        ("8b_base", 1.0),
        ("4b_instruct", 0.5),
        ("4b_thinking", 0.2),
        ("8b", 0.2),
    ):
        assert settings("method=rlrt", f"model=qwen3_{model}").method.credit.epsilon_w == epsilon_w
    assert settings("method=rlrt", "method.epsilon_w=0.7").method.credit.epsilon_w == 0.7
    assert settings("method=sd").teacher.weights == "frozen"
    assert settings("method=sd", "model=qwen3_1.7b").teacher.weights == "ema"
    assert settings("method=sd", "teacher.weights=ema").teacher.weights == "ema"


def test_every_key_has_a_meaning_and_no_default_in_code():
    classes = [Top, *SECTIONS.values()]
    for method in METHODS:
        made = settings(f"method={method}")
        classes += [type(slot) for slot in made.method.slots().values()] + [type(made.engine), type(made.data)]
    classes += [type(settings(f"engine={engine}").engine) for engine in GROUPS["engine"] if engine != "custom"]
    for cls in classes:
        for field in dataclasses.fields(cls):
            if field.init:
                assert field.metadata.get("meaning"), f"{cls.__name__}.{field.name}"
                assert field.default is dataclasses.MISSING, f"{cls.__name__}.{field.name}"


def test_stable_keys_exist():
    """Keys that users type often, and that therefore stay as they are."""
    stable = [
        "seed",
        "resume",
        "train.steps",
        "train.prompts_per_step",
        "train.rollouts_per_prompt",
        "train.minibatches",
        "train.lr",
        "train.lr_schedule",
        "train.warmup_steps",
        "train.weight_decay",
        "train.keep_last",
        "train.token_budget",
        "train.clip_low",
        "train.clip_high",
        "train.max_grad_norm",
        "train.save_every",
        "train.eval_every",
        "engine.max_new_tokens",
        "engine.temperature",
        "method.lambda_init",
        "method.epsilon_w",
        "method.gate",
        "method.direction",
        "method.scale_by_std",
        "teacher.weights",
        "teacher.context",
        "teacher.template",
        "method.shuffle_weights",
        "model.path",
        "eval.samples_per_prompt",
        "tracking.uri",
        "tracking.experiment",
        "device",
        "dtype",
    ]
    plain = settings().plain
    for full in stable:
        node = plain
        for part in full.split("."):
            assert part in node, full
            node = node[part]
    assert "entropy_coef" in settings("method=entropy").plain["method"]
    assert "path" in fields_of(type(settings("data=file", "data.path=x").data))


def test_the_papers_recipe_has_the_optimiser_and_clip_of_the_code_it_builds_on():
    for model in ("4b_base", "8b_base", "4b_instruct", "8b"):
        for method in ("rlrt", "sd"):
            made = settings(f"experiment=paper/qwen3_{model}/{method}")
            train = made.train
            assert (train.beta1, train.beta2, train.weight_decay, train.clip_dual) == (0.9, 0.999, 0.01, 3.0)
            assert (train.lr, made.teacher.weights) == ((1e-5, "frozen") if method == "sd" else (1e-6, "old"))
    assert settings("experiment=paper/qwen3_8b/rlrt").method.policy_loss.clip_dual == 3.0
    assert settings("experiment=paper/qwen3_8b/srpo").teacher.weights == "ema"


def test_the_papers_base_models_may_take_the_chat_template_and_the_other_sampling():
    for size in ("4b", "8b"):
        plain = settings(f"experiment=paper/qwen3_{size}_base/rlrt", "eval=paper")
        other = settings(
            f"experiment=paper/qwen3_{size}_base/rlrt", f"model=qwen3_{size}_base_chat", "eval=paper_as_base_code"
        )
        assert (plain.model.style, plain.eval.temperature, plain.eval.top_p) == ("plain", 1.0, 1.0)
        assert (other.model.style, other.eval.temperature, other.eval.top_p) == ("chat", 0.6, 0.95)
        assert other.eval.suites.keys() == plain.eval.suites.keys()
        assert (other.model.path, other.model.revision) == (plain.model.path, plain.model.revision)
        assert other.method.credit == plain.method.credit


def test_published_recipes_are_as_published():
    rlsd = settings("method=rlsd", "model=qwen3_4b_base")
    credit = rlsd.method.credit
    assert (credit.lambda_init, credit.lambda_schedule, credit.lambda_decay_steps) == (0.5, "linear", 50)
    assert (credit.epsilon_w, credit.gate, credit.direction) == (0.2, "all", "forward")
    assert (rlsd.teacher.weights, rlsd.teacher.sync_steps, rlsd.teacher.context) == ("snapshot", 10, "answer")
    sd = settings("method=sd", "model=qwen3_4b_base")
    (dense,) = sd.method.auxiliary
    assert (dense.distill_alpha, dense.distill_top_k, dense.distill_ratio_cap) == (0.5, 100, 2.0)
    assert (sd.teacher.weights, sd.teacher.ema_rate, sd.train.lr) == ("ema", 0.05, 1e-5)
    assert [settings(f"method={m}").method.advantage.scale_by_std for m in ("grpo", "drgrpo", "entropy")] == [False] * 3
    assert [settings(f"method={m}").method.advantage.scale_by_std for m in ("rlrt", "rlsd", "dapo")] == [True] * 3
    assert settings("method=drgrpo").train.aggregation == "constant"
    grpo = settings("method=grpo", "model=qwen3_4b_base").train
    assert (grpo.clip_low, grpo.clip_high, grpo.aggregation, grpo.kl_coef) == (0.2, 0.28, "token", 0.0)
    srpo, rlcsd, opsd = (settings(f"method={m}", "model=qwen3_4b_base") for m in ("srpo", "rlcsd", "opsd"))
    assert (srpo.train.lr, srpo.method.advantage.scale_by_std, srpo.teacher.weights) == (1e-6, True, "ema")
    assert (rlcsd.teacher.weights, rlcsd.teacher.sync_steps) == ("snapshot", 10)
    assert rlcsd.method.advantage.scale_by_std
    assert (opsd.train.lr, opsd.teacher.weights) == (5e-6, "frozen")
    antisd = settings("method=antisd", "model=qwen3_4b_base")
    assert (antisd.teacher.weights, antisd.method.credit.antisd_low, antisd.method.credit.antisd_high) == (
        "live",
        0.93,
        1,
    )
    dapo = settings("method=dapo", "model=qwen3_4b_base").train
    assert (dapo.mixed_groups_only, dapo.overlong_weight, dapo.clip_dual) == (True, 0.5, None)
    rates = {settings(f"method={m}").train.lr for m in METHODS}
    assert rates == {1e-3}, "on the embedded model every method has one learning rate, so that they compare"
