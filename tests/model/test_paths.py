"""Which models take the quick paths: quick equals plain, or plain is chosen with a reason."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers

from rlrt.engines.cached import CachedDecoder
from rlrt.errors import UserError
from rlrt.execution.memory.sizes import sizes_of
from rlrt.model import packed, paths
from rlrt.model.dense import DenseDecoder
from rlrt.model.device import description
from rlrt.model.forward import plain_hidden, response_hidden
from rlrt.model.paths import Paths, check_head, choose, decodes_quickly, foreseen, paths_of, small_model
from tests.conftest import ROOT
from tests.model.test_forward import grads, ragged_rows
from tests.training.test_update import close

BASE = {
    "vocab_size": 112, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
QUICK = {
    "llama": ("Llama", {}),
    "llama, untied": ("Llama", {"tie_word_embeddings": False}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3's positions": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, wide heads": ("Llama", {"head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": YARN, "max_position_embeddings": 128}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 with biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "mistral without windows": ("Mistral", {"sliding_window": None}),
}
PACKED = {
    "olmo2": (
        "Olmo2",
        {},
        "its layers have other modules than the decoder's: input_layernorm, post_feedforward_layernorm",
    ),
    "smollm3": ("SmolLM3", {}, "layer 3 differs from layer 0 in self_attn.use_rope"),
    "granite": ("Granite", {"residual_multiplier": 0.5}, "they differ by "),
    "gemma": ("Gemma", {"head_dim": 16}, "its embedding or output layer is of another kind"),
    "llama, dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "its rotary positions are of type dynamic",
    ),
    "llama, gelu": ("Llama", {"hidden_act": "gelu"}, "its activation is gelu"),
}
PLAIN = {
    "qwen3 with windows": ("Qwen3", {"head_dim": 16, **WINDOWS}, "config has sliding windows in 2 of 4 layers"),
    "qwen2 with windows": ("Qwen2", WINDOWS, "config has sliding windows in 2 of 4 layers"),
    "mistral": ("Mistral", {"sliding_window": 4}, "config has sliding windows in 4 layers"),
    "gemma3": ("Gemma3Text", {"head_dim": 16}, "config has sliding windows in 4 of 4 layers"),
    "gemma2": ("Gemma2", {"head_dim": 16, "final_logit_softcapping": None}, "model.attn_implementation is eager"),
    "qwen3 moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "its layers have no feed-forward network with gate_proj, up_proj, down_proj",
    ),
    "qwen3.5": (
        "Qwen3_5Text",
        {
            "head_dim": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        "config has linear attention in 3 of 4 layers",
    ),
    "phi3": ("Phi3", {}, "its layers have no attention with q_proj, k_proj, v_proj, o_proj"),
}  # fmt: skip


def config_of(kind, **more):
    return getattr(transformers, f"{kind}Config")(**BASE | more)


def model_of(kind, **more):
    """A tiny model whose biases and norms are no zeros and ones."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(kind, **more))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn(p.shape) * 0.3)
            elif p.dim() == 2:
                p.copy_(torch.randn(p.shape) * (1.0 if "embed" in name else p.shape[-1] ** -0.5))
    return model.eval()


def decoded(model, decoder_class, tokens=70):
    """Logits after ragged prompts and of 70 tokens, some rows dropped on the way."""
    prompts, draw = [[5, 9, 17, 30, 2, 8], [40]], torch.Generator().manual_seed(0)
    token_TB = torch.randint(3, 110, (tokens, 4), generator=draw)
    decoder = decoder_class(model)
    with torch.inference_mode():
        found = [decoder.start(prompts, [3, 1])]
        for t, token_B in enumerate(token_TB):
            if t == 30:
                decoder.keep(torch.tensor([0, 3]))
            found.append(decoder.step(token_B if t < 30 else token_B[[0, 3]]))
    return found


def check_packed(model):
    rows = ragged_rows(8)
    values = [f(model, rows) for f in (response_hidden, plain_hidden)]
    assert torch.allclose(*values, atol=1e-4)
    weight = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(0))
    one, other = (grads(model, (f(model, rows) * weight).sum()) for f in (response_hidden, plain_hidden))
    assert close(one, other)


@pytest.mark.parametrize("name", QUICK)
def test_a_plain_dense_model_takes_the_quick_paths_and_they_are_its_own(name):
    kind, more = QUICK[name]
    model = model_of(kind, **more)
    assert choose(model) == Paths("packed", "quick")
    check_packed(model)
    quick, plain = (decoded(model, decoder) for decoder in (DenseDecoder, CachedDecoder))
    for a, b in zip(quick, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", PACKED)
def test_a_model_with_other_layers_packs_its_rows_and_decodes_plainly(name):
    kind, more, reason = PACKED[name]
    model = model_of(kind, **more)
    found = choose(model)
    assert (found.attention, found.decoding) == ("packed", "plain")
    assert found.reasons["decoding"].startswith(reason)
    assert not decodes_quickly(model)
    check_packed(model)
    assert f"plain decoding ({found.reasons['decoding']}), 1 process" in description(model, torch.float32, 1)


@pytest.mark.parametrize("name", PLAIN)
def test_a_model_whose_rows_cannot_be_packed_takes_the_plain_paths_and_says_why(name):
    kind, more, reason = PLAIN[name]
    model = model_of(kind, **more)
    found = choose(model)
    assert (found.attention, found.decoding) == ("plain", "plain")
    assert found.reasons == {"attention": reason, "decoding": reason}
    assert not packed.enabled(model)
    kernel = model.config._attn_implementation
    line = description(model, torch.float32, 1)
    assert f"attention by {kernel} on padded rows ({reason}), plain decoding, 1 process" in line
    rows = ragged_rows(8)
    with torch.no_grad():
        assert torch.equal(response_hidden(model, rows), plain_hidden(model, rows))


@pytest.mark.parametrize(
    "name", [*QUICK, *PACKED, *(n for n in PLAIN if n != "gemma2")]
)  # Gemma2 itself asks for eager
def test_preflight_foresees_the_choice_from_the_config(name):
    kind, more, *_ = (QUICK | PACKED | PLAIN)[name]
    config = config_of(kind, **more)
    sizes = sizes_of(config)
    assert (sizes.packed, sizes.quick) == (name not in PLAIN, name in QUICK)


def test_linear_attention_decodes_with_transformers_cache():
    """Qwen3.5: ragged prompts, a group of three, rows dropped on the way; against the whole pass."""
    kind, more, _ = PLAIN["qwen3.5"]
    model = model_of(kind, **more)
    found = decoded(model, CachedDecoder)
    token_TB = torch.randint(3, 110, (70, 4), generator=torch.Generator().manual_seed(0))
    for prompt, column, place in (([5, 9, 17, 30, 2, 8], 0, 0), ([40], 3, -1)):
        with torch.no_grad():
            whole = model(torch.tensor([prompt + token_TB[:, column].tolist()])).logits[0, len(prompt) - 1 :]
        for one, other in zip(found, whole, strict=True):
            assert torch.allclose(one[place], other, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("size", ["qwen3_0.6b", "qwen3_8b", "qwen2.5_7b"])
def test_published_shapes_take_the_quick_paths(size):
    """By a model on the meta device: no weights are needed."""
    values = json.loads((ROOT / "tests" / "model" / "hub_configs" / f"{size}.json").read_text())
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values))
    assert foreseen(model, "sdpa") == Paths("packed", "quick")
    assert foreseen(model, "flash_attention_2").reasons["attention"] == "model.attn_implementation is flash_attention_2"


def test_the_check_finds_what_the_structure_does_not_show(monkeypatch, caplog):
    """A Llama whose layers scale what they add: same modules, another arithmetic."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: 1.01 * plain(self, x))
    monkeypatch.setattr(paths, "_known", {})
    found = choose(model_of("Llama"))
    assert (found.attention, found.decoding) == ("packed", "plain")
    assert "the quick decoder does not compute this model (they differ by 0.0" in caplog.text


def test_attention_that_reads_the_mask_itself_is_found(monkeypatch, caplog):
    """A model that does not hand ``packing`` down to its attention takes the plain path."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    plain = LlamaAttention.forward

    def without(self, *given, packing=None, **more):
        return plain(self, *given, **more | {"attention_mask": None})

    monkeypatch.setattr(LlamaAttention, "forward", without)
    monkeypatch.setattr(paths, "_known", {})
    model = model_of("Llama")
    found = choose(model)
    assert (found.attention, found.decoding) == ("plain", "plain")
    assert found.reasons["attention"].startswith("they differ by ")
    assert not packed.enabled(model)
    assert "packed attention is not the model's own" in caplog.text


def test_a_check_that_fails_leaves_the_plain_path(monkeypatch):
    monkeypatch.setattr(paths, "_known", {})
    monkeypatch.setattr(paths, "small_model", lambda model: 1 / 0)
    found = choose(model_of("Llama"))
    assert found.attention == "plain"
    assert found.reasons["attention"] == "no small model of its config could be made for the check (division by zero)"


def test_a_config_is_checked_once_in_a_process(monkeypatch):
    made = []
    monkeypatch.setattr(paths, "_known", {})
    monkeypatch.setattr(paths, "small_model", lambda model: made.append(1) or small_model(model))
    first, second, other = model_of("Llama"), model_of("Llama"), model_of("Llama", attention_bias=True)
    before = torch.get_rng_state()
    assert [choose(model) for model in (first, second, other)] == [Paths("packed", "quick")] * 3
    assert torch.equal(torch.get_rng_state(), before)  # random weights of the check are drawn elsewhere
    assert len(made) == 2


def test_the_small_model_is_small_and_has_the_models_heads():
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config_of("Qwen3", hidden_size=4096, intermediate_size=12288, num_attention_heads=32, head_dim=128)
        )
    small = small_model(model)
    attention = small.base_model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (32 * 128, 64)
    assert sum(p.numel() for p in small.parameters()) < 2e6
    assert model.config.hidden_size == 4096


def test_copies_take_the_paths_of_their_model():
    from rlrt.engines.hf import replica

    model = model_of("Llama")
    choose(model)
    assert paths_of(copy.deepcopy(model)) == paths_of(replica(model, None)) == Paths("packed", "quick")
    assert decodes_quickly(replica(model, None))
    assert paths_of(model_of("Llama")) == Paths()  # nobody asked


def test_a_model_that_changes_its_logits_is_refused_by_its_small_model_too():
    with pytest.raises(UserError, match="changes its logits after its output layer"):
        choose(model_of("Granite", logits_scaling=4.0))
    check_head(model_of("Granite"))


def test_the_head_is_checked_in_one_pass():
    model = model_of("Llama")
    passes = []
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    check_head(model)
    assert len(passes) == 1
