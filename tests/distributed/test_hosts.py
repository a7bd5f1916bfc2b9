"""Two machines: names that lead nowhere, power that goes. Namespaces of this machine, so root's alone."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from rlrt.distributed import watch
from rlrt.distributed.rank import EXIT
from rlrt.distributed.world import connect
from rlrt.execution.ranks import LastWords
from rlrt.records.lease import hold_lease
from rlrt.sweep import worker
from tests.distributed.hosts import ADDRESSES, Hosts
from tests.distributed.ranks import ends

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not Path("/usr/bin/nsenter").exists(),
    reason="needs root and nsenter",
)
DEBIAN = (f"127.0.1.1 node0\n{ADDRESSES[1]} node1", f"127.0.1.1 node1\n{ADDRESSES[0]} node0")
"""What Debian writes: a machine's own name leads to itself alone."""


@pytest.mark.parametrize("interface", [None, "eth0"])
def test_machines_meet_whose_own_names_lead_to_themselves_alone(tmp_path, interface):
    def work(rank):
        world = connect(20.0, False, 20.0, interface)
        assert world.gather([rank]) == [0, 1]
        world.leave()
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"
        assert os.environ.get("NCCL_SOCKET_IFNAME") == interface

    assert ends(Hosts(DEBIAN, tmp_path, work).pids) == [0, 0]


def test_machines_meet_whose_names_nobody_can_resolve(tmp_path):
    """SLURM knows nodes by NodeAddr; the address of the first one is in its environment."""

    def work(rank):
        os.environ["SLURM_PROCID"] = str(rank)
        worker.meet()
        assert os.environ["MASTER_ADDR"] == ADDRESSES[0]
        world = connect(20.0, False, 20.0)
        assert world.gather([socket.gethostname()]) == ["node0", "node1"]
        world.leave()

    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_NUM_NODES": "2",
             "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_LAUNCH_NODE_IPADDR": ADDRESSES[0]}  # fmt: skip
    assert ends(Hosts(("", ""), tmp_path, work, **slurm).pids) == [0, 0]


def test_power_loss_of_the_first_machine_is_noticed_and_its_rank_named(tmp_path, monkeypatch):
    """No connection is closed, and the store hangs: the other rank ends, and writes what rank 0 cannot write any more."""
    monkeypatch.setattr(watch, "SILENCE_S", 3.0)
    monkeypatch.setattr(watch, "GRACE_S", 1.0)
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps({"state": "running", "step": 7}))

    def work(rank):
        words = LastWords(run)
        with hold_lease(run / "lease") if rank == 0 else open(os.devnull):
            world = connect(60.0, False, 20.0, last_words=words)
            words.begin()
            world.gather([rank])
            (tmp_path / f"here{rank}").touch()
            if rank == 0:
                time.sleep(60)
            world.gather([rank])

    names = "\n".join(f"{address} node{rank}" for rank, address in enumerate(ADDRESSES))
    hosts = Hosts((names, names), tmp_path, work)
    try:
        end = time.monotonic() + 30
        while len(list(tmp_path.glob("here*"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1.5)  # each has read the other's note
        hosts.power_off(0)
        began = time.monotonic()
        while (ended := os.waitpid(hosts.pids[1], os.WNOHANG)) == (0, 0):
            assert time.monotonic() - began < 20, "rank 1 hangs"
            time.sleep(0.1)
        assert os.waitstatus_to_exitcode(ended[1]) == EXIT
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["state"], summary["failure"], summary["step"]) == ("failed", "rank", 7)
        assert summary["error"] == (
            f"rank 0 (pid {hosts.pids[0]} on node0), which holds the rendezvous, gave no sign of life for 3 s"
        )
    finally:
        hosts.end()
