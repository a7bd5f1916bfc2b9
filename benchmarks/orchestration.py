"""What the orchestration itself costs: ``python benchmarks/orchestration.py [--quick]``; figures go to docs/LOG.md.

Prints one line for each: start to first step, here and (where SLURM is up) there; a sweep of jobs that only sleep for a second;
the driver's own CPU time while jobs wait; composing and driving a thousand jobs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlrt.config.compose import composer
from rlrt.sweep.driver import Driver
from rlrt.sweep.jobs import assign_folders, check, job_of
from rlrt.sweep.launchers import LocalLauncher
from rlrt.sweep.plan import grid_jobs
from rlrt.sweep.source import Grid

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.sweep.fake import FolderLauncher, many_jobs

NO_TRACKING = {"uri": None}
TYPED = ("-m", "method=grpo", "train.steps=2", "train.eval_every=0", "eval.prompts=8", "tracking=none")


def sleeper(folder: str) -> str:
    """A job of one second; defined here, so that submitit sends it by value and its process imports nothing of rlrt."""
    import json
    import pathlib
    import time

    time.sleep(1.0)
    summary = pathlib.Path(folder) / "summary.json"
    summary.write_text(json.dumps({"state": "finished", "step": 1, "final": {}}))
    return "finished"


@dataclass
class SleepingLauncher(LocalLauncher):
    """Local processes that only sleep."""

    work = staticmethod(sleeper)


def own_cpu() -> float:
    """CPU seconds of this process, its children apart."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder of its own, removed at the end."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


def to_first_step(*more: str) -> float:
    """Seconds from the command to the first step in the record."""
    with folder() as place:
        begin = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "rlrt.run", *TYPED, *more],
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:
            for record in place.glob("outputs/sweeps/*/*/metrics.jsonl"):
                lines = record.read_text().splitlines()
                if any(json.loads(line)["step"] == 1 for line in lines if line.endswith("}")):
                    took = time.time() - begin
                    process.wait()
                    return took
            time.sleep(0.02)
    raise RuntimeError("the run ended without a step")


def driven(count: int, launcher: object) -> tuple[float, float, int]:
    """(seconds, own CPU seconds, exit code) of a driver with ``count`` jobs."""
    with folder() as place:
        begin, cpu = time.monotonic(), own_cpu()
        code = Driver(place, Grid(many_jobs(place, count)), launcher, 0, NO_TRACKING, io.StringIO()).run()  # type: ignore[arg-type]
        return time.monotonic() - begin, own_cpu() - cpu, code


def waiting_cpu(waiting: int, seconds: float) -> float:
    """Share of a core that a driver takes while one job runs and ``waiting`` wait."""
    with folder() as place:
        launcher = FolderLauncher(at_once=1, ticks=10**9)
        driver = Driver(place, Grid(many_jobs(place, waiting + 1)), launcher, 0, NO_TRACKING, io.StringIO())  # type: ignore[arg-type]
        timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), 2))
        used: list[float] = []

        def at_start() -> None:
            used.append(own_cpu())

        threading.Timer(1.0, at_start).start()
        timer.start()
        threading.Timer(seconds + 0.2, lambda: launcher._left.clear()).start()
        driver.run()
        return (own_cpu() - used[0]) / (seconds - 1.0)


def composing(count: int) -> float:
    """Seconds to compose and check a grid of ``count`` jobs."""
    seeds = ",".join(map(str, range(count // 4)))
    begin = time.monotonic()
    with composer() as compose:
        place = Path("/nowhere")
        jobs = assign_folders(
            place,
            grid_jobs(["method=rlrt,grpo,sd,entropy", f"seed={seeds}"], {}, [], lambda o: job_of(place, o, compose)),
        )
        for job in jobs:
            check(job)
    return time.monotonic() - begin


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer jobs, under a minute")
    quick = parser.parse_args().quick
    print(f"start to first step, here: {to_first_step():.1f} s")
    if shutil.which("sinfo") and subprocess.run(["sinfo", "-h"], capture_output=True, check=False).returncode == 0:
        there = to_first_step("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2")
        print(f"start to first step, on SLURM: {there:.1f} s")
    count = 20 if quick else 200
    took, cpu, code = driven(
        count, SleepingLauncher(n_jobs=8, threads_per_job=None, tasks_per_node=1, gpus_per_node=None)
    )
    assert code == 0
    print(f"{count} jobs of 1 s, 8 at a time: {took:.1f} s (at best {count / 8:.0f} s), driver's CPU {cpu:.1f} s")
    print(f"driver's CPU with 100 waiting jobs: {waiting_cpu(100, 6 if quick else 20):.2%} of a core")
    print(f"driver's CPU with 1,000 waiting jobs: {waiting_cpu(1000, 6 if quick else 20):.2%} of a core")
    count = 200 if quick else 1000
    print(f"composing and checking {count} jobs: {composing(count):.1f} s")
    took, cpu, code = driven(count, FolderLauncher(at_once=50, ticks=2))
    assert code == 0
    print(f"driving {count} jobs that end at once, 50 at a time: {took:.1f} s, CPU {cpu:.1f} s")


if __name__ == "__main__":
    main()
