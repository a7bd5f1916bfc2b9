"""Models in the hub's format: what a prompt becomes in each style, where a response begins, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlrt.engines.engine import Engine
from rlrt.errors import UserError
from rlrt.execution.build import build_learner
from rlrt.execution.data import check_prompts, drop_long_prompts
from rlrt.execution.parts import parts_of
from rlrt.model.lora import adapters, add_adapters, named_weights
from rlrt.model.policy import adamw
from rlrt.model.prompting import PromptBuilder
from rlrt.model.twin import twin
from rlrt.sampling.sampler import Sampler
from rlrt.types import Generation, Grade, Prompt
from tests.helpers import MODELS, settings
from tests.hub import gsm8k_folder, model_folder, tokenizer

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
PROMPT = Prompt("1", "What is 3 + 4?", "7", instruction=BOXED)
USER = f"<|im_start|>user\nWhat is 3 + 4?\n{BOXED}<|im_end|>\n<|im_start|>assistant\n"
STYLES = [
    ("qwen3_4b_base", "base", (), f"What is 3 + 4?\n{BOXED}\n", ""),
    ("qwen3_4b_base_chat", "hybrid", (), USER, ""),
    ("qwen3_4b", "hybrid", (), USER + "<think>\n\n</think>\n\n", ""),
    ("qwen3_4b", "hybrid", ("model.thinking=true",), USER, ""),
    ("qwen3_4b_instruct", "instruct", (), USER, ""),
    ("qwen3_4b_thinking", "thinking", (), USER + "<think>\n", "<think>"),
]
PUBLISHED = {  # parameters in all and without embeddings, in billions, as on the models' pages on the hub
    "qwen3_0.6b": (0.6, 0.44),
    "qwen3_1.7b": (1.7, 1.4),
    "qwen3_4b": (4.0, 3.6),
    "qwen3_8b": (8.2, 6.95),
    "qwen2.5_0.5b": (0.49, 0.36),
    "qwen2.5_1.5b": (1.54, 1.31),
    "qwen2.5_3b": (3.09, 2.77),
    "qwen2.5_7b": (7.6, 6.53),
}


QWEN = [m for m in MODELS if m.startswith("qwen")]


def builder(model, layout, *more):
    made = settings(f"model={model}", "method=rlrt", *more)
    config = made.model
    return PromptBuilder(
        tokenizer(layout), config.style, config.prompt_template, config.thinking, made.teacher.template
    )


@pytest.mark.parametrize(("model", "layout", "more", "written", "opening"), STYLES)
def test_the_prompt_of_every_style_and_where_the_response_begins(model, layout, more, written, opening):
    words, made = tokenizer(layout), builder(model, layout, *more)
    student = made.student(PROMPT)
    assert words.decode(student) == written
    assert made.opening == opening
    assert made.teacher(PROMPT, "") == made.teacher(PROMPT, " \n") == student
    teacher = words.decode(made.teacher(PROMPT, "It is \\boxed{7}."))
    body = "What is 3 + 4?\nCorrect solution:\n\nIt is \\boxed{7}.\n\nCorrectly solve the original question."
    assert teacher == written.replace("What is 3 + 4?", body)
    made.check_parity([PROMPT])


def test_think_marks_are_single_tokens_and_so_the_boundary_is_the_same_whatever_follows():
    words, made = tokenizer("thinking"), builder("qwen3_4b_thinking", "thinking")
    ids = made.student(PROMPT)
    together = words(words.decode(ids) + "so 7</think>7<|im_end|>", add_special_tokens=False)["input_ids"]
    assert together[: len(ids)] == ids
    assert words.convert_tokens_to_ids("<think>") in ids


def test_a_problem_that_says_how_to_answer_gets_no_instruction():
    bare = Prompt("1", "What is 3 + 4? Answer with a number.", "7")
    words = tokenizer("base")
    assert words.decode(builder("qwen3_4b_base", "base").student(bare)) == "What is 3 + 4? Answer with a number.\n"


def test_parity_refuses_a_template_that_differs_from_call_to_call():
    words = tokenizer("instruct")
    count = iter(range(10**6))
    plain = words.apply_chat_template
    words.apply_chat_template = lambda messages, **options: f"{plain(messages, **options)}{next(count)}"
    made = PromptBuilder(words, "chat", "{prompt}", None, "{prompt} {solution}")
    with pytest.raises(UserError, match=r"teacher\.template: an empty context must give .* problem 1 it does not"):
        made.check_parity([PROMPT])


def test_parity_refuses_ends_that_differ():
    made = PromptBuilder(tokenizer("base"), "plain", "{prompt}", None, "{prompt}\n{solution}!")
    with pytest.raises(UserError, match=r"teacher\.template: .* ends in '!', the student's in '\?'"):
        made.check_parity([PROMPT])


@pytest.mark.parametrize(
    ("model", "layout", "more", "says"),
    [
        (
            "qwen3_4b_instruct",
            "instruct",
            ("model.thinking=true",),
            r"model\.thinking: this model's chat template has no",
        ),
        ("qwen3_4b_base", "base", ("model.thinking=false",), r"model\.thinking: style plain has no thinking switch"),
        ("qwen3_4b", "base", (), r"model\.style=chat needs a tokenizer with a chat template"),
    ],
)
def test_what_a_template_cannot_do_is_refused(model, layout, more, says):
    with pytest.raises(UserError, match=says):
        builder(model, layout, *more)


def test_an_unended_thought_is_no_answer(tmp_path):
    """The template of a thinking model has written <think>: a response without its end is all thought."""
    folder = model_folder(tmp_path / "m", "thinking")
    made = settings(
        "model=qwen3_4b_thinking",
        f"model.path={folder}",
        "data=gsm8k",
        "data.path=x",
        "data.verifier=exact",
        "engine.max_new_tokens=32",
        "model.context_length=512",
        "method=rlrt",
    )
    learner = build_learner(made)
    texts = iter(["the answer is \\boxed{7}", "hm</think>\\boxed{7}"])

    class Fixed(Engine):
        max_new_tokens, temperature = 32, 1.0

        def load(self, model, stop_ids, version):
            self.stop = stop_ids

        def sample(self, prompts, seeds, sampling=None):
            encode = learner.policy.tokenizer
            for g in range(len(seeds[0])):
                ids = encode(next(texts))["input_ids"]
                yield 0, g, Generation(ids, torch.zeros(len(ids)), torch.zeros(len(ids)), False)

    engine = Fixed()
    rollouts = Sampler(engine, learner.policy, learner.builder, made.data, seed=0)([PROMPT], 2, ("train", 1))
    assert [r.grade for r in rollouts] == [Grade(False, 0.0), Grade(True, 1.0)]
    names = learner.policy.tokenizer.convert_ids_to_tokens(engine.stop)
    assert names == ["<|im_end|>", "<|endoftext|>"]


def test_stop_tokens_go_with_the_checkpoint_and_unknown_ones_are_refused(tmp_path):
    folder = model_folder(tmp_path / "m", "hybrid")
    learner = build_learner(settings("model=qwen3_4b", f"model.path={folder}", "model.context_length=512"))
    learner.policy.save(tmp_path / "saved")
    words = learner.policy.tokenizer
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [words.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    with pytest.raises(UserError, match=r"model\.stop_tokens: '<end>' is no token"):
        build_learner(settings("model=hf", f"model.path={folder}", "model.stop_tokens=['<end>']"))


def test_prompt_and_response_must_fit_the_context(tmp_path):
    folder = model_folder(tmp_path / "m", "hybrid", positions=128)
    data = gsm8k_folder(tmp_path / "gsm8k")
    base = ("model=hf", f"model.path={folder}", "data=gsm8k", f"data.path={data}", "method=rlrt")
    with pytest.raises(UserError, match=r"model\.context_length: expected at most the model's 128 positions, got 4096"):
        build_learner(settings(*base, "model.context_length=4096"))
    made = settings(*base, "engine.max_new_tokens=100")
    learner = build_learner(made)
    parts = parts_of(made)
    parts.task.prepare()
    drop_long_prompts(parts.task, learner.builder)
    with pytest.raises(UserError, match=r"engine\.max_new_tokens: a prompt of \d+ tokens and a response of 100 do not"):
        check_prompts(parts, learner)


def published_config(model):
    file = Path(__file__).parent / "hub_configs" / f"{model}.json"
    return AutoConfig.for_model(**json.loads(file.read_text()))


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_parameter_counts_at_full_size_are_the_published_ones(model):
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(published_config(model))
    weights = set(made.parameters())
    total = sum(p.numel() for p in weights)
    embeddings = {made.get_input_embeddings().weight, made.get_output_embeddings().weight}
    rest = total - sum(p.numel() for p in embeddings)
    said, without = PUBLISHED[model]
    assert round(total / 1e9, len(str(said).split(".")[1])) == said
    assert round(rest / 1e9, len(str(without).split(".")[1])) == without


@pytest.mark.parametrize(
    "name", [m for m in QWEN if m.startswith("qwen3")] + ["qwen2.5_7b_base", "qwen2.5_math_1.5b_base"]
)
def test_a_model_composes_at_full_size_on_the_meta_device(name):
    """Adapters, optimiser, teacher and output layer of every shipped model, without a byte of weights."""
    made = settings(f"model={name}", "method=sd", "model.lora=16")
    size = next(m for m in PUBLISHED if name.replace("_math", "").startswith(m))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(published_config(size))
    total = sum(p.numel() for p in model.parameters())
    add_adapters(model, made.model.lora, made.model.lora_alpha, made.model.lora_targets, made.seed)
    small = sum(p.numel() for p in adapters(model).values())
    layers, config = model.config.num_hidden_layers, model.config
    head_dim = model.base_model.layers[0].self_attn.head_dim
    heads, kv = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    ins_and_outs = (
        2 * (config.hidden_size + heads)
        + 2 * (config.hidden_size + kv)
        + 3 * (config.hidden_size + config.intermediate_size)
    )
    assert small == 16 * layers * ins_and_outs
    assert sum(p.numel() for p in model.parameters()) == total + small
    optimiser = adamw(model, made.train.lr, (0.9, 0.99), 0.0)
    assert sum(p.numel() for g in optimiser.param_groups for p in g["params"]) == small
    assert not any(p.requires_grad for p in twin(model, moves=True).parameters())
    hidden = model.base_model(input_ids=torch.zeros(2, 8, dtype=torch.long, device="meta")).last_hidden_state
    assert model.get_output_embeddings()(hidden).shape == (2, 8, config.vocab_size)
    names = [name for name, _ in named_weights(model)]
    assert names
    assert not any("lora" in name or "base_layer" in name for name in names)


@pytest.mark.parametrize("name", QWEN)
def test_every_shipped_model_says_its_facts(name):
    model = settings(f"model={name}").model
    assert len(model.revision) == 40
    assert model.context_length in ((4096,) if "math" in name else (32768, 40960, 262144))
    assert model.stop_tokens[-1] == "<|endoftext|>"
    assert model.style == ("plain" if name.endswith("_base") else "chat")
    if name.removesuffix("_chat").endswith("_base"):
        assert (model.sampling_temperature, model.sampling_top_p, model.sampling_top_k) == (1.0, 1.0, 0)
    else:
        thinks = name.endswith("thinking")
        assert (model.sampling_temperature, model.sampling_top_p) == ((0.6, 0.95) if thinks else (0.7, 0.8))


def test_recommended_sampling_follows_the_thinking_switch():
    model = settings("model=qwen3_8b", "model.thinking=true").model
    assert (model.sampling_temperature, model.sampling_top_p, model.sampling_top_k) == (0.6, 0.95, 20)
