"""Runs over several hosts (``make slurm-nodes``): one run of two nodes, a rank that is killed, a node that goes off."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.distributed.test_several import alike, records
from tests.slurm_nodes import hosts
from tests.sweep.test_driver import SMALL, only, wait_for

pytestmark = pytest.mark.slurm_nodes

TWO = (
    "hydra/launcher=slurm", "hydra.launcher.nodes=2", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=3",
    "hydra.launcher.timeout_min=10",
)  # fmt: skip
LEARNS = ("method=rlrt", "train.lr=1e-3", *SMALL[:3], "train.eval_every=2")
LONG = ("-m", "method=rlrt", *SMALL, "train.steps=100", "train.save_every=5", *TWO)
APART = 1e-5
"""Largest difference of a metric between one process and two: sums in another order."""


@pytest.fixture(scope="session", autouse=True)
def cluster():
    if sentence := hosts.missing():
        pytest.fail(sentence)
    if not (hosts.PLACE / "nodes").exists() or hosts.script("on", "login", "sinfo", "-h").returncode:
        pytest.fail("no SLURM of several nodes is up; run make slurm-nodes first")


@pytest.fixture
def place(request):
    made = hosts.folder(request.node.name.split("[")[0])
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def together():
    """The jobs of two runs of two nodes each, by strategy: two sweeps, since a strategy makes no other experiment."""
    places = {name: hosts.folder(f"together_{name}") for name in ("ddp", "fsdp")}
    words = ("-m", *LEARNS, "train.steps=4", *TWO)
    drivers = [hosts.start(made, *words, f"distributed.strategy={name}") for name, made in places.items()]
    for driver in drivers:
        code, output = hosts.finish(driver)
        assert code == 0, output
    yield {name: job_of(made) for name, made in places.items()}
    for made in places.values():
        shutil.rmtree(made)


@pytest.fixture(scope="module")
def alone():
    """One process: six steps, whose first four are also those of the shorter runs."""
    made = hosts.folder("alone")
    code, output = hosts.run(made, *LEARNS, "train.steps=6", f"hydra.run.dir={made}/run")
    assert code == 0, output
    yield records(made / "run")
    shutil.rmtree(made)


def job_of(place):
    (job,) = only(place).glob("*/job.json")
    return job.parent


def nodes_of(job):
    """The nodes on which SLURM ran a job."""
    number = json.loads((job / "job.json").read_text())["slurm_id"]
    listed = hosts.script("on", "login", "squeue", "-h", "-r", "-t", "all", "-o", "%i %N").stdout
    (names,) = (line.split()[1] for line in listed.splitlines() if line.split()[0] == number)
    return hosts.script("on", "login", "scontrol", "show", "hostnames", names).stdout.split()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_of_two_nodes_is_that_of_one_process(together, alone, strategy):
    job = together[strategy]
    assert len(set(nodes_of(job))) == 2
    assert json.loads((job / "manifest.json").read_text())["processes"] == 2
    two = records(job)
    assert [r["step"] for r in two] == [0, 1, 2, 3, 4]
    for one, row in zip(alone, two, strict=False):
        assert alike(one, row, APART)


def test_one_process_goes_on_with_what_two_nodes_saved(together, alone, place):
    job, more = together["fsdp"], place / "more"
    code, output = hosts.run(place, f"+from={job}", "train.steps=6", f"hydra.run.dir={more}")
    assert code == 0, output
    assert json.loads((more / "manifest.json").read_text())["processes"] == 1
    assert [r["step"] for r in records(more)] == [0, 1, 2, 3, 4, 5, 6]
    for one, row in zip(alone[5:], records(more)[5:], strict=True):
        assert alike(one, row, APART)


def disturbed(place):
    """A driver whose job, of two nodes, has done some steps; the job's folder; its second rank."""
    driver = hosts.start(place, *LONG)
    wait_for(lambda: list(place.glob("outputs/sweeps/*/*/job.json")))
    job = job_of(place)
    wait_for(lambda: (job / "metrics.jsonl").exists() and len(records(job)) > 7)
    (second,) = (task for task in hosts.tasks(place) if task.rank == 1)
    return driver, job, second


def test_a_killed_rank_is_named_and_the_job_tried_again(place):
    driver, job, second = disturbed(place)
    second.kill()
    code, output = hosts.finish(driver)
    assert code == 0, output
    assert f"rank 1 (pid {second.there} on {second.node})" in (job / "log.txt").read_text()
    assert json.loads((job / "job.json").read_text())["retries"] == 1
    assert [r["step"] for r in records(job)] == list(range(101))


def test_a_node_that_is_switched_off_is_named_and_another_takes_its_place(place):
    driver, job, second = disturbed(place)
    node = second.node
    hosts.do("off", node)
    try:
        code, output = hosts.finish(driver)
    finally:
        hosts.do("boot", node)
        hosts.do("start")  # waits until SLURM has it back
    assert code == 0, output
    log = (job / "log.txt").read_text()
    assert re.search(rf"rank 1 \(pid {second.there} on {node}\) .*gave no sign of life", log)
    assert "Going on from" in log
    assert node not in nodes_of(job)
    assert [r["step"] for r in records(job)] == list(range(101))
