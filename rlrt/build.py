"""The composition root: from settings to a run, from a run to its summary. Every part is chosen here and nowhere else."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlrt.allocator import keep_freed_memory
from rlrt.config.load import load as load_settings
from rlrt.config.schema import Settings
from rlrt.datacheck import check_data, check_prompts, drop_long_prompts, prepare_data
from rlrt.errors import DiskFull, UserError
from rlrt.evaluation import Suite
from rlrt.folder import RunFolder, environment, git_state, or_logged, read_json, redacted
from rlrt.identity import PACKAGE, content_hash, identity
from rlrt.learner import Learner
from rlrt.loop import Run, train
from rlrt.lora import add_adapters
from rlrt.monitor import Monitor
from rlrt.paths import listed, local_folder
from rlrt.policy import Policy, adamw, context_length, load, set_stop_tokens
from rlrt.precision import set_compute_dtype
from rlrt.prompting import PromptBuilder
from rlrt.resume import check_saved, restore_checkpoint, save_checkpoint, starting_point
from rlrt.rollouts import Sampler
from rlrt.teacher import Teacher, frozen_copy
from rlrt.terminal import Progress, before_after, phases
from rlrt.trackers.mlflow import Input, MlflowTracker

log = logging.getLogger("rlrt")
MLFLOW_STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
"""MLflow's word for a state; KILLED for all others."""
PATIENCE_S = 60.0
"""Seconds that MLflow gets at a run's end."""
HURRY_S = 20.0
"""Seconds that MLflow gets when a run must end: whoever sent the signal will not wait long."""


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def load_model(settings: Settings) -> tuple[Any, Any]:
    """The model of a run as it starts, where it will compute, and its tokenizer."""
    config = settings.model
    check_saved(config.path)
    model, tokenizer = load(config.path, config.revision, config.attn_implementation)
    set_stop_tokens(model, tokenizer, config.stop_tokens)
    set_compute_dtype(model, torch.float32 if settings.dtype == "float32" else torch.bfloat16)
    if config.lora is not None:
        add_adapters(model, config.lora, config.lora_alpha, config.lora_targets, settings.seed)
    return model.to(resolve_device(settings.device)), tokenizer


def prompt_builder(settings: Settings, tokenizer: Any) -> PromptBuilder:
    """How a run writes its prompts."""
    config = settings.model
    return PromptBuilder(tokenizer, config.style, config.prompt_template, config.thinking, settings.teacher.template)


def build_learner(settings: Settings) -> Learner:
    """Model, optimiser, teacher and method of a run, at step 0."""
    train_config, teacher_config = settings.train, settings.teacher
    model, tokenizer = load_model(settings)
    model.train()
    if next(model.parameters()).device.type == "cpu":
        keep_freed_memory()
    if settings.model.gradient_checkpointing:
        model.activation_checkpointing_enable()
    optimiser = adamw(model, train_config.lr, (train_config.beta1, train_config.beta2), train_config.weight_decay)
    keeps_old = settings.method.distils and train_config.minibatches > 1
    return Learner(
        policy=Policy(model, tokenizer, optimiser, settings.engine.temperature),
        method=settings.method,
        teacher=Teacher(model, teacher_config.weights, teacher_config.sync_steps, teacher_config.ema_rate, keeps_old),
        builder=prompt_builder(settings, tokenizer),
        reference=frozen_copy(model) if train_config.kl_coef > 0 else None,
        train=train_config,
        teacher_config=teacher_config,
        max_new_tokens=settings.engine.max_new_tokens,
        context_length=context_length(model, settings.model.context_length),
    )


def open_mlflow(settings: Settings, folder: RunFolder, name: str, more_tags: Mapping[str, str]) -> MlflowTracker | None:
    """The MLflow tracker, where ``tracking.uri`` names one."""
    tracking = settings.tracking
    if tracking.uri is None:
        return None
    tags = {
        "rlrt.method": settings.method.name,
        "rlrt.model": settings.names.get("model", settings.model.path),
        "rlrt.data": settings.names.get("data", type(settings.data).__name__),
        "rlrt.seed": str(settings.seed),
        "rlrt.identity": str(folder.manifest().get("identity")),
        "rlrt.folder": str(folder.path.resolve()),
        "rlrt.git_commit": str(folder.manifest().get("git_commit", "unknown")),
    }
    lam = settings.plain["method"].get("lambda_init")
    if lam is not None:
        tags["rlrt.lambda"] = str(lam)
    return MlflowTracker(
        uri=tracking.uri,
        experiment=tracking.experiment,
        artifacts=tracking.artifacts,
        run_id=folder.manifest().get("mlflow_run_id"),
        key=folder.key(),
        name=name,
        tags=tags | dict(more_tags),
        params=flat(redacted(settings.plain)),
        warn=log.warning,
        inputs=inputs_of(settings),
    )


def inputs_of(settings: Settings) -> list[Input]:
    """The model, the data and the benchmarks of a run, for MLflow: by content where they are here, else by revision."""

    def one(name: str, section: Mapping[str, Any], context: str) -> Input:
        source = str(section.get("path", name))
        folder = local_folder(source) if "path" in section else None
        digest = content_hash(folder) if folder is not None else str(section.get("revision") or "newest")
        return Input(name, digest, source, context)

    plain, names = settings.plain, settings.names
    found = [
        one(names.get("model", settings.model.path), plain["model"], "model"),
        one(names.get("data", type(settings.data).__name__), plain["data"], "training"),
    ]
    return found + [one(name, suite, "evaluation") for name, suite in (plain["eval"].get("suites") or {}).items()]


def flat(plain: Any, prefix: str = "") -> dict[str, str]:
    """Nested values as ``section.key: text``."""
    if not isinstance(plain, dict):
        return {prefix: str(plain)}
    return {
        k: v for name, value in plain.items() for k, v in flat(value, f"{prefix}.{name}" if prefix else name).items()
    }


def execute(
    settings: Settings,
    path: Path,
    say: Callable[[str], None],
    stop: Callable[[], bool],
    tags: Mapping[str, str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run, or go on with, the run of a folder.

    Args:
        settings: what to run.
        path: the run's folder.
        say: prints a line for the user.
        stop: True once the run should save at the next step boundary and end.
        tags: more tags for MLflow, for example the parent run of a sweep.
        progress: show a progress line on standard output.

    Returns:
        the folder's summary; its ``state`` is finished, interrupted or pruned.

    Raises:
        UserError: for anything the user can mend.
    """
    folder = RunFolder(path)
    if folder.summary().get("state") == "finished" and settings.resume != "never":
        say(f"This run finished before and was not run again (resume=never would): {path}")
        return folder.summary()
    if folder.prune_asked():
        folder.set_state("pruned")
        return folder.summary()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    prepare_data(settings)
    learner = build_learner(settings)
    drop_long_prompts(settings.data, learner.builder)
    check_data(settings)
    check_prompts(settings, learner)
    newest = starting_point(settings, folder)
    position = 0 if newest is None else restore_checkpoint(learner, newest, settings)
    if newest is not None:
        say(f"Going on from {newest}")
    write_papers(settings, folder)
    folder.set_state("running", step=position, mlflow_complete=False)
    tracker = open_mlflow(settings, folder, path.name, tags or {})
    shown = Progress(settings.train.steps) if progress else None
    monitor = Monitor(settings, folder, tracker, shown.show if shown else lambda step, metrics: None, log.warning)
    monitor.catch_up()
    run = assemble(settings, learner, position, monitor, folder, lambda: stop() or folder.prune_asked())
    begin = time.monotonic()
    try:
        with closing(settings.data, settings.engine, *settings.eval.suites.values()):
            reached = train(run)
    except KeyboardInterrupt:
        with or_logged(folder.path / "summary.json"):
            folder.set_state("interrupted")
        end_mlflow(settings, folder, monitor, "interrupted")
        raise
    except BaseException as error:
        told = full_disk(folder) if is_full_disk(error) else None  # first: it frees what the state needs
        with or_logged(folder.path / "summary.json"):
            folder.set_state("failed", error=f"{type(error).__name__}: {error}")
        end_mlflow(settings, folder, monitor, "failed")
        if told is not None:
            raise told from None
        raise
    if shown:
        shown.end()
    early = "pruned" if folder.prune_asked() else "interrupted"
    state = "finished" if reached == settings.train.steps else early
    finish(settings, folder, monitor, state, reached, time.monotonic() - begin)
    return folder.summary()


@contextlib.contextmanager
def closing(*parts: Any) -> Iterator[None]:
    """Let parts end what they started (a verifier's processes, an engine), however the run ends."""
    try:
        yield
    finally:
        for part in parts:
            if hasattr(part, "close"):
                part.close()


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that the disk takes no more; safetensors says it in words alone."""
    by_number = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return by_number or "os error 28" in str(error)


def full_disk(folder: RunFolder) -> DiskFull:
    """What to say when the disk is full: what is safe, and what to do. The torn checkpoint is removed."""
    for torn in folder.checkpoints.glob("step_*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)
    good = listed(folder.checkpoints)
    safe = f"the last checkpoint, {good[-1]}, is whole" if good else "there is no checkpoint yet"
    return DiskFull(f"{folder.path}: the disk is full; {safe}; free some space and give the same command again.")


def stored(path: Path, uri: str | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings of a run's folder, with the password of its tracking URI where that is known, and its tags of a sweep.

    Raises:
        UserError: if the folder's config cannot be read any more, or its URI lacks a password.
    """
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    manifest, spec = RunFolder(path).manifest(), read_json(path / "job.json")
    settings = load_settings(plain, manifest.get("choices", {}), manifest.get("overrides", []))
    typed = spec.get("plain", {}).get("tracking", {}).get("uri")  # a sweep's job keeps it with its password
    settings.tracking.uri = uri or typed or settings.tracking.uri
    if "***" in str(settings.tracking.uri):
        raise UserError(f"tracking.uri: {path} was recorded without the password of its URI; give the URI as --uri.")
    return settings, spec.get("tags", {})


def replay(path: Path, uri: str | None = None) -> bool:
    """Bring to MLflow what it missed of a run: whatever its folder's record has and MLflow has not.

    Args:
        path: the run's folder.
        uri: instead of the run's own tracking URI.

    Returns:
        whether MLflow now has everything (also where the run was never meant for it).

    Raises:
        UserError: if the folder's config cannot be read any more.
    """
    folder = RunFolder(path)
    settings, tags = stored(path, uri)
    tracker = open_mlflow(settings, folder, path.name, tags)
    if tracker is None:
        return True
    monitor = Monitor(settings, folder, tracker, lambda step, metrics: None, log.warning)
    monitor.catch_up()
    monitor.send_samples()
    monitor.close(MLFLOW_STATUS.get(str(folder.summary().get("state")), "KILLED"))
    folder.note(mlflow_complete=monitor.complete)
    return monitor.complete


def assemble(
    settings: Settings, learner: Learner, position: int, monitor: Monitor, folder: RunFolder, stop: Callable[[], bool]
) -> Run:
    """The loop's parts."""
    task, config = settings.data, settings.train
    parts = (settings.engine, learner.policy, learner.builder, task)

    def save(step: int) -> None:
        folder.record.sync()
        folder.samples.sync()
        save_checkpoint(learner, folder.checkpoints, step, config.keep_last)

    return Run(
        sampler=Sampler(*parts, seed=settings.seed, overlong_cache=config.overlong_cache),
        suites=suites_of(settings, learner.policy, learner.builder),
        learner=learner,
        seed=settings.seed,
        train=config,
        eval=settings.eval,
        position=position,
        record=monitor.record,
        keep_samples=partial(monitor.samples, spell=learner.policy.spell),
        save=save,
        stop_requested=stop,
    )


def suites_of(settings: Settings, policy: Policy, builder: PromptBuilder) -> list[Suite]:
    """What a run is evaluated on: the task's held-out prompts, or the benchmarks of ``eval.suites``."""
    count = settings.eval.prompts
    tasks = {"": settings.data} if not settings.eval.suites else settings.eval.suites
    parts = (settings.engine, policy, builder)
    return [
        Suite(
            name, Sampler(*parts, task, seed=settings.eval.seed), list(task.heldout[:count] if count else task.heldout)
        )
        for name, task in tasks.items()
    ]


def write_papers(settings: Settings, folder: RunFolder) -> None:
    """``config.yaml`` and ``manifest.json``, without secrets."""
    from omegaconf import OmegaConf

    (folder.path / "config.yaml").write_text(OmegaConf.to_yaml(redacted(settings.plain)))
    folder.write_manifest(
        identity=identity(settings.plain),
        choices=settings.names,
        overrides=redacted(settings.overrides),
        seed=settings.seed,
        **environment(),
        **git_state(PACKAGE),
    )


def end_mlflow(settings: Settings, folder: RunFolder, monitor: Monitor, state: str) -> None:
    """The last words to MLflow, and a note whether it has everything; never an error, which would hide another."""
    hurry = state == "interrupted"
    monitor.close(MLFLOW_STATUS.get(state, "KILLED"), HURRY_S if hurry else PATIENCE_S)
    left = monitor.tracker is None and settings.plain["tracking"]["uri"] is not None  # to a sweep's driver
    with or_logged(folder.path / "summary.json"):
        folder.note(mlflow_complete=monitor.complete and not left)


def finish(settings: Settings, folder: RunFolder, monitor: Monitor, state: str, step: int, seconds: float) -> None:
    """Final numbers, and the last words to MLflow."""
    records = folder.record.read()
    last = records[-1] if records else {}
    numbers = {k: v for k, v in last.items() if k.startswith(("eval/", "reward/", "policy/entropy"))}
    folder.set_state(state, step=step, seconds=seconds, final=numbers)
    end_mlflow(settings, folder, monitor, state)


def closing_words(settings: Settings, path: Path, summary: dict[str, Any]) -> str:
    """The tables and pointers that end a run."""
    folder = RunFolder(path)
    records = folder.record.read()
    evaluated = [r for r in records if "eval/greedy" in r]
    words = []
    if len(evaluated) > 1:
        words += [before_after(evaluated[0], evaluated[-1], settings.eval.samples_per_prompt), "", phases(records), ""]
    words.append(f"{summary['state']} after {summary['step']} steps; everything is in {path}")
    if settings.tracking.uri is not None:
        from rlrt.trackers.mlflow import absolute, without_password

        beside = Path(sys.executable).with_name("mlflow")
        command = "mlflow" if shutil.which("mlflow") or not beside.exists() else str(beside)
        words.append(f"{command} ui --backend-store-uri {without_password(absolute(settings.tracking.uri))}")
    return "\n".join(words)
