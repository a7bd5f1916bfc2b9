"""The training recipe: a Qwen3 of 155,264 parameters learns countdown in two phases.

Phase A teaches search and arithmetic on correct single attempts; phase B mixes in wrong attempts, second tries and the
teacher's format (``rlrt.pretrain.rows`` explains what they teach). Muon on the matrices, AdamW on the rest. One thread:
the same seed gives the same weights on the same machine.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

from rlrt.pretrain.rows import Mixture
from rlrt.pretrain.tokenizer import TOKEN_ID


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
        steps: number of optimiser steps.
        teacher_share: share of steps on the teacher's format.
        mixture: shape of the answers, of the kind that the rows take.
        decays: True for a cosine to 5 % of the learning rate, False for a constant rate after a warm-up of 50 steps.
    """

    steps: int
    teacher_share: float
    mixture: Any
    decays: bool


class Drawn(Protocol):
    """Draws batches of rows: token ids (rows, tokens), mask of the answers' tokens, length of the prompts."""

    @property
    def token_id(self) -> Mapping[str, int]:
        """The vocabulary."""

    def student(self, size: int, mixture: Any) -> tuple[Tensor, Tensor, int]:
        """Draw rows without an example."""

    def teacher(self, size: int, mixture: Any) -> tuple[Tensor, Tensor, int]:
        """Draw rows with an example between prompt and answer."""


@dataclass(frozen=True)
class Recipe:
    """All hyperparameters of the recipe. ``initializer_range=0.1`` matters: 0.02 learns far slower at this size."""

    seed: int = 0
    learning_rate: float = 6e-3
    weight_decay: float = 0.01
    batch: int = 64
    hidden: int = 64
    layers: int = 3
    feed_forward: int = 192
    heads: int = 2
    initializer_range: float = 0.1
    phases: tuple[Phase, ...] = (
        Phase(4600, 0.15, Mixture(p_good=1.0, p_again=0.0, p_copy=0.8, max_attempts=1), decays=False),
        Phase(3000, 0.5, Mixture(p_good=0.45, p_again=0.4, p_copy=0.85, max_attempts=3), decays=True),
    )


def new_model(recipe: Recipe, token_id: Mapping[str, int] = TOKEN_ID) -> Any:
    """Return an untrained Qwen3 of the recipe's size, for a vocabulary."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(token_id),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=recipe.initializer_range,
            pad_token_id=token_id["<pad>"],
            bos_token_id=token_id["<bos>"],
            eos_token_id=token_id["<eos>"],
        )
    )


def optimisers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, and AdamW for embedding and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    matrix_ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in matrix_ids]
    return [
        torch.optim.Muon(
            matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def learning_rate_factor(phase: Phase, step: int) -> float:
    """Return the factor on the learning rate at ``step`` of the phase, counted from 0."""
    if phase.decays:
        return 0.5 * (1 + math.cos(math.pi * step / phase.steps)) * 0.95 + 0.05
    return min(1.0, (step + 1) / 50)


def train(recipe: Recipe, rows: Drawn, log: Callable[[str], None], model: Any = None) -> Any:
    """Return a model trained by the recipe.

    Args:
        recipe: hyperparameters.
        rows: what it learns from.
        log: function that prints a line about the progress.
        model: the one to go on from; None: a new one, whose vocabulary is the rows'.
    """
    torch.set_num_threads(1)
    model = new_model(recipe, rows.token_id) if model is None else model.train()
    opts = optimisers(model, recipe)
    format_generator = random.Random(recipe.seed)
    started, done = time.monotonic(), 0
    total = sum(phase.steps for phase in recipe.phases)
    for phase in recipe.phases:
        for step in range(phase.steps):
            loss = one_step(model, opts, rows, phase, recipe, step, format_generator.random() < phase.teacher_share)
            done += 1
            if done % 200 == 0 or done == total:
                log(f"step {done}/{total}  loss {loss:.3f}  {time.monotonic() - started:.0f} s")
    return model.eval()


def one_step(
    model: Any,
    opts: list[torch.optim.Optimizer],
    rows: Drawn,
    phase: Phase,
    recipe: Recipe,
    step: int,
    as_teacher: bool,
) -> float:
    """Do one optimiser step and return the mean cross-entropy of the answers' tokens, nats."""
    for optimiser in opts:
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_factor(phase, step)
    draw = rows.teacher if as_teacher else rows.student
    ids, mask, start = draw(recipe.batch, phase.mixture)
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[:, start - 1 :]
    loss = functional.cross_entropy(model.lm_head(hidden[mask]).float(), ids[:, start:][mask])
    for optimiser in opts:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in opts:
        optimiser.step()
    return float(loss.detach())
