"""What a cluster says (recorded from a real one-node SLURM 22.05) against what a launcher asks for."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from rlrt.preflight import slurm
from rlrt.preflight.device import kind_of
from rlrt.preflight.finding import Finding
from rlrt.preflight.slurm import check_nodes, gpus_of
from rlrt.sweep.settings import launcher_of
from tests.helpers import settings

RECORDED = Path(__file__).parent / "recorded"
CONFIG = slurm.config_values((RECORDED / "config.txt").read_text())
KNOWN = slurm.partitions((RECORDED / "partition.txt").read_text())
DEFAULTS = {
    "kind": "slurm",
    "partition": None,
    "account": None,
    "qos": None,
    "nodes": 1,
    "tasks_per_node": 1,
    "gpus_per_node": None,
    "cpus_per_task": 4,
    "mem_gb": None,
    "timeout_min": 240,
    "signal_delay_s": 120,
    "array_parallelism": 64,
    "setup": [],
    "additional_parameters": {},
    "dry_run": False,
    "wait": True,
}


def launcher(**more):
    return launcher_of({**DEFAULTS, **more})


def states(found: list[Finding]):
    return [(f.state, f.topic) for f in found]


def test_recorded_outputs_are_read():
    wanted = {"JobRequeue": "1", "KillWait": "5 sec", "MaxArraySize": "1001", "PreemptMode": "REQUEUE"}
    assert {name: CONFIG[name] for name in wanted} == wanted
    assert sorted(KNOWN) == ["debug", "urgent"]
    assert (KNOWN["debug"]["Default"], KNOWN["debug"]["MaxTime"], KNOWN["urgent"]["State"]) == (
        "YES",
        "UNLIMITED",
        "UP",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UNLIMITED", None),
        ("INFINITE", None),
        ("30", 30),
        ("10:30", 10.5),
        ("02:00:00", 120),
        ("1-00:00:00", 1440),
        ("2-12", 3600),
        ("1-06:30", 1830),
    ],
)
def test_time_limits(text, expected):
    assert slurm.minutes(text) == expected


def test_the_partition():
    assert states(slurm.check_partition(launcher(), KNOWN, 0)) == [("ok", "partition")]
    (unknown,) = slurm.check_partition(launcher(partition="gpu"), KNOWN, 0)
    assert unknown.sentence == "there is no gpu; set hydra.launcher.partition to one of debug, urgent"
    short = {"debug": {**KNOWN["debug"], "MaxTime": "01:00:00", "State": "DOWN"}}
    found = slurm.check_partition(launcher(partition="debug"), short, 0)
    assert states(found) == [("problem", "partition")] * 2
    assert found[1].sentence.endswith("set hydra.launcher.timeout_min=60")
    assert states(slurm.check_partition(launcher(), {"urgent": KNOWN["urgent"]}, 0)) == [("problem", "partition")]


def test_preemption():
    (found,) = slurm.check_partition(launcher(), KNOWN, 30)  # GraceTime=0, PreemptMode=REQUEUE
    assert (found.state, "saving may take 30 s" in found.sentence) == ("warning", True)
    calm = {"debug": {**KNOWN["debug"], "PreemptMode": "OFF"}}
    assert states(slurm.check_partition(launcher(), calm, 30)) == [("ok", "partition")]
    hard = {"debug": {**KNOWN["debug"], "PreemptMode": "CANCEL", "GraceTime": "60"}}
    (found,) = slurm.check_partition(launcher(), hard, 30)
    assert "PreemptMode=CANCEL" in found.sentence


def test_time_between_signal_and_limit():
    assert states(slurm.check_signal(launcher(), None, 0)) == [("ok", "signal")]
    assert states(slurm.check_signal(launcher(signal_delay_s=30), None, 0)) == [("warning", "signal")]
    (found,) = slurm.check_signal(launcher(), 70, 4 * 10**9)  # 1.5 x (70 + 20) = 135
    assert (found.state, found.sentence.rpartition("set ")[2]) == ("warning", "hydra.launcher.signal_delay_s=136")
    (found,) = slurm.check_signal(launcher(signal_delay_s=29), 70, 4 * 10**9)  # the checkpoint alone: 1.5 x 20 = 30
    assert (found.state, found.sentence.rpartition("set ")[2]) == ("problem", "hydra.launcher.signal_delay_s=136")
    assert slurm.check_signal(launcher(signal_delay_s=30), 70, 4 * 10**9)[0].state == "warning"
    assert states(slurm.check_signal(launcher(signal_delay_s=136), 70, 4 * 10**9)) == [("ok", "signal")]
    assert states(slurm.check_signal(launcher(timeout_min=10), 1, 0)) == [("ok", "signal"), ("warning", "limit")]
    assert states(slurm.check_signal(launcher(timeout_min=2), 1, 0))[-1] == ("problem", "limit")


def test_gpus_of_a_job():
    assert slurm.check_gpus(launcher()) == []
    assert slurm.check_gpus(launcher(gpus_per_node=1)) == []
    assert states(slurm.check_gpus(launcher(gpus_per_node=4))) == [("warning", "gpus")]
    several = launcher(gpus_per_node=2, tasks_per_node=4)
    assert slurm.check_gpus(launcher(gpus_per_node=8, tasks_per_node=6), 2) == []
    for gpus, says in (
        (10, "8 GPUs beside 2 of the run's server for 6 processes"),
        (6, "6 processes of a node would share 4"),
    ):
        (found,) = slurm.check_gpus(launcher(gpus_per_node=gpus, tasks_per_node=6), 2)
        assert found.sentence.startswith(says)
        assert found.sentence.endswith("set hydra.launcher.gpus_per_node=8")
    (found,) = slurm.check_gpus(several)
    assert found.sentence.endswith("set hydra.launcher.gpus_per_node=4")


def test_the_clusters_own_settings():
    assert states(slurm.check_config(launcher(), CONFIG, 1000)) == [("ok", "KillWait")]
    found = slurm.check_config(launcher(), {**CONFIG, "JobRequeue": "0"}, 2500)
    assert states(found) == [("ok", "requeue"), ("ok", "array"), ("ok", "KillWait")]
    assert "several arrays of at most 1001" in found[1].sentence
    never = launcher(additional_parameters={"requeue": False})
    assert states(slurm.check_config(never, CONFIG, 1))[0] == ("problem", "requeue")


def test_where_there_is_no_cluster(monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    found = slurm.check_slurm(launcher(), 3, None, 0)
    assert states(found) == [("ok", "signal"), ("problem", "slurm"), ("skipped", "cluster")]
    assert "dry_run=true" in found[1].sentence
    assert states(slurm.check_slurm(launcher(dry_run=True), 3, None, 0)) == [("ok", "signal"), ("skipped", "cluster")]


def test_where_its_controller_is_silent(monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)

    def silent(*words, **more):
        return subprocess.CompletedProcess(words, 1, "", "slurm_load_ctl_conf error")

    monkeypatch.setattr(slurm.subprocess, "run", silent)
    assert states(slurm.check_slurm(launcher(), 3, None, 0))[-1] == ("problem", "slurm")


def test_all_of_it_on_recorded_outputs(monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    outputs = {name: (RECORDED / f"{name}.txt").read_text() for name in ("config", "partition")}
    monkeypatch.setattr(slurm, "output_of", lambda *words: outputs[words[-1]] if words[0] == "scontrol" else "(null)\n")
    found = slurm.check_slurm(launcher(partition="debug"), 3, 1.0, 0)
    assert states(found) == [("ok", "signal"), ("ok", "KillWait"), ("warning", "preemption")]


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("gpu:2\n(null)\n", 2),
        ("gpu:h100:8(S:0-1)\ngpu:a100:4(S:0),shard:8\n", 8),
        ("gpu:h100:4(S:0),gpu:a30:2(S:1)\n", 6),
        ("(null)\n", 0),
        ("", 0),
    ],
)
def test_gpus_that_a_node_has(text, most):
    assert gpus_of(text) == most
    assert check_nodes(launcher(gpus_per_node=most, tasks_per_node=1), text) == []
    (found,) = check_nodes(launcher(gpus_per_node=most + 1, tasks_per_node=most + 1), text)
    assert found.state == "problem"
    wanted = f"gpus_per_node={most}" if most else "partition=NAME to one with GPUs"
    assert wanted in found.sentence
    assert check_nodes(launcher(gpus_per_node=9), None) == []  # nobody knows


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"gres": "gpu:h100:1"}, "cuda"),
        ({"gpus": "2"}, "cuda"),
        ({"gpus_per_task": 1}, "cuda"),
        ({"gres": "nvme:1"}, "cpu"),
        ({}, "cpu"),
    ],
)
def test_a_gpu_may_be_asked_for_in_other_words(more, kind):
    asked = launcher(gpus_per_node=0, additional_parameters=more)
    assert kind_of(dataclasses.replace(settings(), device="auto"), asked, 80.0) == kind
