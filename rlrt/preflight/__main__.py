"""``python -m rlrt.preflight [overrides]``: report what will not fit or not work, and which key to change; nothing starts.

Overrides are those of ``rlrt.run``, with ``-m`` for a sweep. The exit code is 0 if no problem is reported, else 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rlrt.config.refused import guarded
from rlrt.config.rerun import TRUST
from rlrt.errors import UserError
from rlrt.execution.parts import Parts, parts_of
from rlrt.preflight import checks
from rlrt.preflight.device import kind_of, processes_of
from rlrt.preflight.finding import Finding
from rlrt.preflight.fit import findings, groups_of, memory_report
from rlrt.preflight.forecast.earlier import earlier
from rlrt.preflight.forecast.hours import check_time
from rlrt.preflight.forecast.rates import Rates, read_rates
from rlrt.preflight.host import host_memory
from rlrt.preflight.plan import Planned, plan
from rlrt.preflight.server import check_server
from rlrt.preflight.slurm import check_slurm
from rlrt.preflight.teacher import preflight_teacher
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import positive
from rlrt.sweep.disk import one_checkpoint
from rlrt.sweep.launchers import LocalLauncher, SlurmLauncher


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = argparse.ArgumentParser(
        prog="python -m rlrt.preflight",
        description="Report what of a run or a sweep will not fit or not work, and which key to change. Nothing is started.",
        epilog="Exit code: 0 if no problem is reported, 2 if something will not work.",
    )
    command.add_argument("overrides", nargs="*", help="as for rlrt.run, for example model=qwen3_8b method=rlrt")
    command.add_argument("-m", "--multirun", action="store_true", help="check every job of a sweep")
    command.add_argument("--config-dir", "-cd", action="append", default=[], help="a further folder of config groups")
    command.add_argument("--memory-gb", type=positive, help="memory of one device in 10^9 bytes, for other machines")
    command.add_argument("--step-seconds", type=positive, help="duration of a step, without evaluation")
    command.add_argument(
        "--rates", type=Path, metavar="FILE", help="what a card reaches: benchmarks.gpu --rates FILE writes it"
    )
    command.add_argument(
        "--teacher",
        action="store_true",
        help="instead: read the model and sample, to see whether the teacher's context helps, with several templates",
    )
    command.add_argument(TRUST, action="store_true", help="+from=RUN may name code from outside rlrt: it is imported")
    return command


def data_of(planned: Planned) -> list[Finding]:
    """Check packages, data and models of all jobs, each once; ``planned.parts`` keeps the data, for the lengths of its
    prompts."""
    results: list[Finding] = []
    checked_parts: dict[str, Parts] = {}
    checked_models: set[str] = set()
    for job, settings in planned.jobs:
        plain = settings.plain
        results += checks.check_packages(settings)
        if (path := settings.model.path) not in checked_models:
            checked_models.add(path)
            results.append(checks.check_model(settings, isinstance(planned.launcher, SlurmLauncher)))
        per_step = plain["train"]["prompts_per_step"]
        identifying = (plain["data"], plain["eval"]["suites"], path, per_step, plain["teacher"])
        name = json.dumps([*identifying, settings.method.needs_teacher], default=str)
        if name not in checked_parts:
            checked_parts[name] = parts_of(settings)
            results += checks.check_problems(settings, checked_parts[name])
        planned.parts[job.identity] = checked_parts[name]
    return list(dict.fromkeys(results))


def checks_besides_memory(planned: Planned, step_s: float | None, memory_gb: float | None) -> list[Finding]:
    """Run every check except that of memory.

    Args:
        step_s: seconds of a step; None: not said.
        memory_gb: of one device of another machine that is meant, whose GPUs are not counted here; None: not said.
    """
    job, settings = planned.jobs[0]
    launcher = planned.launcher
    kind = kind_of(settings, launcher, memory_gb)
    results = data_of(planned)
    if isinstance(launcher, LocalLauncher) and (launcher.nodes > 1 or memory_gb is None):
        try:
            launcher.check()
        except UserError as error:
            results.append(Finding("problem", "launcher", str(error)))
    key = "hydra.sweep.dir" if planned.several else "hydra.run.dir"
    results += checks.check_folder_and_disk(planned.folder, [j for j, _ in planned.jobs], planned.count, key)
    results += checks.check_ports(settings, processes_of(launcher), isinstance(launcher, SlurmLauncher))
    results += check_server(settings, launcher, kind)
    results.append(checks.check_tracking(settings.tracking.uri))
    if isinstance(launcher, SlurmLauncher):
        before = earlier(settings, processes_of(launcher), kind)
        known = step_s if step_s is not None or before is None else before.slowest_s
        beside = settings.engine.cards_beside(kind == "cuda")
        results += check_slurm(launcher, planned.count, known, one_checkpoint(job) or 0, beside)
    return results


def preflight(planned: Planned, memory_gb: float | None, step_s: float | None, rates: Rates | None = None) -> int:
    """Run all checks, print their findings, and return the exit code."""
    results = checks_besides_memory(planned, step_s, memory_gb)
    groups, unknown = groups_of(planned, memory_gb)
    if groups:
        print(f"{memory_report(groups, planned.several)}\n")
    memory = [*findings(groups), *host_memory(groups, planned.launcher, planned.several)]
    results = [*memory, *unknown, *check_time(planned, groups, memory_gb, step_s, rates), *results]
    for finding in results:
        print(finding)
    problems = sum(f.state == "problem" for f in results)
    print(
        f"\n{planned.count} job{'s' * (planned.count > 1)}, {problems} problem{'s' * (problems != 1)}; nothing was started"
    )
    return 2 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    mask_streams()
    options = parser().parse_intermixed_args(arguments)
    codes: list[int] = []

    def act() -> None:
        planned = plan([*options.overrides, *([TRUST] if options.trust else [])], options.multirun, options.config_dir)
        if options.teacher:
            codes.append(preflight_teacher(planned))
            return
        rates = read_rates(options.rates) if options.rates else None
        codes.append(preflight(planned, options.memory_gb, options.step_seconds, rates))

    return guarded(act, options.overrides) or max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
