"""Whether a cluster's settings agree with a launcher's: arrays, partition, time limits, and the signal to save."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from rlrt.errors import UserError
from rlrt.preflight.finding import Finding
from rlrt.sweep.launchers import SlurmLauncher

SHORT_MIN = 10
"""Minutes of a limit up to which submitit takes every signal to save for a time-out."""
USUAL_S = 60
"""Seconds between signal and limit below which a step and its checkpoint seldom fit."""
WRITING = 200 * 10**6
"""Bytes a second that a checkpoint is written with, on a slow shared disk."""
MARGIN = 1.5
"""Of time that a step and its checkpoint may take beyond what they did."""
ENDLESS = ("UNLIMITED", "INFINITE")


def config_values(text: str) -> dict[str, str]:
    """``scontrol show config``: a key and its value on each line."""
    pairs = re.findall(r"^(\S+)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
    return dict(pairs)


def partitions(text: str) -> dict[str, dict[str, str]]:
    """``scontrol show partition``: the values of each partition by its name."""
    found = {}
    for block in re.split(r"\n\s*\n", text):
        values = dict(re.findall(r"(\w+)=(\S*)", block))
        if "PartitionName" in values:
            found[values["PartitionName"]] = values
    return found


def minutes(text: str) -> float | None:
    """A time limit of SLURM's in minutes ([days-]hours:minutes:seconds, minutes:seconds or minutes); None: no limit."""
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
    """The number at the beginning of ``30 sec``; None where there is none."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else None


def needed_s(step_s: float, checkpoint: int) -> float:
    """Seconds that the step in progress and a checkpoint of so many bytes may take."""
    return MARGIN * (step_s + checkpoint / WRITING)


def check_signal(launcher: SlurmLauncher, step_s: float | None, checkpoint: int) -> list[Finding]:
    """Whether a job has time to save between the signal and the limit."""
    delay, found = launcher.signal_delay_s, []
    if step_s is not None:
        need = needed_s(step_s, checkpoint)
        words = (
            f"a step of {step_s:.0f} s and its checkpoint may take {need:.0f} s, of {delay} s between signal and limit"
        )
        if need > delay:
            words = f"{words}; set hydra.launcher.signal_delay_s={int(need) + 1}"
        found.append(Finding("problem" if need > delay else "ok", "signal", words))
    elif delay < USUAL_S:
        words = f"{delay} s for the step in progress and its checkpoint are few; set hydra.launcher.signal_delay_s=120"
        found.append(Finding("warning", "signal", f"{words}, or say --step-seconds N"))
    else:
        words = f"comes {delay} s before the limit; no earlier run here says how long a step takes (--step-seconds N)"
        found.append(Finding("ok", "signal", words))
    if launcher.timeout_min <= SHORT_MIN:
        words = f"with {launcher.timeout_min} min every signal to save counts as a time-out, a preemption too"
        found.append(Finding("warning", "limit", f"{words}; set hydra.launcher.timeout_min={SHORT_MIN + 1} or more"))
    if launcher.signal_delay_s >= launcher.timeout_min * 60:
        words = f"the signal would come {delay} s before a limit of {launcher.timeout_min} min"
        found.append(Finding("problem", "limit", f"{words}; set a larger hydra.launcher.timeout_min"))
    return found


def check_gpus(launcher: SlurmLauncher) -> list[Finding]:
    """Whether there is a GPU for every process of a node."""
    gpus, tasks = launcher.gpus_per_node, int(getattr(launcher, "tasks_per_node", None) or 1)
    if gpus and tasks > gpus:
        words = f"{tasks} processes of a node would share {gpus} GPUs; set hydra.launcher.gpus_per_node={tasks}"
        return [Finding("problem", "gpus", words)]
    if gpus and gpus > tasks:
        words = f"{gpus} GPUs for {tasks} process, which uses one; set hydra.launcher.gpus_per_node={tasks}"
        return [Finding("warning", "gpus", words)]
    return []


def check_partition(launcher: SlurmLauncher, known: Mapping[str, Mapping[str, str]], need: float) -> list[Finding]:
    """Whether the partition is there, up, and gives the time that is asked for.

    Args:
        known: from ``partitions``.
        need: seconds to save in.
    """
    name = launcher.partition
    if name is None:
        name = next((n for n, values in known.items() if values.get("Default") == "YES"), None)
        if name is None:
            return [Finding("problem", "partition", "this cluster has no default; set hydra.launcher.partition=NAME")]
    if name not in known:
        words = f"there is no {name}; set hydra.launcher.partition to one of {', '.join(sorted(known))}"
        return [Finding("problem", "partition", words)]
    values, found = known[name], []
    if values.get("State", "UP") != "UP":
        words = f"{name} is {values['State']}; set hydra.launcher.partition to one that is up"
        found.append(Finding("problem", "partition", words))
    most = minutes(values.get("MaxTime", "UNLIMITED"))
    if most is not None and most < launcher.timeout_min:
        words = f"{name} gives {most:.0f} min of {launcher.timeout_min}; set hydra.launcher.timeout_min={int(most)}"
        found.append(Finding("problem", "partition", words))
    grace = seconds(values.get("GraceTime", "0")) or 0
    mode = values.get("PreemptMode", "OFF")
    if "CANCEL" in mode:
        words = (
            f"{name} cancels what it preempts (PreemptMode={mode}); the same command goes on from the last checkpoint"
        )
        found.append(Finding("warning", "preemption", words))
    if mode not in ("OFF", "") and grace < need:
        words = f"{name} gives {grace} s after its signal (GraceTime), saving may take {need:.0f} s"
        found.append(Finding("warning", "preemption", f"{words}; at most train.save_every steps are lost"))
    return found or [Finding("ok", "partition", f"{name} is up, with time enough")]


def check_config(launcher: SlurmLauncher, config: Mapping[str, str], jobs: int) -> list[Finding]:
    """What the whole cluster says: requeueing, arrays, and how long a job lives after its limit."""
    found = []
    if launcher.additional_parameters.get("requeue", True) is not True:
        words = "a job that saved before its limit is not started again; leave out hydra.launcher.additional_parameters.requeue"
        found.append(Finding("problem", "requeue", words))
    elif config.get("JobRequeue") == "0":
        found.append(Finding("ok", "requeue", "JobRequeue=0 is the default here, and these jobs ask for it themselves"))
    most = seconds(config.get("MaxArraySize", ""))
    if most is not None and jobs > most:
        words = f"{jobs} jobs are submitted as several arrays of at most {most} (MaxArraySize)"
        found.append(Finding("ok", "array", words))
    if (wait := seconds(config.get("KillWait", ""))) is not None:
        found.append(
            Finding("ok", "KillWait", f"{wait} s between the limit and the kill; saving begins before the limit")
        )
    return found


def asked(*words: str) -> str | None:
    """What a command of SLURM's prints; None where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def check_slurm(launcher: SlurmLauncher, jobs: int, step_s: float | None, checkpoint: int) -> list[Finding]:
    """All of it; what needs the cluster is asked of ``scontrol``.

    Args:
        jobs: how many will be submitted.
        step_s: seconds of a step; None: not known.
        checkpoint: bytes of one.
    """
    found = [*check_signal(launcher, step_s, checkpoint), *check_gpus(launcher)]
    if shutil.which("sbatch") is None:
        try:
            launcher.check()
        except UserError as error:
            found.append(Finding("problem", "slurm", str(error)))
        return [*found, Finding("skipped", "cluster", "there is no SLURM here to ask for its settings")]
    config, known = asked("scontrol", "show", "config"), asked("scontrol", "show", "partition")
    if config is None or known is None:
        return [*found, Finding("problem", "slurm", "scontrol does not answer; is the controller up?")]
    need = needed_s(step_s or 0.0, checkpoint)
    found += check_config(launcher, config_values(config), jobs)
    return [*found, *check_partition(launcher, partitions(known), need)]
