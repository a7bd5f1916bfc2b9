"""Estimates with their intervals. Each function names its source."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the unbiased pass@k of one prompt: 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374, eq. 1).

    Args:
        samples: n, rollouts of the prompt.
        correct: c, number of correct rollouts.
        k: at most n.

    Raises:
        ValueError: for k above n or c above n.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"expected 0 <= correct <= samples and 1 <= k <= samples, got {correct}, {samples}, {k}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def ladder(samples: int) -> list[int]:
    """Return the values of k for which pass@k is reported: powers of two below ``samples``, and ``samples``."""
    ks, k = [], 1
    while k < samples:
        ks.append(k)
        k *= 2
    return [*ks, samples]


def bootstrap_intervals(
    strata: Sequence[Sequence[Sequence[float]]], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[tuple[float, float, float]]:
    """Average each figure over benchmarks, with a percentile bootstrap interval over their problems (Efron 1979).

    Use it over dozens or hundreds of problems; over 3-5 seeds the interval would cover far too little. All figures share
    the same resamples.

    Args:
        strata: for each benchmark, for each of its problems, one value per figure; benchmarks have equal weight.
        level: confidence level of the interval.
        resamples: number of resamples; each draws as many problems as a benchmark has, with replacement.
        seed: seed of the resamples: the same values give the same interval.

    Returns:
        for each figure (mean, lower end, upper end).
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


def around_ratio(sums: Sequence[float], counts: Sequence[float]) -> list[float]:
    """Return a value for each problem: their mean is the ratio R of the totals, their spread over problems that of R.

    The value is R + (sum - R count) / mean count, the ratio linearised (Cochran, Sampling Techniques, 3rd ed., section 6.3):
    ``bootstrap_intervals`` takes such values, also differences of two.

    Args:
        sums, counts: of each problem; the counts may be 0, but not all.
    """
    total, many = math.fsum(sums), math.fsum(counts)
    ratio, mean = total / many, many / len(counts)
    return [ratio + (s - ratio * c) / mean for s, c in zip(sums, counts, strict=True)]


def mean_and_halfwidth(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the mean over seeds and the half-width of its Student's t interval (infinite for a single value).

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
    """Return the mean of the middle half: a quarter of the values (rounded down) is cut at each end (arXiv 2108.13264)."""
    from scipy.stats import trim_mean

    return float(trim_mean(values, 0.25))


def probability_of_improvement(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the share of all pairs whose value exceeds the baseline's; ties count half (arXiv 2108.13264, eq. 4)."""
    better = sum((a > b) + 0.5 * (a == b) for a in values for b in baseline)
    return better / (len(values) * len(baseline))


def seeds_needed(gaps: Sequence[float], power: float = 0.8, level: float = 0.05, most: int = 10_000) -> int | None:
    """Return the number of seed pairs with which a two-sided paired t test would detect the observed difference.

    Args:
        gaps: paired differences.
        power: probability of detecting the difference.
        level: probability of a false detection.
        most: largest number that is considered.

    Returns:
        the smallest such number, by the noncentral t distribution; None if it exceeds ``most``, or if the differences have
        no spread or a mean of 0.
    """
    from scipy.stats import nct, t

    if len(gaps) < 2:
        return None
    mean = math.fsum(gaps) / len(gaps)
    spread = math.sqrt(math.fsum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1))
    if spread == 0 or mean == 0:
        return None

    def power_at(n: int) -> float:
        critical, shift = float(t.ppf(1 - level / 2, n - 1)), abs(mean) / spread * math.sqrt(n)
        if shift > critical + 10:  # power is 1; the noncentral t cannot be evaluated this far out
            return 1.0
        return float(1 - nct.cdf(critical, n - 1, shift) + nct.cdf(-critical, n - 1, shift))

    high = 2
    while power_at(high) < power:
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(middle) >= power else (middle, high)
    return high
