"""Seeds derived from names, never from call order: two streams overlap only if a hash collides."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive(seed: int, *parts: object) -> int:
    """Return a seed in 0..2^63-1 from the run's seed and a stream's name (for example ``"rollout", step, prompt, sample``)."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *parts: object) -> torch.Generator:
    """Return a CPU generator for one stream."""
    return torch.Generator().manual_seed(derive(seed, *parts))


def uniforms(seeds: list[int], count: int) -> Tensor:
    """Draw (len(seeds), count) float64 numbers in [0, 1); each row depends only on its own seed."""
    rows = torch.empty(len(seeds), count, dtype=torch.float64)
    g = torch.Generator()
    for i, seed in enumerate(seeds):
        torch.rand(count, generator=g.manual_seed(seed), dtype=torch.float64, out=rows[i])
    return rows


def permutation(size: int, seed: int, *parts: object) -> list[int]:
    """Return a random permutation of ``range(size)``."""
    return torch.randperm(size, generator=generator(seed, *parts)).tolist()
