"""What the tests of both vLLM engines share: tiny models, and how far vLLM's log-probabilities are from the trainer's."""

from __future__ import annotations

from typing import Any

import torch

from rlrt.engines.hf import truncated
from rlrt.model.forward import Row, evaluating, response_logp
from rlrt.types import Generation, Sampling

STOP = [7, 11]
LONG = [[20 + i] + [(3 * i + 5 * t) % 300 + 20 for t in range(64)] for i in range(2)]
"""Prompts of 65 tokens: two whole blocks of the cache, and one token more."""
RAGGED = [*LONG, [30, 31, 32], [40] * 33]
KEYS = {"max_new_tokens": 24, "temperature": 1.0, "max_rows": 64, "grade_truncated": False, "importance_clip": 2.0}
"""Keys of both engines."""


def tiny(folder: Any, tied: bool) -> Any:
    """A two-layer Qwen3 with random weights as a run loads it."""
    from rlrt.model.load import load
    from tests.hub import model_folder

    model, _ = load(str(model_folder(folder, "base", tied=tied)), None, "sdpa")
    return model


def train_a_little(model: Any) -> None:
    """One optimiser step that moves the model well away."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.randint(20, 300, (4, 32), generator=torch.Generator().manual_seed(0))
    model(ids, labels=ids).loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def seeds(count: int, prompts: Any = RAGGED) -> list[list[int]]:
    """As large as the seeds of a run."""
    return [[2**62 + 100 * i + g for g in range(count)] for i in range(len(prompts))]


def sampled(engine: Any, prompts: Any, given: Any, *more: Any) -> list[list[Generation]]:
    """All generations, prompt by prompt; each of them comes once."""
    got = {(i, g): generation for i, g, generation in engine.sample(prompts, given, *more)}
    assert len(got) == sum(map(len, given))
    return [[got[i, g] for g in range(len(given[i]))] for i in range(len(prompts))]


def ids(groups: list[list[Generation]]) -> list[list[list[int]]]:
    """The tokens alone."""
    return [[g.token_ids for g in group] for group in groups]


@torch.no_grad()
def gap(model: Any, prompts: Any, groups: list[list[Generation]], sampling: Sampling | None = None) -> float:
    """The largest difference between vLLM's and the trainer's log-probability of a sampled token."""
    how = sampling or Sampling(1.0)
    rows = [Row(prompt, g.token_ids) for prompt, group in zip(prompts, groups, strict=True) for g in group]
    with evaluating(model):
        logp_NV = truncated(response_logp(model, rows, how.temperature or 1.0), how)
    token_N = torch.tensor([t for row in rows for t in row.response_ids])
    mine = logp_NV.gather(-1, token_N[:, None])[:, 0]
    theirs = torch.cat([g.logp_T for group in groups for g in group])
    return float((mine - theirs).abs().max())
