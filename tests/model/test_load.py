from __future__ import annotations

import json
import shutil

import pytest
import torch

from rlrt.errors import UserError
from rlrt.execution.build import build_learner
from rlrt.model.forward import Row, response_logp
from rlrt.model.load import check_head, load
from rlrt.paths import EMBEDDED
from tests.helpers import settings


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "model"
    shutil.copytree(EMBEDDED, target)
    return target


def try_load(path):
    return load(str(path), None, "sdpa")


def test_a_local_folder_loads_like_the_embedded_one(folder):
    model, tokenizer = try_load(folder)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert tokenizer("17:3 4 5>", add_special_tokens=False)["input_ids"] == [20, 109, 6, 7, 8, 111]
    learner = build_learner(settings(f"model.path={folder}"))
    assert learner.policy.stop_ids == [2]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "expected a config.json in"),
        (lambda f: (f / "config.json").write_text("{broken"), r"config\.json is not readable JSON"),
        (lambda f: (f / "model.safetensors").unlink(), r"expected weights as \*\.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"expected weights as \*\.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "could not be loaded"),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "nothing"})), "could not be loaded"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer|could not be loaded"),
    ],
)
def test_a_broken_folder_is_named(folder, harm, says):
    harm(folder)
    with pytest.raises(UserError, match=says):
        try_load(folder)


def test_weights_that_do_not_fit_the_config_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"] + config["layer_types"][-1:]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="lack"):
        try_load(folder)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "nothing"])
def test_a_folder_that_is_not_there(path):
    with pytest.raises(UserError, match="which is no folder"):
        try_load(path)


def test_a_hub_that_cannot_be_reached_says_how_to_give_a_folder(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be reached for Qwen/Qwen3-1\.7B .* model\.path=/path/to/folder"):
        try_load("Qwen/Qwen3-1.7B")


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=1.0, initializer_range=1.0,
    )  # fmt: skip
    with pytest.raises(UserError, match="changes its logits after its output layer"):
        check_head(Gemma2ForCausalLM(config))


def test_dropout_is_off(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    model, _ = try_load(folder)
    model.train()
    ids = torch.tensor([[1, 20, 109, 6]])
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_what_ends_a_response_counts_as_special():
    learner = build_learner(settings())
    learner.policy.model.generation_config.eos_token_id = [2, 105]
    assert {0, 1, 2, 105} <= set(learner.policy.special_ids)


def test_bfloat16_keeps_float32_weights_that_small_steps_move():
    learner = build_learner(settings("dtype=bfloat16"))
    model = learner.policy.model
    before = [p.detach().clone() for p in model.parameters()]
    assert all(p.dtype == torch.float32 for p in before)
    row = Row([1, 20, 109, 6, 7, 8, 111], [6, 105, 7])
    logp = response_logp(model, [row], 1.0)
    full = response_logp(build_learner(settings()).policy.model, [row], 1.0)
    assert logp.dtype == torch.float32
    assert 1e-4 < float((logp - full).detach().abs().max()) < 0.5  # it does compute in bfloat16
    (-logp.gather(-1, torch.tensor([[6], [105], [7]])).sum()).backward()
    learner.policy.step(1e-6, 1.0)
    moved = sum(int((a != b).sum()) for a, b in zip(before, model.parameters(), strict=True))
    assert moved > 0.5 * sum(p.numel() for p in before)


def test_a_checkpoint_folder_loads_in_transformers(tmp_path):
    learner = build_learner(settings())
    learner.policy.save(tmp_path)
    model, tokenizer = try_load(tmp_path)
    for a, b in zip(learner.policy.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert tokenizer.eos_token_id == 2
