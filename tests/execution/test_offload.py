"""Tensors that lie in the host's memory in between: the same bits, moved once a step and no more."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

import rlrt.execution.build as build
from rlrt.distributed import sharding
from rlrt.errors import UserError
from rlrt.execution.build import build_learner
from rlrt.execution.execute import execute
from rlrt.model import forward, offload
from rlrt.model.offload import Moments, save_on_host
from rlrt.model.policy import Policy
from rlrt.records.folder import RunFolder
from rlrt.records.identity import identity
from tests.helpers import settings

SMALL = (
    "method=rlrt", "train.steps=3", "train.prompts_per_step=2", "train.rollouts_per_prompt=4", "train.save_every=1",
    "train.eval_every=0", "eval.prompts=2", "tracking=none", "train.minibatches=2",
)  # fmt: skip


def run(path, *more, stop_at=None):
    calls = []

    def stop():
        calls.append(1)
        return stop_at is not None and len(calls) >= stop_at

    return execute(settings(*SMALL, *more), path, lambda line: None, stop, progress=False)


def bits(path):
    last = path / "checkpoints" / "step_3"
    return [file.read_bytes() for file in (last / "model.safetensors", *sorted((last / "trainer").glob("optimiser*")))]


class Resting(Policy):
    """A policy whose moments rest, as on a GPU, and a list of what happened to them."""

    happened: ClassVar[list[str]] = []

    def __init__(self, *given):
        super().__init__(*given[:4], rests=True)
        moments, step = self._moments, self.optimiser.step
        rest, wake = moments.rest, moments.wake

        def resting():
            held = len(moments._home)
            rest()
            if len(moments._home) > held:
                self.happened.append("rest")

        def waking():
            if moments._home:
                self.happened.append("wake")
            wake()

        def stepping():
            assert not moments._home
            self.happened.append("step")
            step()

        moments.rest, moments.wake, self.optimiser.step = resting, waking, stepping


def test_a_run_whose_moments_rest_is_the_same_run_also_after_a_stop(tmp_path, monkeypatch):
    run(tmp_path / "plain")
    monkeypatch.setattr(build, "Policy", Resting)
    monkeypatch.setattr(Resting, "happened", [])
    run(tmp_path / "resting")
    # two mini-batches a step: moved once to the device and once to the host
    assert Resting.happened == ["step", "step", "rest", *["wake", "step", "step", "rest"] * 2]
    Resting.happened.clear()
    run(tmp_path / "cut", stop_at=2)
    first = list(Resting.happened)
    Resting.happened.clear()
    run(tmp_path / "cut")
    assert first[-1] == "rest"
    assert Resting.happened[:2] == ["rest", "wake"]  # those of the checkpoint rest during the first rollouts
    assert bits(tmp_path / "plain") == bits(tmp_path / "resting") == bits(tmp_path / "cut")
    drop = lambda name: [  # noqa: E731
        {k: v for k, v in r.items() if not k.startswith("time/")} for r in RunFolder(tmp_path / name).record.read()
    ]
    assert drop("plain") == drop("resting") == drop("cut")


def test_moments_are_copied_to_the_host_and_back_and_counters_stay():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.tensor([0.5, -0.5])
    optimiser.step()
    state = optimiser.state[weight]
    before = {name: value.clone() for name, value in state.items()}
    device, counter = state["exp_avg"], state["step"]
    moments = Moments(optimiser)
    moments.rest()
    host = state["exp_avg"]
    assert host is not device
    assert state["step"] is counter
    moments.rest()  # there already
    assert state["exp_avg"] is host
    moments.wake()
    assert state["exp_avg"] is not host
    assert all(torch.equal(state[name], value) for name, value in before.items())
    moments.rest()
    assert state["exp_avg"] is host  # the same buffer again


def test_inputs_of_layers_lie_on_the_host_until_they_are_recomputed(monkeypatch):
    away, back = [], []
    pack, unpack = offload.SavedOnHost._away, offload.SavedOnHost._back

    def packing(tensor):
        packed = pack(tensor)
        away.extend([tensor] if not isinstance(packed, torch.Tensor) else [])
        return packed

    def unpacking(packed):
        back.extend([1] if not isinstance(packed, torch.Tensor) else [])
        return unpack(packed)

    monkeypatch.setattr(offload.SavedOnHost, "_away", staticmethod(packing))
    monkeypatch.setattr(offload.SavedOnHost, "_back", staticmethod(unpacking))
    monkeypatch.setattr(offload, "LEAST", 4 * 64 * 6)  # the bytes of six tokens' hidden states
    model = build_learner(settings("model.gradient_checkpointing=true")).policy.model
    rows = [forward.Row([1, 20, 30], [40, 50, 60, 2])]  # six tokens are run

    def gradients():
        model.zero_grad(set_to_none=True)
        (logp,) = sharding.run(model, lambda: (forward.response_logp(model, rows, 1.0),))
        logp[:, 40].sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = gradients()
    assert away == []
    save_on_host(model)
    moved = gradients()
    assert all(torch.equal(plain[name], moved[name]) for name in plain)
    inputs = [t for t in away if t.shape == (1, 6, 64)]
    assert len(inputs) >= 3  # of each of three layers, and what the last norm reads
    assert len(away) == len(back)
    weights = {p.data_ptr() for p in model.parameters()}
    assert not any(t.data_ptr() in weights for t in away)
    with torch.no_grad():
        forward.response_logp(model, rows, 1.0)
    assert len(away) == len(back)  # a pass without gradient saves nothing


def test_nothing_is_moved_on_a_cpu_and_the_identity_is_the_same():
    words = ("model.gradient_checkpointing=true",)
    moving = settings(*words, "train.offload=optimiser", "model.offload_activations=true")
    learner = build_learner(moving)
    assert learner.policy._moments is None
    assert not hasattr(learner.policy.model, "saves_on_host")
    assert identity(moving.plain) == identity(settings(*words).plain)


def test_activations_are_offloaded_only_where_layers_are_recomputed():
    with pytest.raises(UserError, match=r"model\.offload_activations: keeps what the layers are recomputed from"):
        settings("model.offload_activations=true", "model.gradient_checkpointing=false")
