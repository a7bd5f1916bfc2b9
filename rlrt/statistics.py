"""Estimates with their intervals. Sources stand at each function."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased pass@k of one prompt: 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374, eq. 1).

    Args:
        samples: n, rollouts of the prompt.
        correct: c, how many of them are correct.
        k: at most n.

    Raises:
        ValueError: for k over n or c over n.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"expected 0 <= correct <= samples and 1 <= k <= samples, got {correct}, {samples}, {k}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def ladder(samples: int) -> list[int]:
    """The k of pass@k that are reported: powers of two up to ``samples``, and ``samples``."""
    ks, k = [], 1
    while k < samples:
        ks.append(k)
        k *= 2
    return [*ks, samples]


def mean_and_halfwidth(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean over seeds and half the width of its interval by Student's t; the half-width of one value is infinite.

    A percentile bootstrap over 3-5 seeds would cover 73-83 % only.
    """
    from scipy.stats import t

    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.inf
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, float(t.ppf((1 + level) / 2, n - 1)) * math.sqrt(variance / n)
