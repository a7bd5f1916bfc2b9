"""Send a step's numbers to the record first, then to MLflow, the terminal and the alarms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlrt.config.schema import Tracking
from rlrt.methods.declared import Alarm
from rlrt.records.files import is_small_file, own_folder, replace_text
from rlrt.records.folder import RunFolder
from rlrt.records.jsonlines import is_number, numbers_of
from rlrt.records.tracker import PATIENCE_S, Tracker
from rlrt.reporting.token_view import page
from rlrt.training.update import StepResult
from rlrt.types import Rollout

ALARMS = (
    Alarm(
        "rollout/truncated_share",
        "more than half of the rollouts are truncated, and each of them counts as wrong; raise engine.max_new_tokens, set "
        "model.stop_tokens, put an example with a short answer into model.prompt_template, or let truncated rollouts be graded "
        "by engine.grade_truncated=true",
        above=0.5,
    ),
    Alarm("policy/entropy", "the policy's entropy is under 0.001 nats per token", below=1e-3),
    Alarm("reward/verifier_error_share", "the verifier failed on more than 5 % of the rollouts", above=0.05),
    Alarm(
        "teacher/too_long_share",
        "more than a tenth of the teachers are missing because their prompts are too long; raise teacher.max_context_tokens or "
        "model.context_length, or set teacher.too_long=shorter_sibling",
        above=0.1,
    ),
    Alarm("policy/grad_norm", "the gradient was not finite: the update was left out", not_finite=True),
)
"""The alarms of every run; slots of the method add alarms of their own."""
GRADED = Alarm(
    "rollout/truncated_share",
    "more than half of the rollouts are truncated; raise engine.max_new_tokens, set model.stop_tokens, or put an example with "
    "a short answer into model.prompt_template",
    above=0.5,
)
"""The first of ``ALARMS`` where truncated rollouts are graded (``engine.grade_truncated``)."""


def worded(alarms: Sequence[Alarm], grade_truncated: bool) -> list[Alarm]:
    """Return a run's alarms, with the words that fit a run that grades truncated rollouts, or one that does not."""
    return [GRADED if grade_truncated and alarm.metric == GRADED.metric else alarm for alarm in alarms]


class Monitor:
    """Takes a run's metrics and samples.

    Args:
        tracking: the section of that name.
        folder: its folder.
        tracker: MLflow, Trackio or both; None for neither.
        show: progress for a person.
        warn: called with the sentence of each alarm, once.
        alarms: what is watched.
    """

    def __init__(
        self,
        tracking: Tracking,
        folder: RunFolder,
        tracker: Tracker | None,
        show: Callable[[int, dict[str, float]], None],
        warn: Callable[[str], None],
        alarms: Sequence[Alarm] = ALARMS,
    ) -> None:
        self._tracking, self._folder, self.tracker = tracking, folder, tracker
        self._show, self._warn, self._alarms = show, warn, alarms
        self.rung: dict[str, str] = {}  # the sentence of each alarm that rang, by its metric
        recorded = (row.get("rollout/length_mean") for row in folder.record.read())
        self._first_length: float | None = next((float(v) for v in recorded if is_number(v)), None)
        self._noted = folder.manifest().get("mlflow_run_id")
        self.complete = True

    def catch_up(self) -> None:
        """Send MLflow the whole record so far; it drops what it has. So nothing is missing after a life without a server."""
        if self.tracker is not None:
            for row in self._folder.record.read():
                self.tracker.metrics(row["step"], {k: v for k, v in numbers_of(row).items() if k != "step"})

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """One step's numbers, everywhere.

        Raises:
            FolderLost: if the run's folder was removed, or another process has taken it over.
        """
        self._folder.check_there()
        self._folder.record.append([{"step": step, **metrics}])
        if self.tracker is not None:
            self.tracker.metrics(step, {k: v for k, v in metrics.items() if v == v})
            self._note_run_id()
        self._show(step, metrics)
        self._watch_length(step, metrics)
        for alarm in self._alarms:
            name = alarm.metric
            if name in metrics and name not in self.rung and alarm.rings(metrics[name]):
                self.rung[name] = f"step {step}: {alarm.sentence} ({name} = {metrics[name]:.4g})"
                self._warn(self.rung[name])

    def _watch_length(self, step: int, metrics: dict[str, float]) -> None:
        length = metrics.get("rollout/length_mean")
        if length is None:
            return
        self._first_length = self._first_length or length
        if length < self._first_length / 3 and "length" not in self.rung:
            self.rung["length"] = (
                f"step {step}: rollouts are {length:.1f} tokens long, under a third of the first step's"
            )
            self._warn(self.rung["length"])

    def samples(
        self, step: int, rollouts: list[Rollout], result: StepResult, about: Callable[[Rollout], dict[str, Any]]
    ) -> None:
        """Rollouts worth keeping, with their per-token values, when they are due; and a page of them.

        Args:
            about: what else is stored of a rollout (``rlrt.execution.build.about``).
        """
        tracking = self._tracking
        if not tracking.samples_every or not tracking.samples:
            return
        if step != 1 and step % tracking.samples_every:
            return
        self._folder.check_mine()
        rows = []
        for i, rollout in enumerate(rollouts[: tracking.samples]):
            row = sample(step, rollout, {k: v[i] for k, v in result.tokens.items()})
            rows.append(row | {"context": result.shown[i]} | about(rollout))
        self._folder.samples.append(rows)
        file = own_folder(self._folder.path / "tokens") / f"step_{step:06d}.html"
        replace_text(file, page(rows, f"{self._folder.path.name}, step {step}"))
        self.send_samples()
        if self.tracker is not None:
            self.tracker.artifact(file, "tokens")

    def send_samples(self) -> None:
        """All stored rollouts to MLflow, as one table."""
        if self.tracker is None:
            return
        rows = self._folder.samples.read()
        shown = ("step", "prompt", "response", "reward", "correct", "truncated", "length")
        self.tracker.table("samples.json", {k: [row.get(k) for row in rows] for k in shown})

    def close(self, status: str, seconds: float = PATIENCE_S) -> None:
        """Papers to MLflow, and the end of its run; given up after some seconds (``complete`` is False then)."""
        if self.tracker is None:
            return
        for name in ("config.yaml", "manifest.json", "summary.json"):
            if is_small_file(self._folder.path / name):  # a link would send what it leads to
                self.tracker.artifact(self._folder.path / name)
        self.tracker.tag("rlrt.state", str(self._folder.summary().get("state")))
        self.complete = self.tracker.close(status, seconds)
        self._note_run_id()

    def abandon(self) -> None:
        """Leave the run in MLflow as it is: another process goes on with it."""
        if self.tracker is not None:
            self.tracker.abandon()

    def _note_run_id(self) -> None:
        tracker = self.tracker
        if tracker is not None and tracker.run_id and self._noted != tracker.run_id:
            if self._folder.path.is_dir():  # a folder that was removed is not made anew
                self._folder.write_manifest(mlflow_run_id=tracker.run_id)
            self._noted = tracker.run_id


def sample(step: int, rollout: Rollout, tokens: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A rollout as plain values; per-token lists are as long as the response."""
    generation = rollout.generation
    length = len(generation.token_ids)
    values = {k: [round(float(x), 6) for x in v[:length]] for k, v in tokens.items()}
    return {
        "step": step,
        "prompt_id": rollout.prompt.id,
        "prompt": rollout.prompt.text,
        "sample": rollout.sample,
        "response": rollout.text,
        **({} if rollout.prompt.final is None else {"expected": rollout.prompt.final}),
        "reward": rollout.grade.reward,
        "correct": rollout.grade.correct,
        **({"error": True} if rollout.grade.error else {}),
        **({"rewards": dict(rollout.grade.parts)} if rollout.grade.parts else {}),
        "truncated": generation.truncated,
        "length": length,
        "token_ids": generation.token_ids,
        "tokens": values | {"entropy": [round(float(x), 6) for x in generation.entropy_T]},
    }
