"""Runs that are killed at chosen moments and started again, compared to the bit with one that was not.

A life is a forked process: the parent imports torch once and never computes, so that a life costs its steps alone. The moments
are functions of (method, number); the deaths are real (SIGKILL by the kernel, or SIGXFSZ in the middle of a write).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rlrt.sampling.solutions
import rlrt.sampling.source
import rlrt.training.loop
from rlrt.execution.execute import execute
from tests.helpers import settings

STEPS = 6
COMMON = (
    f"train.steps={STEPS}", "train.prompts_per_step=4", "train.minibatches=2", "train.save_every=2", "train.eval_every=3",
    "train.keep_last=2", "eval.prompts=16", "tracking=none", "tracking.samples_every=1", "tracking.samples=2",
)  # fmt: skip
MORE = {
    "sd": ("teacher.weights=ema", "train.lr=1e-3"),  # moving teacher weights, a dense loss
    "rlsd": ("teacher.weights=snapshot", "teacher.sync_steps=2"),
    "entropy": ("method.entropy_target=2.0", "method.entropy_rate=0.01"),  # a slot with state
    "dapo": ("train.overlong_cache=12",),
    "antisd": ("method.antisd_warm_steps=2",),  # state that moves within the run
}
KINDS = ("byte", "file", "call", "clock")
"""Of moments; a trial's number says which it has."""
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
LARGEST = 1_240_000
"""Bytes of the largest file of a checkpoint here, the optimiser's, and a little less."""


@dataclass(frozen=True)
class Moment:
    """When a life ends.

    Attributes:
        kind: ``call``: before the ``count``-th call of ``name``; ``file``: before the ``count``-th change to a file of the
            run; ``byte``: at byte ``count`` of a file of the ``name``-th checkpoint; ``clock``: from outside, ``name`` % of
            a step after the record has ``count`` lines.
    """

    kind: str
    count: int
    name: str = ""

    def __str__(self) -> str:
        return {
            "call": f"before call {self.count} of {self.name}",
            "file": f"before change {self.count} to a file",
            "byte": f"at byte {self.count} of checkpoint {self.name}",
            "clock": f"{self.name} % of a step after line {self.count} of the record",
        }[self.kind]


def moments(method: str, number: int) -> list[Moment]:
    """The deaths of one trial, usually one and sometimes two, before the life that may end."""
    rng = random.Random(f"{method} {number}")

    def one() -> Moment:
        kind = KINDS[number % len(KINDS)]
        if kind == "call":
            name = rng.choice(["signals_of", "learn", "step_prompts", "evaluate", "rollout_metrics"])
            return Moment(kind, rng.randint(1, 3 if name == "evaluate" else STEPS), name)
        if kind == "file":
            return Moment(kind, rng.randint(1, 60))
        if kind == "byte":
            return Moment(
                kind,
                int(LARGEST ** rng.random()) if rng.random() < 0.5 else rng.randrange(LARGEST),
                str(rng.randint(1, 3)),
            )
        return Moment(kind, rng.randint(1, STEPS - 1), str(rng.randint(0, 100)))

    return [one() for _ in range(1 if rng.random() < 0.7 else 2)]


def arm(moment: Moment, folder: Path) -> None:
    """Prepare this process's death."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment.kind == "call":
        count_calls(moment, die)
    elif moment.kind == "file":
        count_changes(moment, folder, die)
    elif moment.kind == "byte":
        limit_bytes(moment)


def count_calls(moment: Moment, die: Callable[[], None]) -> None:
    places = (rlrt.sampling.source, rlrt.sampling.solutions, rlrt.training.loop)
    callers = [module for module in places if hasattr(module, moment.name)]  # of the sources a run has one
    function, left = getattr(callers[0], moment.name), [moment.count]

    def counted(*args: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            die()
        return function(*args, **more)

    for module in callers:
        setattr(module, moment.name, counted)


def count_changes(moment: Moment, folder: Path, die: Callable[[], None]) -> None:
    left = [moment.count]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or str(folder) not in str(args[0]):
            return
        if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wa+x")):
            return
        left[0] -= 1
        if left[0] == 0:
            die()

    sys.addaudithook(hook)


def limit_bytes(moment: Moment) -> None:
    saves = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and str(args[0]).endswith(".tmp"):
            saves[0] += 1
            if saves[0] == int(moment.name):
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (moment.count, moment.count))

    sys.addaudithook(hook)


def life(method: str, folder: Path, moment: Moment | None, more: tuple[str, ...] = ()) -> int:
    """One process that runs, or goes on with, the run of ``folder``.

    Returns:
        0 if it came to its end, otherwise the number of the signal that ended it.

    Raises:
        AssertionError: if the run itself failed.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if moment is not None:
                arm(moment, folder)
            made = settings(f"method={method}", *COMMON, *MORE.get(method, ()), *more)
            execute(made, folder, lambda line: None, lambda: False, progress=False)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if moment is not None and moment.kind == "clock":
        kill_from_outside(pid, folder, moment)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, f"the run in {folder} failed"
    return 0


def kill_from_outside(pid: int, folder: Path, moment: Moment) -> None:
    record = folder / "metrics.jsonl"
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if record.exists() and record.read_bytes().count(b"\n") >= moment.count:
            time.sleep(int(moment.name) / 100 * step_s(record))
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.005)


def step_s(record: Path) -> float:
    """Seconds of the last step of a record: kills by the clock must fall inside a run however quick the machine is."""
    last = json.loads(record.read_bytes().split(b"\n")[-2])
    return float(last.get("time/step_s", 0.3))


def fingerprint(folder: Path) -> dict[str, Any]:
    """All that a run leaves, apart from wall-clock figures and the papers that name its folder."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    files = sorted(p for p in (folder / "checkpoints").rglob("*") if p.is_file())
    return {
        "record": [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records],
        "samples": (folder / "samples.jsonl").read_text(),
        "summary": {k: summary[k] for k in ("state", "step", "final")},
        "checkpoints": {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    }


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the parts in which two fingerprints differ."""
    found = [name for name in ("record", "samples", "summary") if a[name] != b[name]]
    names = sorted(a["checkpoints"].keys() | b["checkpoints"].keys())
    return found + [n for n in names if a["checkpoints"].get(n) != b["checkpoints"].get(n)]


def torture(method: str, number: int, folder: Path, whole: dict[str, Any]) -> str:
    """Kill a run at its moments, let it end, compare.

    Returns:
        what was done to it, for the log.

    Raises:
        AssertionError: naming the parts that differ from the uninterrupted run.
    """
    told = []
    for moment in moments(method, number):
        ended = life(method, folder, moment)
        told.append(f"{moment}: {signal.Signals(ended).name if ended else 'came too late'}")
    assert "came too late" not in told[0], f"{method} {number} was not killed: {told[0]}"
    life(method, folder, None)
    different = differences(whole, fingerprint(folder))
    assert not different, f"{method} {number} ({'; '.join(told)}): {', '.join(different)} differ"
    return "; ".join(told)


def uninterrupted(method: str, folder: Path) -> dict[str, Any]:
    """The fingerprint of a run that nobody disturbs."""
    assert life(method, folder, None) == 0
    return fingerprint(folder)
