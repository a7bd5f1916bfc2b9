from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from safetensors.torch import save_file

from rlrt.engines import vllm_server as module
from rlrt.engines.keeper import members_of
from rlrt.engines.vllm_client import Server
from rlrt.engines.vllm_server import VllmServerEngine, weight_files
from rlrt.errors import UserError
from rlrt.machine import alive
from rlrt.ui import free_port
from tests.conftest import ROOT
from tests.vllm.conformance import Conformance
from tests.vllm.worlds import KEYS, LONG, STOP, gap, sampled, seeds, tiny

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
PATIENCE_S = 600
OTHERS = {"start": False, "gpus": None, "host": None, "transfer": "auto", "transfer_dir": None, "timeout_s": 120}


def serve(folder, log):
    """A server of our command, once it answers; it takes a minute on a busy machine."""
    port = free_port(0)
    words = [
        sys.executable,
        "-m",
        "rlrt.serve_vllm",
        "--model",
        str(folder),
        "--port",
        str(port),
        "--max-num-seqs",
        "64",
    ]
    process = subprocess.Popen(words, stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(UserError):
            Server(f"http://127.0.0.1:{port}", 30).version()
            return process, port
        time.sleep(0.5)
    stop(process)
    raise AssertionError(log.read_text()[-4000:])


def stop(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(port, folder of the model): the embedding is the output layer's too, which is the harder case."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny(folder, tied=True)
    process, port = serve(folder, tmp_path_factory.mktemp("log") / "server.txt")
    yield port, folder, model
    stop(process)


@pytest.fixture(scope="module")
def world(served, tmp_path_factory):
    transfers = str(tmp_path_factory.mktemp("transfers"))
    port, _, model = served
    more = {**OTHERS, "url": f"http://127.0.0.1:{port}", "transfer_dir": transfers}
    return VllmServerEngine(**KEYS, **more), model


@pytest.fixture
def keep_cache(monkeypatch):
    @contextlib.contextmanager
    def kept():
        with monkeypatch.context() as patch:
            patch.setattr(Server, "reset_prefix_cache", lambda self: True)
            yield

    return kept


class TestServer(Conformance):
    def test_no_file_is_left(self):
        assert os.listdir(self.engine.transfer_dir) == []

    def test_many_files_are_as_good_as_one(self, monkeypatch):
        monkeypatch.setattr(module, "CHUNK", 20_000)
        assert len(list(weight_files(self.model, None))) > 5
        self.engine.load(self.model, STOP, self.version + 1)
        assert gap(self.model, LONG, sampled(self.engine, LONG, seeds(2, LONG))) < 1e-4

    def test_another_model_is_refused(self, tmp_path):
        other = tiny(tmp_path, tied=False)
        with pytest.raises(
            UserError, match=r"another model: expected tie_word_embeddings=False as in model\.path, found True"
        ):
            self.engine.load(other, STOP, 0)


def run_command(place, *more, processes=1):
    """A run by the real command, in the environment of vLLM; its record."""
    words = [
        "method=grpo", "tracking=none", "device=cpu", "train.steps=2", "train.lr=1e-3", "train.prompts_per_step=2",
        "eval.prompts=2", "train.rollouts_per_prompt=4", "engine.max_new_tokens=12", "eval.samples_per_prompt=2", *more,
    ]  # fmt: skip
    several = (
        ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    )
    done = subprocess.run(
        [sys.executable, "-m", *several, "rlrt.run", *words, f"hydra.run.dir={place}/run"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"state": "finished"' in (place / "run" / "summary.json").read_text()
    return [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_ahead_of_itself_by_the_command(served, tmp_path):
    """The server samples the next step while this one's update runs; what is stale is measured. (A random model's rewards
    are all 0: the entropy bonus moves it.)"""
    port, folder, _ = served
    words = (f"model.path={folder}", "engine=vllm_server", f"engine.url=http://127.0.0.1:{port}", "train.steps=3")
    rows = run_command(tmp_path, *words, "train.sample_ahead=true", "method=entropy")
    assert [r["rollout/staleness"] for r in rows[1:]] == [0, 1, 1]
    assert rows[1]["sampler/logp_gap_abs_max"] < 1e-4
    assert all(r["sampler/logp_gap_abs_max"] > 1e-3 for r in rows[2:])


def test_two_processes_send_a_server_one_set_of_weights(served, tmp_path):
    port, folder, _ = served
    words = (f"model.path={folder}", "engine=vllm_server", f"engine.url=http://127.0.0.1:{port}")
    rows = run_command(tmp_path, *words, "distributed.strategy=fsdp", "method=entropy", processes=2)
    assert all(r["sampler/logp_gap_abs_max"] < 1e-4 for r in rows[1:])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_with_vllm_in_its_processes(tmp_path, processes):
    rows = run_command(tmp_path, "engine=vllm", "method=rlrt", processes=processes)
    assert all(r["sampler/logp_gap_abs_max"] < 1e-4 for r in rows[1:])
    assert [r["rollout/staleness"] for r in rows[1:]] == [0, 0]


def test_a_runs_own_server_asks_for_its_token_and_dies_with_a_killed_run(tmp_path):
    """All of its processes: the first alone would leave the others behind, with their memory."""
    words = [
        "engine=vllm_server", "engine.start=true", "method=grpo", "tracking=none", "device=cpu", "train.steps=100000",
        "train.prompts_per_step=2", "eval.prompts=2", "train.rollouts_per_prompt=4", "engine.max_new_tokens=12",
        "eval.samples_per_prompt=2", f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, "-m", "rlrt.run", *words], cwd=tmp_path, env=environment)
    try:
        metrics, said = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "log.txt"
        assert waited(
            lambda: run.poll() is not None or (metrics.exists() and len(metrics.read_text().splitlines()) > 2)
        )
        assert run.poll() is None
        (keeper,) = children(run.pid, "keeper.py")
        (server,) = children(keeper, "api_server")
        group = members_of(server)
        assert len(group) > 2
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+) on the CPU", said.read_text())
        for path in (
            "/version",
            "/collective_rpc",
            "/update_weights",
            "/abort_requests",
            "/metrics",
            "/inference/v1/generate",
        ):
            with pytest.raises(UserError, match="asks for its token"):
                Server(f"http://127.0.0.1:{port}", 30).ask(path)
        run.kill()
        run.wait()
        assert waited(lambda: not any(map(alive, [keeper, *group])))
    finally:
        run.kill()
        run.wait()


def waited(true):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.2)
    return False


def children(parent, word):
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in found.splitlines() if word in line]


def test_a_port_in_use_is_refused_at_once(served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        begin = time.monotonic()
        words = [sys.executable, "-m", "rlrt.serve_vllm", "--model", "embedded", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --port: ")
    assert time.monotonic() - begin < 60


def test_a_failed_update_is_refused_for_good(world, served, tmp_path, monkeypatch):
    """The last of this file: the server is of no use afterwards, and says so to the next run."""
    engine, model = world

    def half(model, folder):
        weights = dict(list(module.named_weights(model))[:5])
        save_file(weights, tmp_path / "half.safetensors")
        yield {"path": str(tmp_path / "half.safetensors")}

    monkeypatch.setattr(module, "weight_files", half)
    for _ in range(2):
        with pytest.raises(UserError, match=r"an update of the weights .* failed .* restart it"):
            engine.load(model, STOP, 10_000)
    again = VllmServerEngine(**KEYS, **{**OTHERS, "url": engine.url})
    with pytest.raises(UserError, match=r"was cut off, which leaves them undefined; restart it"):
        again.load(model, STOP, 0)
