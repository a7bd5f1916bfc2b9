"""vLLM's own sender and packing for NCCL, with gloo in place of NCCL, into our backend of a server's worker."""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import sys
import threading
import types

import pytest
import torch
import torch.distributed as dist

from rlrt.engines import vllm_nccl
from rlrt.engines.vllm_nccl import Sender, told
from rlrt.model.lora import named_weights
from tests.conftest import ROOT
from tests.vllm.worlds import tiny, train_a_little

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


class Gloo:
    """What vLLM asks of its communicator."""

    def __init__(self, host, port, rank, size):
        patience = datetime.timedelta(seconds=60)
        store = dist.TCPStore(host, port, size, rank == 0, patience, wait_for_workers=False)
        self._group, self.sizes = dist.ProcessGroupGloo(store, rank, size, patience), []

    def broadcast(self, tensor, src, stream=None):
        options = dist.BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor], options).wait()
        self.sizes.append(tensor.nbytes)

    def destroy(self):
        self._group = None


class Model:
    """A model in a worker; vLLM would fuse and reload layers."""

    def __init__(self, names, lost=()):
        self.names, self.lost, self.got, self.calls = set(names), lost, {}, 0

    def named_parameters(self):
        return [(name, None) for name in self.names]

    def load_weights(self, weights):
        self.calls += 1
        new = {name: tensor.clone() for name, tensor in weights if name not in self.lost}
        self.got |= new
        return {*new}


class Worker:
    """The server: its routes for training call the backend, as vLLM's worker does."""

    url = "http://127.0.0.1:1"

    def __init__(self, backend):
        self.backend, self.label = backend, "default"

    def world_size(self):
        return 1

    def init_weight_transfer_engine(self, info):
        self.backend.init_transfer_engine(self.backend.parse_init_info(info))

    def start_weight_update(self):
        self.backend.start_weight_update()

    def update_weights(self, request):
        self.backend.update_weights(request["update_info"])

    def finish_weight_update(self, label):
        self.backend.finish_weight_update()
        self.label = label


@pytest.fixture
def met(monkeypatch, tmp_path):
    """(trainer's model, how to meet a worker with a model): on the CPU, so that streams are none."""
    from vllm.distributed.weight_transfer import nccl_common, packed_tensor
    from vllm.model_executor.model_loader import reload

    from rlrt.engines import vllm_transfer

    stream = types.SimpleNamespace(synchronize=lambda: None)
    groups = []

    def meet(host, port, rank, size, device):
        groups.append(Gloo(host, port, rank, size))
        return groups[-1]

    monkeypatch.setattr(nccl_common, "stateless_init_process_group", meet)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda device, count: [stream] * count)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(vllm_nccl, "own_address", lambda url: "127.0.0.1")
    monkeypatch.setattr(vllm_nccl, "BUFFER", 30_000)  # several groups of tensors, the embedding alone above it
    for name in ("initialize_layerwise_reload", "finalize_layerwise_reload"):
        monkeypatch.setattr(reload, name, lambda *given: None)
    trainer = tiny(tmp_path, tied=True)

    def worker(**more):
        parallel = types.SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        config = types.SimpleNamespace(parallel_config=parallel, model_config=None)
        model = Model([name for name, _, _ in told(trainer)], **more)
        return Worker(vllm_transfer.BySending(None, config, torch.device("cpu"), model)), model

    return trainer, worker, groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_weights_arrive_in_groups_and_again_after_an_update(met, dtype):
    trainer, worker, groups = met
    trainer.compute_dtype = dtype
    server, model = worker()
    sender = Sender(server, trainer)
    for label in ("a-1", "a-2"):
        model.got.clear()
        sent = sender.send(trainer, label)
        assert {*model.got} == model.names
        for name, tensor in named_weights(trainer):
            assert torch.equal(model.got[name], tensor.to(dtype)), name
        assert (server.label, server.backend.broken) == (label, False)
        assert sent == sum(t.nbytes for t in model.got.values())
        train_a_little(trainer)
    first, second = (group.sizes for group in groups)
    assert first == second
    assert len(first) == model.calls > 4
    assert sum(first) == 2 * sent
    assert max(first[:-1]) > vllm_nccl.BUFFER
    sender.close()


def test_a_weight_that_is_not_taken_ends_the_update(met):
    """vLLM's own backend would go on with the old one."""
    trainer, worker, _ = met
    server, _ = worker(lost=("model.norm.weight",))
    with pytest.raises(RuntimeError, match=r"1 weights were not sent: model\.norm\.weight"):
        Sender(server, trainer).send(trainer, "a-1")
    assert (server.label, server.backend.broken) == ("default", True)


def test_nothing_comes_before_the_two_sides_met(met):
    server, _ = met[1]()
    server.start_weight_update()
    with pytest.raises(RuntimeError, match="has not met this server's workers"):
        server.update_weights({"update_info": {"names": ["a"], "dtype_names": ["float32"], "shapes": [[1]]}})
    assert server.backend.broken


def test_a_failure_of_the_worker_is_the_senders(met, monkeypatch):
    trainer, worker, _ = met
    server, model = worker()
    sender, ended = Sender(server, trainer), threading.Event()
    monkeypatch.setattr(vllm_nccl, "give_up", lambda error: ended.set())

    def refuse():
        raise RuntimeError("no room")

    last, receive = told(trainer)[-1][0], model.load_weights
    model.load_weights = lambda weights: refuse() if last in dict(weights) else receive(weights)
    with pytest.raises(RuntimeError, match="no room"):
        sender.send(trainer, "a-1")
    assert server.label == "default"
    assert not ended.is_set()


def test_a_worker_ends_its_group_when_the_keeper_is_gone():
    """A worker of vLLM, which a killed server leaves behind."""
    keeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "keeper.py"])
    words = "import rlrt.engines.vllm_transfer, time; print('here', flush=True); time.sleep(600)"
    environment = {**os.environ, "RLRT_SERVER_KEEPER": str(keeper.pid), "PYTHONPATH": str(ROOT)}
    worker = subprocess.Popen(
        [sys.executable, "-c", words], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert "here\n" in iter(worker.stdout.readline, "")
    keeper.kill()
    keeper.wait()
    assert worker.wait(60) == -9
    worker.stdout.close()
