"""Weights by NCCL: when, in which order, under which label. vLLM's sender is a recorder; tests/vllm has the real one."""

from __future__ import annotations

import contextlib
import sys
import threading
import types

import pytest
import torch

from rlrt.engines import vllm_nccl as module
from rlrt.engines.vllm_nccl import Labelled, Sender, Weights, obstacle, told
from rlrt.errors import UserError
from rlrt.model.load import load
from rlrt.model.lora import add_adapters, named_weights
from tests.engines.test_vllm_http import engine_of, fake  # noqa: F401
from tests.helpers import settings


@pytest.fixture
def model():
    return load("embedded", None, "sdpa")[0]


@pytest.fixture
def cards(monkeypatch):
    """A trainer that seems to be on a card: vLLM is there, and records what it is asked."""
    calls = []

    class Meta(tuple):
        def __new__(cls, name, dtype, shape):
            return super().__new__(cls, (name, dtype, shape))

    class Init:
        def __init__(self, **given):
            self.__dict__ |= given
            calls.append(("init", given))

    class Engine:
        def __init__(self, client, source):
            self.client, self.source = client, source

        @classmethod
        def trainer_init(cls, info, *, client, source):
            client.init_weight_transfer_engine({"rank_offset": 1, "world_size": info.world_size})
            return cls(client, source)

        def send_weights(self):
            meta = self.source.metadata()
            self.client.start_weight_update()
            receiving = threading.Thread(target=self.client.update_weights, args=({"names": [m[0] for m in meta]},))
            receiving.start()
            sent = [(name, t.dtype, tuple(t.shape)) for name, t in self.source]
            receiving.join()
            calls.append(("sent", sent, [tuple(m) for m in meta]))
            self.client.finish_weight_update()

        def shutdown(self):
            calls.append(("shutdown",))

    names = ("vllm", "vllm.distributed", "vllm.distributed.weight_transfer")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    base, nccl = (types.ModuleType(f"{names[-1]}.{end}") for end in ("base", "nccl_engine"))
    base.ParamMeta, nccl.NCCLTrainerInitInfo, nccl.NCCLTrainerWeightTransferEngine = Meta, Init, Engine
    for made in (base, nccl):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    for name in module.ENVIRONMENT:
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(module.torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(module.torch.cuda, "synchronize", lambda device: calls.append(("synchronize",)))
    return calls


@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_is_told_is_what_is_sent_in_the_same_order(model, lora, dtype):
    if lora:
        add_adapters(model, lora, 8.0, ["q_proj", "down_proj"], 0)
    if dtype is not None:
        model.compute_dtype = dtype
    source = Weights(model)
    sent = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]
    assert sent == told(model)
    assert [name for name, _, _ in sent] == [name for name, _ in named_weights(model)]
    assert source.sent == sum(p.numel() for _, p in named_weights(model)) * (2 if dtype is not None else 4)
    assert not any("lora" in name or "base_layer" in name for name, _, _ in sent)


def test_a_sync_is_met_told_sent_and_named_in_this_order(fake, model, cards, monkeypatch):  # noqa: F811
    """The server's workers come after the trainer; the buffers are the same on both sides; the label is the run's."""
    fake.answers["/get_world_size"] = (200, {"world_size": 2})
    bodies = []
    for path in ("/init_weight_transfer_engine", "/update_weights"):
        fake.answers[path] = lambda body, path=path: (bodies.append((path, body)), (200, {}))[1]
    monkeypatch.setattr(module, "obstacle", lambda model, description: "")
    engine = engine_of(fake.url)
    engine.load(model, [2], 3)
    asked = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache", "/weight_info"]
    before = ["/version", "/collective_rpc", "/get_world_size", "/init_weight_transfer_engine"]
    assert fake.asked == [*before, *asked]
    (_, given), *after = cards
    assert (
        given | {"rank": 0, "world_size": 3, "packed": True, "packed_num_buffers": 2, "master_address": "127.0.0.1"}
        == given
    )
    assert [call[0] for call in after] == ["synchronize", "sent"]  # the optimiser's work is waited for first
    assert after[1][1] == after[1][2] == told(model)
    names = [name for name, _, _ in told(model)]
    assert bodies[1] == ("/update_weights", {"update_info": {"names": names}})
    assert fake.label.endswith("-3")
    assert engine.synced_bytes == sum(p.numel() * 4 for p in model.parameters())
    engine.load(model, [2], 4)
    assert fake.asked[len(before) :] == asked * 2  # the two sides meet once
    engine.close()
    assert cards[-1] == ("shutdown",)


def test_a_server_that_does_not_take_the_weights_is_not_used_again(fake, model, cards, monkeypatch):  # noqa: F811
    fake.answers["/get_world_size"] = (200, {"world_size": 1})
    fake.answers["/finish_weight_update"] = (500, {"detail": "3 weights were not sent"})
    fake.answers["/init_weight_transfer_engine"] = (200, {})
    monkeypatch.setattr(module, "obstacle", lambda model, description: "")
    engine = engine_of(fake.url)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"an update of the weights .* failed .*3 weights were not sent.* undefined; restart"
        ):
            engine.load(model, [2], 0)
    assert fake.asked.count("/finish_weight_update") == 1


def test_a_process_whose_server_fails_does_not_wait_in_nccl_for_ever(monkeypatch):
    class Gone:
        def update_weights(self, request):
            raise UserError("no answer")

    ended = threading.Event()
    monkeypatch.setattr(module, "give_up", lambda error: ended.set())
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    client = Labelled(Gone())
    with pytest.raises(UserError):
        client.update_weights({})
    assert ended.wait(5)
    ended.clear()
    monkeypatch.setattr(module, "GRACE_S", 60)
    with pytest.raises(UserError):
        client.update_weights({})
    client.settled()  # the broadcast failed by itself
    assert client._timer.finished.is_set()


class OnCard:
    """A model on a card."""

    device = types.SimpleNamespace(type="cuda")

    def parameters(self):
        yield self


@pytest.mark.parametrize(
    ("cards_there", "version", "why"),
    [
        (["b"], "0.32.0", ""),
        ([], "0.32.0", "the server has no GPU"),
        (["b", "a"], "0.32.0", "trainer and server share a GPU"),
        (["b"], None, "the trainer's environment has no vLLM 0.32"),
        (["b"], "0.31.0", "the trainer's environment has no vLLM 0.32"),
    ],
)
def test_when_weights_go_by_nccl(monkeypatch, model, cards_there, version, why):
    properties = types.SimpleNamespace(uuid="a")
    monkeypatch.setattr(module.torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(module, "installed_version", lambda: version)
    assert obstacle(OnCard(), {"cards": cards_there}) == why
    assert obstacle(model, {"cards": cards_there}) == "the trainer has no GPU"


def test_the_log_says_how_weights_go_and_nccl_can_be_insisted_on(fake, model, caplog, tmp_path):  # noqa: F811
    caplog.set_level("INFO", logger="rlrt")
    engine_of(fake.url).load(model, [2], 0)
    assert f"weights go to the vLLM server at {fake.url} by file: the trainer has no GPU" in caplog.text
    with pytest.raises(
        UserError, match=r"engine\.transfer: weights cannot go by NCCL, since the trainer has no GPU; set engi"
    ):
        engine_of(fake.url, "engine.transfer=nccl").load(model, [2], 0)
    with pytest.raises(UserError, match=r"engine\.transfer: expected one of auto, nccl, file, got 'ipc'"):
        settings("engine=vllm_server", "engine.transfer=ipc")


def test_sender_needs_a_world(fake, model, cards):  # noqa: F811
    """A server that does not tell its workers' number is no server to meet."""
    from rlrt.engines.vllm_client import Refused, Server

    with pytest.raises(Refused, match="/get_world_size: HTTP 404"):
        Sender(Server(fake.url, 5), model)
