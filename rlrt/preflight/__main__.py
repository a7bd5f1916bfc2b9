"""``python -m rlrt.preflight [overrides]``: what will not fit or not work, and which key to change; nothing is started.

Overrides are those of ``rlrt.run``, with ``-m`` for a sweep. The exit code is 0 where nothing speaks against it, 2 else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rlrt.config.refused import guarded
from rlrt.config.rerun import TRUST
from rlrt.config.schema import Settings
from rlrt.preflight import checks
from rlrt.preflight.device import processes_of
from rlrt.preflight.finding import Finding
from rlrt.preflight.fit import findings, groups_of, shown
from rlrt.preflight.plan import Planned, plan
from rlrt.preflight.slurm import check_slurm
from rlrt.reporting.terminal import positive
from rlrt.sweep.disk import one_checkpoint
from rlrt.sweep.launchers import SlurmLauncher


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m rlrt.preflight",
        description="Say what of a run or a sweep will not fit or not work, and which key to change. Nothing is started.",
        epilog="Exit code: 0 where nothing speaks against it, 2 where something will not work.",
    )
    made.add_argument("overrides", nargs="*", help="as for rlrt.run, for example model=qwen3_8b method=rlrt")
    made.add_argument("-m", "--multirun", action="store_true", help="check every job of a sweep")
    made.add_argument("--config-dir", "-cd", action="append", default=[], help="a further folder of config groups")
    made.add_argument(
        "--memory-gb", type=positive, help="memory of one device in 10^9 bytes, for nodes that are not here"
    )
    made.add_argument("--step-seconds", type=positive, help="how long a step takes, for SLURM's signal to save")
    made.add_argument(TRUST, action="store_true", help="+from=RUN may name code from outside rlrt: it is imported")
    return made


def data_of(planned: Planned) -> list[Finding]:
    """The data and the models of all jobs, each once; data stays prepared for the lengths of its prompts."""
    found: list[Finding] = []
    seen: dict[str, Settings] = {}
    models: set[str] = set()
    for _, settings in planned.jobs:
        plain = settings.plain
        if (path := settings.model.path) not in models:
            models.add(path)
            found.append(checks.check_model(settings))
        parts = (plain["data"], plain["eval"]["suites"], path, plain["train"]["prompts_per_step"], plain["teacher"])
        name = json.dumps([*parts, settings.method.needs_teacher], default=str)
        if name in seen:
            settings.data, settings.eval.suites = seen[name].data, seen[name].eval.suites
        else:
            seen[name] = settings
            found += checks.check_problems(settings)
    return list(dict.fromkeys(found))


def beside_memory(planned: Planned, step_s: float | None) -> list[Finding]:
    """Every check but that of memory."""
    job, settings = planned.jobs[0]
    launcher = planned.launcher
    found = data_of(planned)
    key = "hydra.sweep.dir" if planned.several else "hydra.run.dir"
    found += checks.check_place(planned.folder, [j for j, _ in planned.jobs], planned.count, key)
    found += checks.check_ports(settings, processes_of(launcher), isinstance(launcher, SlurmLauncher))
    found.append(checks.check_tracking(settings.tracking.uri))
    if isinstance(launcher, SlurmLauncher):
        known = step_s if step_s is not None else checks.earlier_step_s(settings)
        found += check_slurm(launcher, planned.count, known, one_checkpoint(job) or 0)
    return found


def preflight(planned: Planned, memory_gb: float | None, step_s: float | None) -> int:
    """Check, print; the exit code."""
    found = beside_memory(planned, step_s)
    groups, unknown = groups_of(planned, memory_gb)
    if groups:
        print(f"{shown(groups, planned.several)}\n")
    found = [*findings(groups), *unknown, *found]
    for finding in found:
        print(finding)
    problems = sum(f.state == "problem" for f in found)
    print(
        f"\n{planned.count} job{'s' * (planned.count > 1)}, {problems} problem{'s' * (problems != 1)}; nothing was started"
    )
    return 2 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    given = parser().parse_intermixed_args(arguments)
    codes: list[int] = []

    def act() -> None:
        planned = plan([*given.overrides, *([TRUST] if given.trust else [])], given.multirun, given.config_dir)
        codes.append(preflight(planned, given.memory_gb, given.step_seconds))

    return guarded(act, given.overrides) or max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
