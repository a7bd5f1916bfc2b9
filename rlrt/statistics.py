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


def bootstrap_intervals(
    strata: Sequence[Sequence[Sequence[float]]], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[tuple[float, float, float]]:
    """Means over strata of their means, each with a percentile bootstrap interval over the problems inside (Efron 1979).

    For problems, of which there are dozens or hundreds; over 3-5 seeds it would cover far too little. All figures share
    their draws.

    Args:
        strata: for every benchmark, for every problem of it, one value for each figure; each benchmark counts alike.
        level: of the interval.
        resamples: draws of as many problems, with replacement, from each benchmark.
        seed: of the draws: the same values give the same interval.

    Returns:
        for every figure its mean, and the lower and the upper end of its interval.
    """
    import numpy

    generator = numpy.random.default_rng(seed)
    tables = [numpy.asarray(values, dtype=float) for values in strata]
    total = numpy.zeros((resamples, tables[0].shape[1]))
    for table in tables:
        count = len(table)
        total += generator.multinomial(count, [1 / count] * count, size=resamples) @ table / count
    low, high = numpy.quantile(total / len(tables), [(1 - level) / 2, (1 + level) / 2], axis=0)
    mean = sum(table.mean(axis=0) for table in tables) / len(tables)
    return [(float(m), float(a), float(b)) for m, a, b in zip(mean, low, high, strict=True)]


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


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half: a quarter of the values (rounded down) left out at each end (arXiv 2108.13264)."""
    from scipy.stats import trim_mean

    return float(trim_mean(values, 0.25))


def probability_of_improvement(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of all pairs, one value of each side, in which mine is larger; ties count half (arXiv 2108.13264, eq. 4)."""
    better = sum((a > b) + 0.5 * (a == b) for a in mine for b in theirs)
    return better / (len(mine) * len(theirs))


def seeds_needed(gaps: Sequence[float], power: float = 0.8, level: float = 0.05, most: int = 10_000) -> int | None:
    """Pairs of seeds at which a two-sided paired t test would find a difference like the observed one.

    Args:
        gaps: paired differences.
        power: chance of finding it.
        level: chance of finding one where there is none.
        most: no larger number is looked for.

    Returns:
        the smallest number, by the noncentral t distribution; None where the differences give no spread or no mean.
    """
    from scipy.stats import nct, t

    if len(gaps) < 2:
        return None
    mean = math.fsum(gaps) / len(gaps)
    spread = math.sqrt(math.fsum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1))
    if spread == 0 or mean == 0:
        return None

    def found(n: int) -> float:
        critical, shift = float(t.ppf(1 - level / 2, n - 1)), abs(mean) / spread * math.sqrt(n)
        if shift > critical + 10:  # certain; the noncentral t has no value so far out
            return 1.0
        return float(1 - nct.cdf(critical, n - 1, shift) + nct.cdf(-critical, n - 1, shift))

    high = 2
    while found(high) < power:
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high
