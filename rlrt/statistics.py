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


def share_intervals(
    strata: Sequence[Sequence[Sequence[float]]], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[tuple[float, float, float]]:
    """Average shares (figures between 0 and 1) over benchmarks, with an interval that has a width at 0 and at 1 too.

    Where every problem of a benchmark has the share 1, all resamples are alike, and the bootstrap would say [1, 1]: with 30
    problems and a true pass@16 of .98 that holds the truth in about half of all studies. Such a benchmark gets Wilson's
    score interval (1927) of n of n problems, from n / (n + z^2) to 1; one whose problems all have 0 gets 0 to z^2 / (n + z^2).
    Its width is added to that of the other benchmarks as independent errors are: the root of the sum of squares (Zou and
    Donner 2008).

    Args, returns: as ``bootstrap_intervals``.
    """
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    intervals = []
    for figure, (mean, low, high) in enumerate(bootstrap_intervals(strata, level, resamples, seed)):
        below, above = [mean - low], [high - mean]
        for problems in strata:
            values = {problem[figure] for problem in problems}
            width = z**2 / (len(problems) + z**2) / len(strata)
            if values == {1.0}:
                below.append(width)
            elif values == {0.0}:
                above.append(width)
        intervals.append((mean, mean - math.hypot(*below), mean + math.hypot(*above)))
    return intervals


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


def interquartile_mean(values: Sequence[float]) -> float | None:
    """Return the mean of the middle half: a quarter of the values (rounded down) is cut at each end (arXiv 2108.13264).

    Returns:
        None for fewer than four values, of which nothing would be cut.
    """
    from scipy.stats import trim_mean

    return float(trim_mean(values, 0.25)) if len(values) >= 4 else None


def probability_of_improvement(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the share of all pairs whose value exceeds the baseline's; ties count half (arXiv 2108.13264, eq. 4)."""
    better = sum((a > b) + 0.5 * (a == b) for a in values for b in baseline)
    return better / (len(values) * len(baseline))


def t_test_power(shift: float, critical: float, df: int) -> float:
    """Return the probability that the size of t exceeds ``critical``, for t of a noncentral t distribution.

    With t = (Z + shift) / s, Z standard normal and s = sqrt(chi2_df / df), it is the mean over s of
    Phi(shift - critical s) + Phi(-shift - critical s), integrated numerically. ``scipy.stats.nct`` is not used: it is NaN at
    many shifts above about 8.

    Args:
        shift: expected difference in units of its standard error.
        critical: bound of the test.
        df: degrees of freedom.
    """
    from scipy.integrate import quad
    from scipy.special import ndtr
    from scipy.stats import chi

    law, root = chi(df), math.sqrt(df)

    def rejected(x: float) -> float:
        return float((ndtr(shift - critical * x / root) + ndtr(-shift - critical * x / root)) * law.pdf(x))

    first, last = float(law.ppf(1e-13)), float(law.isf(1e-13))
    turn = min(max(shift / critical * root, first), last)  # where the first term falls from 1 to 0
    parts = [(a, b) for a, b in ((first, turn), (turn, last)) if b > a]
    return min(1.0, math.fsum(float(quad(rejected, a, b, limit=200)[0]) for a, b in parts))


def seeds_needed(gaps: Sequence[float], power: float = 0.8, level: float = 0.05, most: int = 10_000) -> int | None:
    """Return the number of seed pairs with which a two-sided paired t test would detect the observed difference.

    Args:
        gaps: paired differences.
        power: probability of detecting the difference.
        level: probability of a false detection.
        most: largest number that is considered.

    Returns:
        the smallest such number, by ``t_test_power``; None if it exceeds ``most``, or if the differences have
        no spread or a mean of 0.
    """
    from scipy.stats import t

    if len(gaps) < 2:
        return None
    mean = math.fsum(gaps) / len(gaps)
    spread = math.sqrt(math.fsum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1))
    if spread == 0 or mean == 0:
        return None

    def power_at(n: int) -> float:
        return t_test_power(abs(mean) / spread * math.sqrt(n), float(t.ppf(1 - level / 2, n - 1)), n - 1)

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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values that hold for all tests of a family together (Holm 1979): at any level, the probability that a true null
    hypothesis is rejected at all is at most that level, however the tests depend on each other.

    Args:
        p_values: one for each test, in any order.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def paired_p(gaps: Sequence[float]) -> float | None:
    """Return the two-sided p value of a paired t test; None for a single pair, or differences without spread."""
    from scipy.stats import t

    n = len(gaps)
    if n < 2 or has_no_spread(gaps):
        return None
    mean = math.fsum(gaps) / n
    error = math.sqrt(math.fsum((g - mean) ** 2 for g in gaps) / (n - 1) / n)
    return float(2 * t.sf(abs(mean) / error, n - 1))


def has_no_spread(values: Sequence[float]) -> bool:
    """True if values are equal up to rounding: differences of numbers near 1 that should be alike differ by about 1e-16."""
    return max(values) - min(values) <= 1e-12 * max(1.0, *map(abs, values))


def sequence_factor(n: int, alpha: float, scale: float) -> float:
    """Return the factor b of the anytime-valid interval mean ± b s / sqrt(n): the bound of |t| after n values.

    The values are independent and normal with unknown mean and standard deviation (Wang and Ramdas, arXiv 2310.03722: the
    Gaussian mixture of the t test). For a hypothetical mean m, mix the likelihood over the standardised effect
    d = (mean - m) / sd by N(0, scale^2), with d = 0 in the denominator, and in both over sd by the right Haar measure 1 / sd.
    With y = x - m both integrals are elementary, and their ratio, with k = n scale^2 / (1 + n scale^2), is

        E_n(m) = (1 + n scale^2)^(-1/2) (1 - k (sum y)^2 / (n sum y^2))^(-n/2).

    It depends on the signs and ratios of the y alone, in whose filtration it is a martingale that starts at E_1 = 1 if m is
    the mean. So by Ville's inequality E_n(m) reaches 1 / alpha at any n with probability at most alpha, and the m at which it
    has not are a confidence sequence. Since (sum y)^2 / (n sum y^2) = t^2 / (t^2 + n - 1), this is |t| < b with

        b^2 = (n - 1) (1 - q) / (q - 1 / (1 + n scale^2)),    q = (alpha^2 / (1 + n scale^2))^(1 / n).

    Where q is not above 1 / (1 + n scale^2), no m is excluded yet: with scale 2 the first bound is finite at n = 4 for alpha
    .05 (at 3 the bound is infinite whatever the values are).

    Args:
        n: number of values.
        alpha: probability that the interval misses the mean at any n, ever.
        scale: standard deviation of the mixture over the standardised effect, chosen before the values are seen.

    Returns:
        b, infinite where no mean is excluded yet.
    """
    if n < 2:
        return math.inf
    grown = math.log1p(n * scale**2)
    q, least = math.exp((2 * math.log(alpha) - grown) / n), math.exp(-grown)
    return math.sqrt((n - 1) * (1 - q) / (q - least)) if q > least else math.inf


def sequence_interval(values: Sequence[float], alpha: float, scale: float) -> tuple[float, float]:
    """Return the anytime-valid interval of the mean after these values: (low, high), both infinite while nothing is known.

    ``sequence_factor`` says of what law, and for which arguments. Values without any spread have no interval: for scores on a
    grid they are no evidence that the mean is known to the last digit.
    """
    n = len(values)
    factor = sequence_factor(n, alpha, scale)
    if math.isinf(factor) or has_no_spread(values):
        return -math.inf, math.inf
    mean = math.fsum(values) / n
    half = factor * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean - half, mean + half


def narrowed(before: tuple[float, float], values: Sequence[float], alpha: float, scale: float) -> tuple[float, float]:
    """Return the next interval of a confidence sequence: that of all values, intersected with the one before it.

    All intervals of a sequence hold the mean at once with probability 1 - alpha, so their intersection does.

    Args:
        before: the last one; (-inf, inf) before the first.
        values, alpha, scale: as ``sequence_interval``.

    Returns:
        (low, high); low exceeds high where two intervals do not meet: the values are not as the law says, or the sequence
        missed.
    """
    low, high = sequence_interval(values, alpha, scale)
    return max(low, before[0]), min(high, before[1])


def verdict(low: float, high: float, margin: float) -> str:
    """Say what an interval of a difference tells: ``equivalent`` (it lies within the margin), ``better`` (above 0), ``worse``
    (below 0), ``contradiction`` (it is empty), or ``open``.

    Args:
        low, high: its ends; infinite ones tell nothing.
        margin: the largest difference, either way, that makes no difference in practice.
    """
    if low > high:
        return "contradiction"
    if -margin < low and high < margin:
        return "equivalent"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "open"
