"""Checks that a cluster's settings agree with a launcher's: arrays, partition, time limits, and the signal to save."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from rlrt.errors import UserError
from rlrt.preflight.finding import Finding
from rlrt.sweep.launchers import SlurmLauncher

SHORT_MIN = 10
"""Longest time limit, in minutes, for which submitit treats every signal to save as a time-out."""
USUAL_S = 60
"""Seconds between signal and limit below which a step and its checkpoint seldom fit."""
WRITING = 200 * 10**6
"""Bytes per second at which a checkpoint is written to a slow shared disk."""
MARGIN = 1.5
"""Safety factor on the time of a step and its checkpoint."""
ENDLESS = ("UNLIMITED", "INFINITE")
"""SLURM's values for no time limit."""


def config_values(text: str) -> dict[str, str]:
    """Parse ``scontrol show config``: a key and its value on each line."""
    pairs = re.findall(r"^(\S+)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
    return dict(pairs)


def partitions(text: str) -> dict[str, dict[str, str]]:
    """Parse ``scontrol show partition``: the values of each partition by its name."""
    by_name = {}
    for block in re.split(r"\n\s*\n", text):
        values = dict(re.findall(r"(\w+)=(\S*)", block))
        if "PartitionName" in values:
            by_name[values["PartitionName"]] = values
    return by_name


def minutes(text: str) -> float | None:
    """Return a time limit of SLURM's in minutes ([days-]hours:minutes:seconds, minutes:seconds or minutes); None for no
    limit."""
    if text.upper() in ENDLESS:
        return None
    days, _, rest = text.rpartition("-")
    parts = [float(p) for p in rest.split(":")]
    if len(parts) == 1:
        parts = [0.0, parts[0], 0.0] if not days else [parts[0], 0.0, 0.0]
    elif len(parts) == 2:
        parts = [0.0, *parts] if not days else [*parts, 0.0]
    return float(days or 0) * 24 * 60 + parts[0] * 60 + parts[1] + parts[2] / 60


def seconds(text: str) -> int | None:
    """Return the number at the beginning of ``30 sec``; None if there is none."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else None


def needed_s(step_s: float, checkpoint: int) -> float:
    """Return the seconds that the current step and a checkpoint of ``checkpoint`` bytes may take."""
    return MARGIN * (step_s + checkpoint / WRITING)


def check_signal(launcher: SlurmLauncher, step_s: float | None, checkpoint: int) -> list[Finding]:
    """Check that a job has time to save between the signal and the limit."""
    delay, results = launcher.signal_delay_s, []
    if step_s is not None:
        need, least = needed_s(step_s, checkpoint), needed_s(0.0, checkpoint)
        sentence = (
            f"a step of {step_s:.0f} s and its checkpoint may take {need:.0f} s, of {delay} s between signal and limit"
        )
        if least > delay:  # not even the checkpoint of the step before
            sentence = f"a checkpoint may take {least:.0f} s, of {delay} s between signal and limit"
            results.append(
                Finding("problem", "signal", f"{sentence}; set hydra.launcher.signal_delay_s={int(need) + 1}")
            )
        elif need > delay:
            sentence = f"{sentence}: the step in progress is dropped and done again"
            results.append(
                Finding("warning", "signal", f"{sentence}; set hydra.launcher.signal_delay_s={int(need) + 1}")
            )
        else:
            results.append(Finding("ok", "signal", sentence))
    elif delay < USUAL_S:
        sentence = (
            f"{delay} s for the step in progress and its checkpoint are few; set hydra.launcher.signal_delay_s=120"
        )
        results.append(Finding("warning", "signal", f"{sentence}, or say --step-seconds N"))
    else:
        sentence = (
            f"comes {delay} s before the limit; no earlier run here says how long a step takes (--step-seconds N)"
        )
        results.append(Finding("ok", "signal", sentence))
    if launcher.timeout_min <= SHORT_MIN:
        sentence = f"with {launcher.timeout_min} min every signal to save counts as a time-out, a preemption too"
        results.append(
            Finding("warning", "limit", f"{sentence}; set hydra.launcher.timeout_min={SHORT_MIN + 1} or more")
        )
    if launcher.signal_delay_s >= launcher.timeout_min * 60:
        sentence = f"the signal would come {delay} s before a limit of {launcher.timeout_min} min"
        results.append(Finding("problem", "limit", f"{sentence}; set a larger hydra.launcher.timeout_min"))
    return results


def check_gpus(launcher: SlurmLauncher, beside: int = 0) -> list[Finding]:
    """Check that a node has a GPU for every process.

    Args:
        beside: GPUs of a node that the engine takes for a server of its own.
    """
    gpus, tasks = (launcher.gpus_per_node or 0) - beside, int(getattr(launcher, "tasks_per_node", None) or 1)
    left = f"{gpus} GPUs" + (f" beside {beside} of the run's server" if beside else "")
    remedy = f"set hydra.launcher.gpus_per_node={tasks + beside}"
    if gpus and tasks > gpus:
        return [Finding("problem", "gpus", f"{tasks} processes of a node would share {left}; {remedy}")]
    if gpus and gpus > tasks:
        who = "1 process, which uses one" if tasks == 1 else f"{tasks} processes, which use one each"
        return [Finding("warning", "gpus", f"{left} for {who}; {remedy}")]
    return []


def gpus_of(text: str) -> int:
    """Return the most GPUs of one node, from ``sinfo``'s generic resources: a line for each kind of node."""
    counts = [sum(int(count) for count in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", line)) for line in text.splitlines()]
    return max(counts, default=0)


def check_nodes(launcher: SlurmLauncher, text: str | None) -> list[Finding]:
    """Check that some node of the partition has as many GPUs as a job asks for on each node.

    Args:
        text: generic resources as ``sinfo`` prints them; None if it does not answer.
    """
    asked = launcher.gpus_per_node or 0
    if not asked or text is None or asked <= (most := gpus_of(text)):
        return []
    sentence = f"a job asks for {asked} GPUs on each node, and the partition's nodes have at most {most}"
    remedy = (
        f"set hydra.launcher.gpus_per_node={most}" if most else "set hydra.launcher.partition=NAME to one with GPUs"
    )
    fewer = f" and hydra.launcher.tasks_per_node={most}" if 0 < most < launcher.tasks_per_node else ""
    return [Finding("problem", "gpus", f"{sentence}; {remedy}{fewer}")]


def check_partition(launcher: SlurmLauncher, known: Mapping[str, Mapping[str, str]], need: float) -> list[Finding]:
    """Check that the partition exists, is up, and allows the requested time.

    Args:
        known: values of each partition by its name, from ``partitions``.
        need: seconds that saving may take.
    """
    name = launcher.partition
    if name is None:
        name = next((n for n, values in known.items() if values.get("Default") == "YES"), None)
        if name is None:
            return [Finding("problem", "partition", "this cluster has no default; set hydra.launcher.partition=NAME")]
    if name not in known:
        sentence = f"there is no {name}; set hydra.launcher.partition to one of {', '.join(sorted(known))}"
        return [Finding("problem", "partition", sentence)]
    values, results = known[name], []
    if values.get("State", "UP") != "UP":
        sentence = f"{name} is {values['State']}; set hydra.launcher.partition to one that is up"
        results.append(Finding("problem", "partition", sentence))
    most = minutes(values.get("MaxTime", "UNLIMITED"))
    if most is not None and most < launcher.timeout_min:
        sentence = f"{name} gives {most:.0f} min of {launcher.timeout_min}; set hydra.launcher.timeout_min={int(most)}"
        results.append(Finding("problem", "partition", sentence))
    grace = seconds(values.get("GraceTime", "0")) or 0
    mode = values.get("PreemptMode", "OFF")
    if "CANCEL" in mode:
        sentence = (
            f"{name} cancels what it preempts (PreemptMode={mode}); the same command goes on from the last checkpoint"
        )
        results.append(Finding("warning", "preemption", sentence))
    if mode not in ("OFF", "") and grace < need:
        sentence = f"{name} gives {grace} s after its signal (GraceTime), saving may take {need:.0f} s"
        results.append(Finding("warning", "preemption", f"{sentence}; at most train.save_every steps are lost"))
    return results or [Finding("ok", "partition", f"{name} is up and allows enough time")]


def check_config(launcher: SlurmLauncher, config: Mapping[str, str], jobs: int) -> list[Finding]:
    """Check the cluster-wide settings: requeueing, arrays, and the time between limit and kill."""
    results = []
    if launcher.additional_parameters.get("requeue", True) is not True:
        sentence = (
            "a job that saved before its limit does not restart; leave out hydra.launcher.additional_parameters.requeue"
        )
        results.append(Finding("problem", "requeue", sentence))
    elif config.get("JobRequeue") == "0":
        results.append(Finding("ok", "requeue", "JobRequeue=0 is the default, and these jobs ask for it themselves"))
    most = seconds(config.get("MaxArraySize", ""))
    if most is not None and jobs > most:
        sentence = f"{jobs} jobs are submitted as several arrays of at most {most} (MaxArraySize)"
        results.append(Finding("ok", "array", sentence))
    if (wait := seconds(config.get("KillWait", ""))) is not None:
        results.append(
            Finding("ok", "KillWait", f"{wait} s between the limit and the kill; saving begins before the limit")
        )
    return results


def output_of(*command: str) -> str | None:
    """Return the output of a SLURM command; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def check_slurm(
    launcher: SlurmLauncher, jobs: int, step_s: float | None, checkpoint: int, beside: int = 0
) -> list[Finding]:
    """Run all checks of SLURM; ``scontrol`` gives the cluster's settings.

    Args:
        jobs: number of jobs to be submitted.
        step_s: seconds of a step; None if unknown.
        checkpoint: bytes of one checkpoint.
        beside: GPUs of a node that the engine takes for a server of its own.
    """
    results = [*check_signal(launcher, step_s, checkpoint), *check_gpus(launcher, beside)]
    if shutil.which("sbatch") is None:
        try:
            launcher.check()
        except UserError as error:
            results.append(Finding("problem", "slurm", str(error)))
        return [*results, Finding("skipped", "cluster", "this machine has no SLURM to give the cluster's settings")]
    config, known = output_of("scontrol", "show", "config"), output_of("scontrol", "show", "partition")
    if config is None or known is None:
        return [*results, Finding("problem", "slurm", "scontrol does not answer; is the controller up?")]
    need = needed_s(step_s or 0.0, checkpoint)
    results += check_config(launcher, config_values(config), jobs)
    chosen = ["-p", launcher.partition] if launcher.partition else []
    results += check_nodes(launcher, output_of("sinfo", "-h", "-o", "%G", *chosen))
    return [*results, *check_partition(launcher, partitions(known), need)]
