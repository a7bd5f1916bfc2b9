"""Low-rank adapters: only they learn, a checkpoint has them merged in, and a run with them resumes to the bit."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlrt.errors import UserError
from rlrt.execution.build import build_learner
from rlrt.execution.execute import execute
from rlrt.model.load import load
from rlrt.model.lora import adapters, add_adapters, named_weights
from rlrt.paths import EMBEDDED
from rlrt.records.folder import RunFolder
from rlrt.records.identity import content_hash
from rlrt.records.shards import shapes
from tests.helpers import settings

SMALL = (
    "model.lora=4", "train.steps=4", "train.prompts_per_step=4", "train.rollouts_per_prompt=4", "train.save_every=2",
    "train.eval_every=0", "train.lr=1e-2", "eval.prompts=4", "tracking=none",
)  # fmt: skip


def run(path, *more, stop_at=None):
    made, calls = settings(*SMALL, *more), []

    def stop():
        calls.append(1)
        return stop_at is not None and len(calls) >= stop_at

    return execute(made, path, lambda line: None, stop, progress=False)


def test_an_adapter_changes_nothing_at_first_and_is_a_function_of_the_seed():
    ids = torch.tensor([[1, 20, 30, 40]])
    models = []
    for seed in (0, 0, 1):
        model, _ = load("embedded", None, "sdpa")
        before = model(ids).logits
        add_adapters(model, 4, 32.0, ["q_proj", "down_proj"], seed)
        assert torch.equal(model(ids).logits, before)
        models.append(adapters(model))
    one, same, other = models
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)
    assert all(p.requires_grad for p in one.values())


def test_only_adapters_learn_and_the_checkpoint_is_the_merged_model(tmp_path):
    run(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step_4"
    beside = shapes(checkpoint / "trainer")
    assert {n.split(".")[0] for n in beside} == {"adapters", "optimiser"}
    assert all(".lora_" in name for name in beside)
    served = AutoModelForCausalLM.from_pretrained(checkpoint)
    start, _ = load("embedded", None, "sdpa")
    moved = {n for n, p in served.named_parameters() if not torch.equal(p, start.get_parameter(n))}
    assert moved
    assert all(name.endswith("_proj.weight") for name in moved)
    assert (
        served.get_parameter("model.embed_tokens.weight").shape
        == start.get_parameter("model.embed_tokens.weight").shape
    )


def test_merged_weights_compute_what_the_adapted_model_computes(tmp_path):
    learner = build_learner(settings("model.lora=4"))
    model = learner.policy.model
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.add_(0.05 * torch.randn(adapter.shape, generator=torch.Generator().manual_seed(0)))
    learner.policy.save(tmp_path)
    served, _ = load(str(tmp_path), None, "sdpa")
    ids = torch.tensor([[1, 20, 30, 40]])
    base, _ = load("embedded", None, "sdpa")
    assert float((base(ids).logits - model(ids).logits).abs().max().detach()) > 0.1
    torch.testing.assert_close(served(ids).logits, model(ids).logits, rtol=0, atol=1e-4)
    assert dict(named_weights(base)).keys() == dict(named_weights(model)).keys()


@pytest.mark.parametrize("more", [(), ("method=sd", "teacher.weights=ema"), ("model.gradient_checkpointing=true",)])
def test_a_stopped_run_with_adapters_ends_as_an_undisturbed_one(tmp_path, more):
    whole = run(tmp_path / "whole", *more)
    run(tmp_path / "cut", *more, stop_at=3)
    again = run(tmp_path / "cut", *more)
    assert again["state"] == "finished"
    drop = lambda rows: [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows]  # noqa: E731
    assert drop(RunFolder(tmp_path / "cut").record.read()) == drop(RunFolder(tmp_path / "whole").record.read())
    one, two = (tmp_path / name / "checkpoints" / "step_4" for name in ("whole", "cut"))
    for file in ("model.safetensors", "trainer/shard-00001-of-00001.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert whole["final"] == again["final"]


def test_gradient_checkpointing_changes_no_number(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", "model.gradient_checkpointing=true")
    one, two = (tmp_path / n / "checkpoints" / "step_4" / "model.safetensors" for n in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_no_such_layer_is_one_sentence():
    with pytest.raises(UserError, match=r"model\.lora_targets: none of nope is a layer of this model"):
        build_learner(settings("model.lora=4", "model.lora_targets=[nope]"))


def test_a_run_starts_from_another_runs_checkpoint(tmp_path):
    run(tmp_path / "first")
    first = tmp_path / "first"
    newest = first / "checkpoints" / "step_4"
    learner = build_learner(settings(f"model.path={first}"))
    served, _ = load(str(newest), None, "sdpa")
    for name, weights in learner.policy.model.named_parameters():
        assert torch.equal(weights, served.get_parameter(name))
    again = run(tmp_path / "second", f"model.path={first}", "train.steps=1")
    assert again["state"] == "finished"
    before = content_hash(newest)
    (newest / "trainer" / "state.json").write_text("{}")
    assert content_hash(newest) == before != content_hash(EMBEDDED)
    with pytest.raises(
        UserError, match=r"model\.path: the checkpoint .*step_4 is damaged \(trainer/state.json is not what"
    ):
        build_learner(settings(f"model.path={first}"))


def test_a_run_without_a_checkpoint_is_no_model(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.path: the run in .* has no checkpoint yet"):
        build_learner(settings(f"model.path={tmp_path}"))
