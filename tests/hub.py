"""Small folders in the hub's own formats: models with tokenizer files and Qwen3's chat layouts, data as parquet and JSONL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
ASK = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
SWITCH = (
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
LAYOUTS = {
    "hybrid": HEAD + ASK + SWITCH + "{%- endif %}",
    "instruct": HEAD + ASK + "{%- endif %}",
    "thinking": HEAD + ASK + "{{- '<think>\\n' }}{%- endif %}",
    "base": None,
}
"""What Qwen3's published tokenizers write around one user message, in our words."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>"]
CORPUS = [
    "Natalia has 3 apples and buys 4 more apples. How many apples does she have?",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Correct solution: Correctly solve the original question. 3 + 4 = 7 so the answer is \\boxed{7}.",
    "user assistant system 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
] * 20


def tokenizer(layout: str) -> Any:
    """A byte-level BPE tokenizer of ours with Qwen3's special tokens and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|endoftext|>" if layout == "base" else "<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if LAYOUTS[layout] is not None:
        made.chat_template = LAYOUTS[layout]
    return made


def model_folder(folder: Path, layout: str, positions: int = 512, seed: int = 0, tied: bool = True) -> Path:
    """A two-layer Qwen3 with random weights, its tokenizer and generation config, as ``save_pretrained`` writes them."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    words = tokenizer(layout)
    config = Qwen3Config(
        vocab_size=len(words) + 3,  # padded, as the published ones are
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=128,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def problem(a: int, b: int) -> tuple[str, str]:
    """A GSM8K-like question, and its solution as GSM8K writes it."""
    return (
        f"Natalia has {a} apples and buys {b} more apples. How many apples does she have?",
        f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}",
    )


def gsm8k_folder(folder: Path) -> Path:
    """GSM8K's layout on the hub: ``main/train-*.parquet`` and ``main/test-*.parquet`` with question and answer."""
    import pyarrow
    import pyarrow.parquet

    pairs = [(a, b) for a in range(1, 6) for b in range(1, 6)]
    parts = {"train": [p for p in pairs if sum(p) % 5], "test": [p for p in pairs if sum(p) % 5 == 0]}
    (folder / "main").mkdir(parents=True)
    for name, chosen in parts.items():
        rows = [problem(*pair) for pair in chosen]
        table = pyarrow.table({"question": [q for q, _ in rows], "answer": [a for _, a in rows]})
        pyarrow.parquet.write_table(table, folder / "main" / f"{name}-00000-of-00001.parquet")
    return folder


def jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as lines of JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
