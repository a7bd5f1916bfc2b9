"""What both sides of a comparison work on: a checkpoint, prompts, a reward, lengths, precision, threads."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.tasks.base import Task
from rlrt.types import Grade, Prompt

EMBEDDED = Path(__file__).parents[2] / "rlrt" / "embedded"
STILL = 1e-12
"""A learning rate at which no weight moves: every repetition samples from the same distribution, on both sides."""


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        name: how it is called in tables.
        folder: the checkpoint.
        dtype: float32 or bfloat16 (autocast over float32 weights).
        threads: of torch.
        max_new_tokens: longest response.
        prompts, samples: prompts of a step, rollouts of each.
        coin: reward a response by a coin that its text tosses (for weights that know nothing), instead of the task's verifier.
        config: overrides that choose model and data, where these are not the embedded ones.
    """

    name: str
    folder: str
    dtype: str = "float32"
    threads: int = 1
    max_new_tokens: int = 48
    prompts: int = 16
    samples: int = 8
    coin: bool = False
    config: tuple[str, ...] = ()


def coin(text: str) -> bool:
    """Heads or tails, by the text alone."""
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 0


def small(folder: Path) -> Path:
    """An 18.9M-parameter Qwen3 with random weights and the embedded model's tokenizer, written to ``folder``."""
    return random_qwen3(folder, hidden=512, inner=1536, layers=6, heads=8, key_heads=4)


def random_qwen3(folder: Path, hidden: int, inner: int, layers: int, heads: int, key_heads: int) -> Path:
    """A Qwen3 with random weights and the embedded model's tokenizer, written to ``folder``; heads of 64."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(EMBEDDED)
    config.update({"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers})
    config.update({"num_attention_heads": heads, "num_key_value_heads": key_heads, "head_dim": 64})
    config.update({"layer_types": ["full_attention"] * layers, "initializer_range": 0.02})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    for file in EMBEDDED.glob("token*.json"):
        shutil.copy(file, folder)
    shutil.copy(EMBEDDED / "generation_config.json", folder)
    return folder


class Coin(Task):
    """A task's prompts with a verifier that tosses a coin."""

    def __init__(self, task: Any) -> None:
        self.train, self.heldout = task.train, task.heldout

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """Correct by ``coin``."""
        return Grade(coin(text), float(coin(text)))

    def canonical(self, prompt: Prompt, text: str) -> str:
        """The text itself."""
        return text


def settings_of(case: Case, *overrides: str) -> Any:
    """The settings of a run on a case, tracking off, its task prepared.

    Raises:
        UserError: for a case that the config refuses.
    """
    from rlrt.config.compose import composer, plain_of
    from rlrt.config.load import load

    fixed = [
        *case.config,
        f"model.path='{case.folder}'",
        f"dtype={case.dtype}",
        f"threads={case.threads}",
        "tracking=none",
    ]
    fixed += [f"engine.max_new_tokens={case.max_new_tokens}", f"train.prompts_per_step={case.prompts}"]
    fixed += [f"train.rollouts_per_prompt={case.samples}", f"train.lr={STILL}", "train.steps=100000"]
    fixed += ["train.eval_every=0", "train.save_every=0", *overrides]
    with composer() as compose:
        settings = load(plain_of(compose(fixed))[0])
    if not hasattr(settings.data, "prepare"):
        raise UserError("benchmarks/speed: expected a task that can be read beforehand.")
    settings.data.prepare()
    if case.coin:
        settings = dataclasses.replace(settings, data=Coin(settings.data))
    return settings
