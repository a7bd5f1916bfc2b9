"""engine.start: a server that a run starts, that asks for a token, and that ends with it, however it ends."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlrt.distributed.cards import ASIDE, set_aside
from rlrt.engines import own_server, vllm_common
from rlrt.engines.door import TOKEN
from rlrt.engines.own_server import OwnServer, Wanted, address
from rlrt.engines.vllm_client import Server
from rlrt.engines.vllm_server import check_folder
from rlrt.errors import UserError
from rlrt.execution.execute import execute
from rlrt.machine import alive
from rlrt.model.load import load
from rlrt.records.identity import identity
from rlrt.sweep.jobs import with_gpus
from rlrt.sweep.launchers import LocalLauncher
from tests.conftest import ROOT
from tests.helpers import settings

PRETENDED = Path(__file__).with_name("pretended.py")
PATIENCE_S = 20.0
TOLD = Wanted("float32", (), 4, 60, "127.0.0.1")


@pytest.fixture(scope="module")
def model():
    return load("embedded", None, "sdpa")[0]


@pytest.fixture(autouse=True)
def python_with_vllm(tmp_path, monkeypatch):
    file = tmp_path / "python"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} {PRETENDED} "$@"\n')
    file.chmod(0o755)
    monkeypatch.setenv(own_server.PYTHON, str(file))
    return file


class Config:
    """All that a server wants of a model."""

    def save_pretrained(self, folder):
        (Path(folder) / "config.json").write_text("{}")


def started(log, wanted=TOLD):
    """A server that answers, and the pids of its processes."""
    made = OwnServer(wanted, Config(), log)
    made.wait(lambda: "cards" in log.read_text())
    client = Server(made.url, 10, made.token)
    assert eventually(lambda: listens(client))
    return made, client, pids_in(log)


def pids_in(log):
    return [int(pid) for pid in re.search(r"pids ([\d ]+) cards", log.read_text())[1].split()]


def listens(client):
    try:
        return client.version() == "0.32.0"
    except UserError:
        return False


def eventually(true):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def gone(pids):
    return eventually(lambda: not any(map(alive, pids)))


# the engine


def test_a_run_starts_a_server_and_ends_it(tmp_path, model):
    """The whole run, with what it logs of weights that moved."""
    words = (
        "engine=vllm_server",
        "engine.start=true",
        "method=entropy",
        "tracking=none",
        "train.steps=2",
        "eval.prompts=2",
    )
    made = settings(*words, "train.prompts_per_step=2", "train.rollouts_per_prompt=2", "eval.samples_per_prompt=2")
    execute(made, tmp_path / "run", lambda line: None, lambda: False)
    said = (tmp_path / "run" / "vllm_server.txt").read_text()
    pids = [int(pid) for pid in re.search(r"pids ([\d ]+) cards \n", said)[1].split()]
    assert len(pids) == 3
    assert not any(map(alive, pids))
    options = "dtype host load-format max-model-len max-num-seqs model port skip-tokenizer-init"
    assert f"ready to start {options}" in said
    first, last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][1:]
    size = sum(p.numel() * 4 for p in model.parameters())
    assert "engine/sync_gb" not in first  # the weights of the evaluation before
    assert last["engine/sync_gb"] * 1e9 == pytest.approx(2 * size, rel=0.02)  # for the rollouts and for the evaluation
    assert 0 < last["time/sync_s"] < last["time/step_s"]


def test_the_engine_of_ones_own_weights_moves_none(tmp_path):
    words = ("method=grpo", "tracking=none", "train.steps=1", "train.prompts_per_step=2", "eval.prompts=2")
    execute(settings(*words), tmp_path / "run", lambda line: None, lambda: False)
    (_, row) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not {"engine/sync_gb", "time/sync_s"} & {*row}


def test_another_shape_starts_another_server_and_the_same_shape_does_not(tmp_path, model):
    engine = settings("engine=vllm_server", "engine.start=true").engine
    engine.settle(tmp_path, [])
    engine.load(model, [2], 0)
    first = engine._own
    engine.load(load("embedded", None, "sdpa")[0], [2], 0)
    assert engine._own is first
    model.compute_dtype = __import__("torch").bfloat16
    try:
        engine.load(model, [2], 0)
    finally:
        del model.compute_dtype
    assert engine._own is not first
    assert first._keeper.poll() is not None
    engine.close()
    assert engine._own is None


def test_a_server_that_dies_is_noticed_at_once(tmp_path, model, monkeypatch):
    monkeypatch.setenv("PRETEND", "dies sampling")
    engine = settings("engine=vllm_server", "engine.start=true").engine
    engine.settle(tmp_path, [])
    engine.load(model, [2], 0)
    begin = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"the run's vLLM server ended: exit code 9, MemoryError: no room for a block \(.*txt\)"
    ):
        list(engine.sample([[1, 3]], [[9]]))
    assert time.monotonic() - begin < PATIENCE_S
    engine.close()


def test_one_that_dies_before_it_answers_too_and_its_token_is_masked(tmp_path, model, monkeypatch):
    monkeypatch.setenv("PRETEND", "dies starting")
    engine = settings("engine=vllm_server", "engine.start=true").engine
    engine.settle(tmp_path, [])
    says = r"ended before it answered: exit code 1, ValueError: no such kernel, RLRT_SERVER_TOKEN=\*\*\* \("
    with pytest.raises(UserError, match=says):
        engine.load(model, [2], 0)
    engine.close()


def test_what_excludes_and_what_is_no_part_of_a_run():
    with pytest.raises(UserError, match=r"engine\.start: .* and engine\.url=http://a:1 names another; leave one out"):
        settings("engine=vllm_server", "engine.start=true", "engine.url=http://a:1")
    assert settings("engine=vllm_server").engine.url == "http://127.0.0.1:8000"
    own = settings(
        "engine=vllm_server", "engine.start=true", "engine.gpus=2", "engine.transfer=file", "engine.host=h"
    ).plain
    assert identity(own) == identity(settings("engine=vllm_server").plain)


def test_vllm_must_be_there_to_start_it(monkeypatch):
    monkeypatch.setattr(vllm_common, "installed_version", lambda: None)
    engine = settings("engine=vllm_server", "engine.start=true").engine
    engine.check_installed()  # another environment has it
    settings("engine=vllm_server").engine.check_installed()
    monkeypatch.setenv(own_server.PYTHON, "python")
    with pytest.raises(
        UserError, match=r"RLRT_SERVER_PYTHON: expected the full path of a Python with vLLM, got 'python'"
    ):
        own_server.server_python()
    monkeypatch.delenv(own_server.PYTHON)
    with pytest.raises(
        UserError, match=r"engine\.start=true without RLRT_SERVER_PYTHON.* needs vLLM 0\.32, which is not"
    ):
        engine.check_installed()


# its life


def test_the_token_is_seen_by_nobody_else(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    made, client, pids = started(tmp_path / "log.txt")
    assert stat_mode(pids[0]) == "400"
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in (made._keeper.pid, *pids)]
    written = [
        *commands,
        (tmp_path / "log.txt").read_text(),
        caplog.text,
        repr(vars(client)["url"]),
        repr(client),
        repr(made),
    ]
    assert not any(made.token in text for text in written)
    made.close()
    assert gone(pids)


def stat_mode(pid):
    return f"{Path(f'/proc/{pid}/environ').stat().st_mode & 0o777:o}"


def test_two_jobs_at_once_have_ports_and_tokens_of_their_own(tmp_path):
    (a, one, pids), (b, other, others) = started(tmp_path / "a.txt"), started(tmp_path / "b.txt")
    assert a.url != b.url
    with pytest.raises(UserError, match="asks for its token"):
        Server(a.url, 10, b.token).version()
    with pytest.raises(UserError, match="asks for its token"):
        Server(a.url, 10).version()
    a.close()
    assert gone(pids)
    assert other.version() == "0.32.0"
    b.close()
    assert gone(others)
    assert not listens(one)


def test_signals_to_all_of_a_job_leave_the_server_to_the_run(tmp_path):
    made, client, pids = started(tmp_path / "log.txt")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        for pid in (made._keeper.pid, *pids):
            os.kill(pid, number)
    time.sleep(1.0)
    assert client.version() == "0.32.0"
    made.close()
    assert gone([made._keeper.pid, *pids])


OWNER = """
import os, sys, time
from pathlib import Path
from rlrt.engines.own_server import OwnServer, Wanted

class Config:
    def save_pretrained(self, folder):
        (Path(folder) / "config.json").write_text("{}")

log = Path(sys.argv[1])
made = OwnServer(Wanted("float32", (), 4, 60, "127.0.0.1"), Config(), log)
made.wait(lambda: "cards" in log.read_text())
if os.fork() == 0:  # one that outlives the run, with the run's end of the pipe
    time.sleep(60)
    os._exit(0)
print(made._keeper.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_takes_its_server_along(tmp_path, number):
    log = tmp_path / "log.txt"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(log)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    pids = [int(owner.stdout.readline()), *pids_in(log)]
    assert len(pids) == 4
    assert all(map(alive, pids))
    owner.send_signal(number)
    owner.wait()
    assert gone(pids)
    os.killpg(owner.pid, signal.SIGKILL)
    owner.stdout.close()


def test_a_keeper_that_is_killed_takes_its_server_along(tmp_path):
    """Its first process, by the kernel; vLLM's workers look for themselves (tests/vllm)."""
    made, _, pids = started(tmp_path / "log.txt")
    made._keeper.kill()
    assert gone(pids[:1])
    for pid in pids[1:]:
        os.kill(pid, signal.SIGKILL)
    made.close()


def test_no_folder_of_a_server_is_left(tmp_path):
    made, _, _ = started(tmp_path / "log.txt")
    (folder,) = re.findall(rb"\0(/[^\0]*/rlrt-server-[^\0]*)", Path(f"/proc/{made._keeper.pid}/cmdline").read_bytes())[
        :1
    ]
    assert Path(folder.decode()).is_dir()
    made.close()
    assert not Path(folder.decode()).exists()


# where it is reached


def test_one_machine_listens_for_itself_and_several_for_each_other(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert address(False, None) == "127.0.0.1"
    with pytest.raises(
        UserError, match=r"engine\.host: the run's other machines must reach the server, and localhost is 127\.0"
    ):
        address(True, None)
    with pytest.raises(UserError, match=r"engine\.host: '192\.0\.2\.1' is no address of this machine"):
        address(True, "192.0.2.1")
    monkeypatch.setattr(own_server.socket, "gethostbyname", {"node1": "10.0.0.1", "10.0.0.1": "10.0.0.1"}.__getitem__)
    monkeypatch.setattr(own_server, "probed", lambda host, port: port)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    assert address(True, None) == "10.0.0.1"


def test_files_reach_a_server_elsewhere_by_a_shared_folder_alone(tmp_path):
    check_folder("http://127.0.0.1:8000", None)
    check_folder("http://localhost:8000", None)
    check_folder("http://192.0.2.1:8000", str(tmp_path))
    with pytest.raises(
        UserError, match=r"engine\.transfer_dir: weights go by file .* is on another machine; set engine\.tr"
    ):
        check_folder("http://192.0.2.1:8000", None)


def test_several_cards_hold_one_model():
    words = Wanted("bfloat16", ("6", "7"), 256, None, "10.0.0.1").command("/p", "/m", 8123)
    assert words[:8] == ["/p", "-m", "rlrt.serve_vllm", "--model", "/m", "--host", "10.0.0.1", "--port"]
    assert words[-2:] == ["--tensor-parallel-size", "2"]
    assert "--tensor-parallel-size" not in TOLD.command("/p", "/m", 8123)


def test_the_server_sees_its_cards_alone_and_nothing_of_the_runs_meeting(monkeypatch):
    for name, value in (("WORLD_SIZE", "6"), ("RANK", "0"), ("MASTER_PORT", "1"), ("CUDA_VISIBLE_DEVICES", "0,1")):
        monkeypatch.setenv(name, value)
    seen = own_server.environment_of(Wanted("float32", ("6", "7"), 1, None, "h"), "secret", "/f", sys.executable)
    assert seen["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert seen[TOKEN] == "secret"
    assert not {"WORLD_SIZE", "RANK", "MASTER_PORT"} & {*seen}


# cards


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    monkeypatch.setenv(ASIDE, "")
    monkeypatch.delenv(ASIDE)

    def rank(rank, local, here, size):
        for name, value in (("RANK", rank), ("LOCAL_RANK", local), ("LOCAL_WORLD_SIZE", here), ("WORLD_SIZE", size)):
            monkeypatch.setenv(name, str(value))

    return rank


def test_the_last_cards_are_set_aside(eight):
    eight(5, 5, 6, 6)
    assert set_aside(2, True) == ["6", "7"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5"
    assert set_aside(2, True) == ["6", "7"]  # a second run of this process
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5"


def test_other_machines_keep_theirs(eight):
    eight(7, 1, 6, 12)
    assert set_aside(2, True) == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"


@pytest.mark.parametrize(
    ("here", "count", "fits"), [(6, 2, True), (7, 2, False), (8, 1, False), (1, 8, False), (1, 7, True)]
)
def test_more_processes_and_cards_than_there_are_is_refused(eight, here, count, fits):
    eight(0, 0, here, here)
    if fits:
        assert len(set_aside(count, True)) == count
        return
    with pytest.raises(
        UserError, match=rf"engine\.gpus: the run's server takes {count} GPUs? .* {here} process.* may use 8; start"
    ):
        set_aside(count, True)


def test_a_trainer_on_the_cpu_needs_no_card(eight):
    eight(0, 0, 1, 1)
    assert len(set_aside(8, False)) == 8
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_null_is_one_card_beside_a_trainer_on_cards():
    engine = settings("engine=vllm_server", "engine.start=true").engine
    assert (engine.cards_beside(True), engine.cards_beside(False)) == (1, 0)
    engine.gpus = 3
    assert (engine.cards_beside(True), engine.cards_beside(False)) == (3, 3)
    assert settings("engine=vllm_server").engine.cards_beside(True) == 0
    assert settings("engine=hf").engine.cards_beside(True) == 0


def launcher(tasks, gpus):
    return LocalLauncher(n_jobs=None, threads_per_job=None, nodes=1, tasks_per_node=tasks, gpus_per_node=gpus)


class Job:
    def __init__(self, device="auto", **engine):
        self.plain = {"device": device, "engine": engine}


def test_a_job_gets_cards_for_its_processes_and_its_server(eight):
    assert with_gpus(launcher(6, None), [Job(start=True, gpus=2)]).cards_per_job() == 8
    assert with_gpus(launcher(1, None), [Job(start=True, gpus=None)]).jobs_at_once() == 4
    assert with_gpus(launcher(1, None), [Job()]).jobs_at_once() == 8
    assert with_gpus(launcher(6, 8), [Job(start=True, gpus=2)]).cards_per_job() == 8
    says = r"a job gets 8 GPUs on a node, and its 8 processes .* take 10; set hydra\.launcher\.tasks_per_node=6 or"
    with pytest.raises(UserError, match=says):
        with_gpus(launcher(8, 8), [Job(start=True, gpus=2)])
