from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlrt.errors import UserError
from rlrt.execution.build import build_learner
from rlrt.model.forward import Row, response_logp
from rlrt.model.load import load, set_stop_tokens
from rlrt.model.paths import check_head
from rlrt.model.policy import Policy
from rlrt.paths import EMBEDDED, local_folder
from tests.helpers import settings
from tests.hub import model_folder


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


def test_a_special_token_that_is_not_in_the_vocabulary_is_none(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": 3, "pad_token": "nowhere"}))
    try:
        model, words = try_load(folder)
    except UserError:
        return
    assert all(isinstance(i, int) for i in Policy(model, words, None, 1.0).special_ids)


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


def test_a_token_that_the_model_does_not_embed_is_refused(tmp_path):
    folder = model_folder(tmp_path / "m", "hybrid")
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["<new1>", "<new2>", "<new3>"])
    words.save_pretrained(folder)
    load(str(folder), None, "sdpa")  # the rows that the vocabulary is padded with
    words.add_tokens(["<new4>"])
    words.save_pretrained(folder)
    with pytest.raises(
        UserError, match=r"has the token '<new4>' with the id 404, and the model embeds ids of 0 to 403"
    ):
        load(str(folder), None, "sdpa")


@pytest.mark.parametrize("differs", [True, False])
def test_an_output_layer_of_its_own_under_a_flag_that_says_tied(tmp_path, differs, caplog):
    """What is trained is what a loader that trusts the flag of a checkpoint serves."""
    folder = model_folder(tmp_path / "m", "hybrid", tied=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    if not differs:
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model, words = load(str(folder), None, "sdpa")
    ids = torch.tensor([[5, 6, 7]])
    saved = tmp_path / "saved"
    Policy(model, words, None, 1.0).save(saved)
    again = AutoModelForCausalLM.from_pretrained(saved)
    assert torch.equal(again(ids).logits, model(ids).logits)
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied == again.config.tie_word_embeddings
    assert "have an output layer of their own" in caplog.text or tied


@pytest.mark.parametrize(
    ("own", "words_end", "typed", "found"),
    [
        ([2], "<|im_end|>", None, None),
        (None, "<|im_end|>", None, None),  # the tokenizer's own
        (None, None, None, "no token ends a response"),
        ("x", "<|im_end|>", None, "expected ids of 0 to 403 as eos_token_id .*got 'x'"),
        (True, "<|im_end|>", None, r"got \[True\]"),
        ([2, 900], "<|im_end|>", None, r"got \[2, 900\]"),
        (None, None, ["<|im_end|>"], None),
        (None, None, ["\n"], None),  # a text that is one token
        (None, None, ["\n\n\n of"], r"'\\n\\n\\n of' is no token of this model's tokenizer \(\d tokens spell it\)"),
        (None, None, [], "no token ends a response"),
        (None, None, [""], "is no token"),
    ],
)
def test_which_token_ends_a_response(tmp_path, own, words_end, typed, found):
    folder = model_folder(tmp_path / "m", "hybrid")
    model, words = load(str(folder), None, "sdpa")
    model.generation_config.eos_token_id = own
    words.eos_token = words_end
    if found is None:
        set_stop_tokens(model, words, typed)
        ids = Policy(model, words, None, 1.0).stop_ids
        assert words.decode(ids) == (typed or ["<|im_end|>"])[0]
    else:
        with pytest.raises(UserError, match=found):
            set_stop_tokens(model, words, typed)


def test_a_newline_is_found_where_the_tokenizer_puts_a_space_before_every_text():
    """As those of Llama 2 and Mistral do: a newline alone is spelled by two tokens, and there is a token for it."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    from rlrt.model.load import stop_id

    words = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "a": 2, "<0x0A>": 3}, [], unk_token="<unk>", byte_fallback=True))
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert len(tokenizer("\n", add_special_tokens=False)["input_ids"]) == 2
    assert (stop_id(tokenizer, "\n"), stop_id(tokenizer, "<0x0A>")) == (3, 3)
    with pytest.raises(UserError, match=r"'\\n\\n' is no token of this model's tokenizer"):
        stop_id(tokenizer, "\n\n")


@pytest.mark.parametrize("spelling", ["~/models/tiny", "~/run"])
def test_a_path_of_the_home_folder(tmp_path, monkeypatch, spelling):
    monkeypatch.setenv("HOME", str(tmp_path))
    model_folder(tmp_path / "models" / "tiny", "hybrid")
    model_folder(tmp_path / "run" / "checkpoints" / "step_3", "hybrid")
    model, _ = load(spelling, None, "sdpa")
    assert model.config.num_hidden_layers == 2
    assert local_folder(spelling).is_dir()
    with pytest.raises(UserError, match=r"got '~/nowhere', which is no folder"):
        load("~/nowhere", None, "sdpa")
