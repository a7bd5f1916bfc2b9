"""From settings to a run and its summary: folder, processes, checkpoints, tracking, and every way a run can end."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlrt.config.checks import check_installed
from rlrt.config.schema import Settings
from rlrt.distributed.cards import refuse_shared_cards, see_own_card, visible_cards
from rlrt.distributed.world import World
from rlrt.errors import FolderLost, FolderRemoved, RankLost, Replaced, UserError
from rlrt.execution.build import assemble, build_learner, lessons_of
from rlrt.execution.data import check_data, check_prompts, drop_long_prompts, drop_untaught, prepare_data, prompts_of
from rlrt.execution.memory.budget import fixed, settled
from rlrt.execution.memory.share import tell_engine
from rlrt.execution.monitor import ALARMS, Monitor, worded
from rlrt.execution.origin import origin_point
from rlrt.execution.papers import write_manifest_and_config
from rlrt.execution.parts import Parts, cards_for_engine, closing, parts_of
from rlrt.execution.probe import ALARMS as PROBE_ALARMS
from rlrt.execution.probe import probe
from rlrt.execution.ranks import LastWords, connected
from rlrt.execution.resume import refuse_another_run, starting_point, warn_of_earlier_life
from rlrt.execution.saver import Saver
from rlrt.execution.snapshot import restore_checkpoint
from rlrt.execution.stop import Pace
from rlrt.execution.tracking import open_tracker, tracked, where_to_look
from rlrt.model.device import compute_dtype, cuda_problem, description, make_deterministic, resolve_device
from rlrt.paths import listed
from rlrt.records.files import or_logged, whole
from rlrt.records.folder import BEGUN, RunFolder
from rlrt.records.jsonlines import JsonLines
from rlrt.records.killed import KILLS, kills
from rlrt.records.mlflow import status_of
from rlrt.records.storage import GONE, below, is_full_disk, loss, number_of, removed
from rlrt.records.tracker import PATIENCE_S
from rlrt.reporting.terminal import Progress, before_after, phases, to_read
from rlrt.training.learner import Learner
from rlrt.training.loop import train

log = logging.getLogger("rlrt")
HURRY_S = 20.0
"""Seconds that MLflow gets when a run must end: whoever sent the signal will not wait long."""


def execute(
    settings: Settings,
    path: Path,
    say: Callable[[str], None],
    stop: Callable[[], bool],
    tags: Mapping[str, str] | None = None,
    progress: bool = True,
    time_left: Callable[[], float] = lambda: math.inf,
) -> dict[str, Any]:
    """Run, or go on with, the run of a folder.

    Where the run has several processes, each calls this; the main one alone writes, speaks and tracks.

    Args:
        settings: what to run.
        path: the run's folder.
        say: prints a line for the user.
        stop: True once the run should save at the next step boundary and end.
        tags: more tags for MLflow, for example the parent run of a sweep.
        progress: show a progress line on standard output.
        time_left: seconds until this process must have ended; infinite while nobody asked it to.

    Returns:
        the folder's summary; its ``state`` is finished, interrupted or pruned.

    Raises:
        UserError: for anything the user can mend.
        RankLost: where another process died, failed, or kept this one waiting too long.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        make_deterministic()
    aside = cards_for_engine(settings)
    cards = len(visible_cards())
    if settings.engine.own_card:
        see_own_card()
    on_gpu = resolve_device(settings.device).type == "cuda"
    refuse_shared_cards(cards if on_gpu else 0)
    words = LastWords(path)
    world = connected(settings.distributed, on_gpu, stop, words)
    folder = world.on_main(lambda: RunFolder(path)) if world.size > 1 else RunFolder(path)
    try:
        if world.on_main(lambda: is_over(settings, folder, say)):
            return folder.summary()
        pace = Pace(time_left)
        return run_to_its_end(
            settings, folder, say, stop, dict(tags or {}), progress and world.main, world, pace, aside
        )
    except Exception as error:
        cause = world.explained(error)
        lost = loss(cause, path) if world.main else None
        if lost is not None:
            raise lost from None
        if isinstance(cause, RankLost):
            words(str(cause))
        if cause is error:
            raise
        raise cause from error
    finally:
        world.leave()


def is_over(settings: Settings, folder: RunFolder, say: Callable[[str], None]) -> bool:
    """True if nothing is left to do in a run's folder.

    Raises:
        UserError: if another run lies there.
    """
    refuse_another_run(settings, folder)
    if folder.summary().get("state") == "finished" and settings.resume != "never":
        say(f"This run finished before and was not run again (resume=never would): {folder.path}")
        return True
    if folder.prune_asked():
        folder.set_state("pruned")
        return True
    return False


def run_to_its_end(
    settings: Settings,
    folder: RunFolder,
    say: Callable[[str], None],
    stop: Callable[[], bool],
    tags: Mapping[str, str],
    progress: bool,
    world: World,
    pace: Pace,
    aside: Sequence[str] = (),
) -> dict[str, Any]:
    """Make the parts, go on from the newest checkpoint, train, and write the summary; ``aside``: GPUs for the engine alone."""
    if world.main:
        warn_of_earlier_life(folder)
    before = folder.manifest() if settings.resume != "never" else {}
    settings, parts, learner = prepared(settings, world, whole(before.get("token_budget")))
    parts.engine.settle(folder.path, aside)
    newest = starting_point(settings, folder, world) or world.on_main(lambda: origin_point(settings, folder))
    attention = settings.model.attn_implementation
    position, pending = (0, None) if newest is None else restore_checkpoint(learner, newest, attention)
    progress_line = Progress(settings.train.steps) if progress else None
    monitor = None
    if world.main:
        if newest is not None:
            say(f"Going on from {newest}")
        say_where(settings, learner, say)
        monitor = open_monitor(settings, folder, position, tags, progress_line, learner)

    def stop_requested() -> bool:
        if monitor is not None and settings.train.stop_on_alarm and monitor.rung:
            folder.note(stopped_by=next(iter(monitor.rung.values())))
            folder.ask_to_prune()  # for good: the same command does not go on with a collapsed run
        return world.any(stop() or folder.prune_asked())

    saver = Saver(learner, folder.checkpoints, settings.train, pace)
    run = assemble(settings, parts, learner, position, monitor, folder, stop_requested, pace, saver, pending)
    run.probe = partial(probe, settings, run, say_and_log(say) if world.main else log.debug)
    begin = time.monotonic()
    with failing(settings, folder, monitor, world), closing(run.source, parts), saver:
        reached = train(run)
    if progress_line:
        progress_line.end()
    early = "pruned" if folder.prune_asked() else "interrupted"
    state = "finished" if reached == settings.train.steps else early
    if monitor is not None:
        finish(settings, folder, monitor, state, reached, time.monotonic() - begin)
    return folder.summary() | {"state": state, "step": reached}


def say_where(settings: Settings, learner: Learner, say: Callable[[str], None]) -> None:
    """Say, and note in the log, where and how a run computes, and why it does not use the NVIDIA card of its machine."""
    device = learner.policy.device
    line = description(learner.policy.model, compute_dtype(settings.dtype, device), learner.world.size)
    say_and_log(say)(line)
    if device.type == "cpu" and settings.device == "auto" and (reason := cuda_problem()):
        log.warning(
            "this machine has an NVIDIA driver, and torch cannot use its card: %s; the run computes on the CPU", reason
        )


def say_and_log(say: Callable[[str], None]) -> Callable[[str], None]:
    """A function that says a line and notes it in the log."""

    def both(line: str) -> None:
        say(line)
        log.info(line)

    return both


def prepared(settings: Settings, world: World, earlier_budget: int = 0) -> tuple[Settings, Parts, Learner]:
    """The parts of a run with their data read and checked, and its settings with a token budget in numbers.

    Args:
        earlier_budget: token budget of the run's earlier life, 0 for none.

    Raises:
        UserError: for a package that is not installed, and data or a model that cannot be had or used.
    """
    check_installed(settings)
    refuse_idle_processes(settings, world)
    refuse_sharding(settings, world.size)
    parts = parts_of(settings)
    prepare_data(parts)
    learner = build_learner(settings, world, parts.method)
    drop_long_prompts(parts.task, learner.builder)
    drop_untaught(parts.task, lessons_of(settings, learner))
    check_data(settings, parts)
    check_prompts(parts, learner)
    model, context, prompts = learner.policy.model, learner.context_length, prompts_of(parts)
    if settings.train.token_budget == "auto":
        asked = partial(settled, settings, model, prompts, learner.builder, context, world.size, earlier_budget)
        settings = fixed(settings, world.on_main(asked))
        learner.train = settings.train
    tell_engine(settings, parts.engine, prompts, learner.builder, model, context, world.size)
    return settings, parts, learner


@contextlib.contextmanager
def failing(settings: Settings, folder: RunFolder, monitor: Monitor | None, world: World) -> Iterator[None]:
    """Write the state of a run that ends by an error, tell MLflow, and raise the error's cause.

    Args:
        monitor: None on ranks that write nothing.

    Raises:
        FolderLost: instead of an error that says that the folder takes nothing more.
        Replaced: where another process has taken over the folder; nothing is written then.
        RankLost: instead of a collective that failed because another rank is gone.
    """

    def note(state: str, lost: BaseException | None = None, **more: str) -> None:
        if isinstance(lost, Replaced):
            if monitor is not None:
                monitor.abandon()
            return
        if isinstance(lost, FolderRemoved):
            if monitor is not None:
                folder.forget_remains()
                monitor.close(status_of(state), HURRY_S)
            return
        quiet = contextlib.suppress(OSError) if lost else or_logged(folder.path / "summary.json")
        if monitor is not None:
            with quiet:
                folder.set_state(state, **more)
            end_mlflow(settings, folder, monitor, state, lost is not None)

    try:
        yield
    except KeyboardInterrupt:
        note("interrupted")
        raise
    except BaseException as caught:
        error = world.explained(caught)
        lost = (
            error if isinstance(error, FolderLost) else lost_folder(folder, error)
        )  # first: it frees space for the state
        note("failed", lost, error=f"{type(error).__name__}: {error}")
        if lost is not None:
            raise lost from None
        raise error from (None if error is caught else caught)


def refuse_sharding(settings: Settings, processes: int) -> None:
    """Refuse to shard weights that the engine could not read.

    Raises:
        UserError: naming the engine.
    """
    if processes > 1 and settings.distributed.strategy == "fsdp" and not settings.engine.takes_shards:
        raise UserError(
            f"distributed.strategy: fsdp shards the weights over {processes} processes, and {type(settings.engine).__name__} "
            "reads whole weights (it has no takes_shards = True, docs/engines.md); set distributed.strategy=ddp."
        )


def refuse_idle_processes(settings: Settings, world: World) -> None:
    """Refuse more processes than a step has rollouts.

    Raises:
        UserError: with both numbers.
    """
    rollouts = settings.train.prompts_per_step * settings.train.rollouts_per_prompt
    if world.size > rollouts:
        raise UserError(
            f"this run has {world.size} processes and a step has {rollouts} rollouts (train.prompts_per_step x "
            f"train.rollouts_per_prompt), so some would have nothing to do; start at most {rollouts}, or sample more."
        )


def open_monitor(
    settings: Settings,
    folder: RunFolder,
    position: int,
    tags: Mapping[str, str],
    shown: Progress | None,
    learner: Learner,
) -> Monitor:
    """Write the manifest and the config, set the state to running, and open MLflow: the monitor of a run that begins."""
    write_manifest_and_config(settings, folder, learner)
    folder.set_state("running", step=position, mlflow_complete=False, **{KILLS: kills(), BEGUN: True})
    tracker = open_tracker(tracked(settings, tags), folder, folder.path.name)
    show = shown.show if shown else lambda step, metrics: None
    own = worded(ALARMS, settings.engine.grade_truncated)
    alarms = [*own, *PROBE_ALARMS, *(alarm for slot in settings.method.slots().values() for alarm in slot.alarms)]
    monitor = Monitor(settings.tracking, folder, tracker, show, log.warning, alarms)
    monitor.catch_up()
    return monitor


def lost_folder(folder: RunFolder, error: BaseException) -> FolderLost | None:
    """The error for the user if a run's folder takes nothing more: which checkpoint is safe, and what to do.

    On a full disk the torn checkpoint is removed.
    """
    if is_full_disk(error):
        for torn in folder.checkpoints.glob("step_*.tmp"):
            shutil.rmtree(torn, ignore_errors=True)
    if number_of(error) in GONE and below(error, folder.path) and not (folder.path / "manifest.json").exists():
        return removed(folder.path)
    good = listed(folder.checkpoints)
    safe = f"the last checkpoint, {good[-1]}, is whole" if good else "there is no checkpoint yet"
    return loss(error, folder.path, f"{safe}; ")


def end_mlflow(settings: Settings, folder: RunFolder, monitor: Monitor, state: str, lost: bool = False) -> None:
    """The last words to MLflow, and a note whether it has everything; never an error, which would hide another.

    Args:
        lost: the folder takes nothing more, which is said already.
    """
    hurry = state == "interrupted"
    with contextlib.suppress(OSError) if lost else or_logged(folder.path / "summary.json"):
        monitor.close(status_of(state), HURRY_S if hurry else PATIENCE_S)
        typed = settings.plain["tracking"]
        left = any(
            typed[k] is not None and getattr(settings.tracking, k) is None for k in ("uri", "trackio")
        )  # to a driver
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
    records = JsonLines(path / "metrics.jsonl").read()  # nothing is written any more, wherever the right to do so is
    evaluated = [r for r in records if "eval/greedy" in r]
    words = []
    if len(evaluated) > 1:
        words += [before_after(evaluated[0], evaluated[-1], settings.eval.samples_per_prompt), "", phases(records), ""]
    if settings.tracking.show_samples:
        words += [to_read(JsonLines(path / "samples.jsonl").read(), settings.tracking.show_samples), ""]
    words.append(f"{summary['state']} after {summary['step']} steps; everything is in {path}")
    words += where_to_look(settings.tracking)
    return "\n".join(words)
