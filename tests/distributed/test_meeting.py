"""How ranks meet, and that none waits long for one that does not come: real processes on this machine."""

from __future__ import annotations

import json
import logging
import os
import socket
import time

import pytest
import torch.distributed as dist

from rlrt.config.compose import composer
from rlrt.distributed import addresses, meeting, watch
from rlrt.distributed.addresses import interfaces
from rlrt.distributed.interface import interface_problem
from rlrt.distributed.rank import EXIT, HOSTS
from rlrt.distributed.world import connect
from rlrt.execution.ranks import LastWords
from rlrt.records.lease import hold_lease
from rlrt.sweep import worker
from rlrt.sweep.jobs import job_of
from tests.commands.test_run import SMALL
from tests.distributed.ranks import ends, start


def said(tmp_path, size, work, only=None):
    """What each of some ranks raised, or the exit code of one that raised nothing; and how long they took, seconds."""

    def note_error():
        rank = os.environ["RANK"]
        try:
            if only is None or int(rank) in only:
                work(int(rank))
        except Exception as error:
            (tmp_path / rank).write_text(f"{type(error).__name__}: {error}")

    began = time.monotonic()
    codes = ends(start(size, note_error))
    took = time.monotonic() - began
    texts = [tmp_path / str(rank) for rank in range(size)]
    return [file.read_text() if file.exists() else code for file, code in zip(texts, codes, strict=True)], took


def test_a_rank_that_never_comes_is_named_by_all_and_in_the_log_before(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "TELL_S", 0.3)
    monkeypatch.setenv(HOSTS, "node1,node2,node3")
    monkeypatch.setenv("SUBMITIT_FOLDER", "/sweeps/mine/submitit")

    def work(rank):
        logging.getLogger("rlrt").addHandler(logging.FileHandler(tmp_path / f"log{rank}"))
        connect(60.0, False, meeting_s=3.0)

    found, took = said(tmp_path, 3, work, only=(0, 1))
    assert found[0] == found[1]
    assert found[0].startswith("NotMet: rank 0 of 3 could not meet the others at 127.0.0.1:")
    assert "within 3 s (distributed.meeting_s): not yet there: rank 2 (on node3); there: rank 0 (" in found[0]
    assert "see /sweeps/mine/submitit" in found[0]
    assert took < 8
    assert (tmp_path / "log0").read_text().count("not yet there: rank 2 (on node3)") == 1


def test_a_signal_ends_the_waiting_soon(tmp_path):
    """srun ends the tasks that wait for one that failed, and kills them after KillWait."""

    def work(rank):
        began = time.monotonic()
        connect(60.0, False, meeting_s=60.0, stop=lambda: time.monotonic() - began > 0.5)

    found, took = said(tmp_path, 2, work, only=(0,))
    assert "a signal to end came after 1 s, and not yet there: rank 1; there: rank 0" in found[0]
    assert took < 6


def test_ranks_that_got_the_signal_too_are_waited_for(tmp_path):
    def work(rank):
        time.sleep(rank)
        world = connect(60.0, False, meeting_s=60.0, stop=lambda: True)
        assert world.gather([rank]) == [0, 1]
        world.leave()

    found, _ = said(tmp_path, 2, work)
    assert found == [0, 0]


def test_a_name_that_cannot_be_resolved_is_named(tmp_path, monkeypatch):
    def work(rank):
        os.environ["MASTER_ADDR"] = "node1.invalid"
        connect(60.0, False, meeting_s=1.0)

    found, took = said(tmp_path, 2, work, only=(1,))
    assert "within 1 s (distributed.meeting_s): node1.invalid:" in found[1]
    assert f"cannot be reached from {socket.gethostname()}: [Errno -" in found[1]
    assert took < 5


def test_an_interface_that_one_machine_lacks_is_one_sentence_on_all(tmp_path):
    def work(rank):
        connect(60.0, False, meeting_s=10.0, interface="lo" if rank == 0 else "eth99")

    found, _ = said(tmp_path, 2, work)
    assert found[0] == found[1]
    assert found[0].startswith(
        f"UserError: rank 1 on {socket.gethostname()}: distributed.interface: expected a network"
    )
    assert "got 'eth99'; it has" in found[0]


def test_an_interface_is_for_both_libraries(tmp_path):
    def work(rank):
        world = connect(60.0, False, meeting_s=10.0, interface="lo")
        assert world.gather([rank]) == [0, 1]
        world.leave()
        assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "lo")

    found, _ = said(tmp_path, 2, work)
    assert found == [0, 0]


def test_the_interfaces_of_this_machine():
    assert "127.0.0.1" in interfaces()["lo"]
    assert interface_problem(None) == interface_problem("lo") == ""
    assert ", lo" in interface_problem("eth99") or "has lo" in interface_problem("eth99")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_cannot_connect_ends_the_others_that_hang(tmp_path, monkeypatch, victim):
    """gloo tells one rank at once that a connection is refused, and lets the other wait five times its limit."""
    monkeypatch.setattr(watch, "BEAT_S", 0.2)

    def work(rank):
        def hangs_or_fails(*_, **__):
            if rank == victim:
                raise RuntimeError("[gloo] connect: Connection refused, remote=[127.0.0.1]:13216$0")
            time.sleep(60)

        monkeypatch.setattr(dist, "init_process_group", hangs_or_fails)
        connect(60.0, False, meeting_s=60.0, last_words=(tmp_path / "words").write_text)

    found, took = said(tmp_path, 2, work)
    assert "could not connect to them all" in found[victim]
    assert "Connection refused" in found[victim]
    assert "set distributed.interface" in found[victim]
    assert found[1 - victim] == EXIT
    words = (tmp_path / "words").read_text()
    assert words.startswith(f"rank {victim} (pid ")
    assert " failed: NotMet: " in words
    assert took < 10


@pytest.fixture
def planned(tmp_cwd):
    with composer() as compose:
        job = job_of(tmp_cwd / "s", ("method=grpo", *SMALL, "tracking=none", "distributed.meeting_s=2"), compose)
    job.write()
    return job.folder


def test_a_failed_meeting_ends_each_task_of_slurm_with_an_exit_code(planned, monkeypatch):
    """srun --kill-on-bad-exit ends the others then, and the driver reads why."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(HOSTS, "node1,node2,node3")

    def work():
        if os.environ["RANK"] != "2":
            worker.run(str(planned))

    assert ends(start(3, work)) == [1, 1, 0]  # SystemExit, as start() sees it
    summary = json.loads((planned / "summary.json").read_text())
    assert (summary["state"], summary["failure"]) == ("failed", "rank")
    assert "not yet there: rank 2 (on node3)" in summary["error"]
    assert "not yet there: rank 2 (on node3)" in (planned / "log.txt").read_text()
    assert "not yet there: rank 2 (on node3)" in (planned / "log.rank1.txt").read_text()


def test_the_exit_code_is_that_of_a_process_that_ends_for_another(planned, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "7"), ("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)  # refused before any rank is waited for
    with pytest.raises(SystemExit) as ended:
        worker.run(str(planned))
    assert ended.value.code == EXIT
    monkeypatch.delenv("SLURM_JOB_ID")
    assert worker.run(str(planned)) == "failed"  # nobody but srun ends tasks by it


@pytest.mark.parametrize(
    ("found", "address"),
    [(["10.1.2.3"], "node1"), (["127.0.1.1"], "10.9.9.9"), ([], "10.9.9.9")],
)
def test_the_first_node_is_reached_by_its_name_where_that_leads_there(monkeypatch, found, address):
    """Debian's line in /etc/hosts, and a NodeName that only SLURM knows."""
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2",
             "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_PROCID": "0"}  # fmt: skip
    monkeypatch.setattr(os, "environ", dict(os.environ) | slurm)
    monkeypatch.setattr(addresses, "resolved_addresses", lambda name: found)
    worker.meet()
    assert os.environ["MASTER_ADDR"] == "node1"  # nothing else is known
    os.environ["SLURM_LAUNCH_NODE_IPADDR"] = "10.9.9.9"
    worker.meet()
    assert (os.environ["MASTER_ADDR"], os.environ[HOSTS]) == (address, "node1,node2")


def state_after(folder, words, rank="1", **before):
    (folder / "summary.json").write_text(json.dumps(before))
    os.environ["RANK"] = rank
    words("rank 9 is gone")
    return json.loads((folder / "summary.json").read_text())


def test_last_words_are_written_where_rank_0_did_not_and_the_run_is_still_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    words = LastWords(tmp_path / "none")
    words("rank 9 is gone")
    assert not (tmp_path / "none").exists()  # a run that never began
    words = LastWords(tmp_path)
    lost = {"state": "failed", "failure": "rank", "error": "rank 9 is gone"}
    assert state_after(tmp_path, words, state="running", step=3).items() >= lost.items() | {"step": 3}.items()
    for state in ("finished", "interrupted", "pruned"):
        assert state_after(tmp_path, words, state=state) == {"state": state}
        assert state_after(tmp_path, words, "0", state=state) == {"state": state}
    own = {"state": "failed", "error": "own"}
    assert state_after(tmp_path, words, **own) == own
    assert state_after(tmp_path, words, "0", **own).items() >= lost.items()  # with the kind, for the driver
    with hold_lease(tmp_path / "lease"):
        assert state_after(tmp_path, words, state="running") == {"state": "running"}  # another life's
        words.begin()
        assert state_after(tmp_path, words, state="running").items() >= lost.items()  # held for a machine without power
    with hold_lease(tmp_path / "lease"):  # the job began anew elsewhere
        assert state_after(tmp_path, words, state="running") == {"state": "running"}
