"""The anytime-valid interval of a mean: what it must be by its definition, and how often it misses."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
from scipy import stats

from rlrt.statistics import holm, narrowed, paired_p, sequence_factor, sequence_interval, verdict

VALUES = [0.031, -0.012, 0.044, 0.020, 0.027, 0.051, -0.003, 0.018]


def mixture(values, mean, scale):
    """E_n(mean), integrated as it is defined: over the effect's normal law, and over the standard deviation by 1 / sd."""
    y = numpy.asarray(values) - mean
    log_sd = numpy.linspace(math.log(abs(y).max()) - 6, math.log(abs(y).max()) + 8, 2801)
    effects = numpy.linspace(-9 * scale, 9 * scale, 6001)
    z = y[:, None] / numpy.exp(log_sd)

    def integral(log_density):
        return numpy.trapezoid(numpy.exp(log_density - len(y) * log_sd), log_sd)

    # sum (z - d)^2 / 2 for all pairs of sd and effect, and the effect integrated first
    first, second = z.sum(0), (z**2).sum(0)
    exponent = -second[:, None] / 2 + numpy.outer(first, effects) - len(y) * effects**2 / 2
    inner = numpy.trapezoid(numpy.exp(exponent) * stats.norm.pdf(effects, scale=scale), effects, axis=1)
    above = numpy.trapezoid(inner * numpy.exp(-len(y) * log_sd), log_sd)
    return above / integral(-second / 2)


@pytest.mark.parametrize(("count", "alpha", "scale"), [(5, 0.05, 2.0), (8, 0.05, 1.0), (8, 0.01, 2.0), (6, 0.2, 0.7)])
def test_at_its_ends_the_mixture_is_one_over_alpha(count, alpha, scale):
    values = VALUES[:count]
    low, high = sequence_interval(values, alpha, scale)
    assert math.isfinite(low)
    for end in (low, high):
        assert mixture(values, end, scale) == pytest.approx(1 / alpha, rel=1e-3)
    assert mixture(values, math.fsum(values) / count, scale) < 1
    assert mixture(values, high + (high - low), scale) > 1 / alpha


def test_before_it_is_finite_no_mean_however_far_has_much_evidence_against_it():
    assert sequence_interval(VALUES[:3], 0.05, 2.0) == (-math.inf, math.inf)
    assert mixture(VALUES[:3], 1e3, 2.0) < 20
    assert math.isfinite(sequence_factor(4, 0.05, 2.0))
    assert sequence_factor(1, 0.9, 9.0) == math.inf


def test_it_moves_with_the_values_shrinks_with_them_and_is_its_own_mirror_image():
    low, high = sequence_interval(VALUES, 0.05, 2.0)
    for a, b in ((3.0, 0.0), (1e-3, 0.5), (100.0, -7.0)):
        moved = sequence_interval([a * v + b for v in VALUES], 0.05, 2.0)
        assert moved == pytest.approx((a * low + b, a * high + b), rel=1e-9, abs=1e-12)
    assert sequence_interval([-v for v in VALUES], 0.05, 2.0) == pytest.approx((-high, -low), abs=1e-15)
    assert sequence_interval(VALUES[::-1], 0.05, 2.0) == pytest.approx((low, high), abs=1e-15)


def test_it_is_wider_than_students_and_less_so_with_more_values():
    ratios = [sequence_factor(n, 0.05, 2.0) / stats.t.ppf(0.975, n - 1) for n in range(4, 51)]
    assert all(a > b > 1 for a, b in itertools.pairwise(ratios[:7]))
    assert 1.7 < min(ratios) < max(ratios[6:]) < 1.9
    assert sequence_factor(9, 0.01, 2.0) > sequence_factor(9, 0.05, 2.0)


def sequence_of(values):
    found = [(-math.inf, math.inf)]
    for n in range(1, len(values) + 1):
        found.append(narrowed(found[-1], values[:n], 0.05, 2.0))
    return found[1:]


def test_a_sequence_is_nested_and_says_when_its_intervals_do_not_meet():
    drawn = [float(v) for v in numpy.random.default_rng(3).normal(0.02, 0.03, 50)]
    found = sequence_of(drawn)
    assert found[:3] == [(-math.inf, math.inf)] * 3
    for (a, b), (c, d) in itertools.pairwise(found):
        assert a <= c <= d <= b
    last = sequence_interval(drawn, 0.05, 2.0)
    assert found[-1][0] >= last[0]
    assert found[-1][1] <= last[1]
    low, high = sequence_of([0.0, 0.001] * 10 + [1.0, 1.001] * 400)[-1]
    assert low > high
    assert verdict(low, high, 0.02) == "contradiction"


def test_values_without_spread_tell_nothing():
    assert sequence_interval([0.1] * 20, 0.05, 2.0) == (-math.inf, math.inf)
    assert sequence_interval([0.3 - 0.2, 0.1, 0.4 - 0.3] * 5, 0.05, 2.0) == (-math.inf, math.inf)  # .1 but for rounding


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.001, 0.5, "better"), (-0.5, -0.001, "worse"), (-0.019, 0.019, "equivalent"), (0.001, 0.019, "equivalent"),
     (-0.02, 0.01, "open"), (-math.inf, math.inf, "open"), (0.0, 0.1, "open"), (0.2, 0.1, "contradiction")],
)  # fmt: skip
def test_what_an_interval_tells(low, high, said):
    assert verdict(low, high, 0.02) == said


def test_looking_after_every_value_it_holds_the_mean_and_students_interval_does_not():
    generator = numpy.random.default_rng(0)
    runs, most = 2000, 50
    n = numpy.arange(1, most + 1)
    drawn = generator.normal(0.02, 0.03, (runs, most))
    means = numpy.cumsum(drawn, 1) / n
    spread = numpy.sqrt(numpy.maximum(numpy.cumsum(drawn**2, 1) - n * means**2, 0)[:, 1:] / (n[1:] - 1))
    t = abs(means[:, 1:] - 0.02) / spread * numpy.sqrt(n[1:])
    ours = numpy.array([sequence_factor(int(k), 0.05, 2.0) for k in n[1:]])
    assert numpy.mean((t < ours).all(1)) >= 0.94
    assert numpy.mean((t < stats.t.ppf(0.975, n[1:] - 1)).all(1)) < 0.8
    low, high = sequence_interval(
        [float(v) for v in drawn[0]], 0.05, 2.0
    )  # the simulation's arithmetic is the function's
    assert high - low == pytest.approx(2 * ours[-1] * spread[0, -1] / math.sqrt(most))


def test_holm_by_hand_and_the_paired_t_test_by_scipy():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x .01, 2 x .03, then no less than that
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    assert paired_p(VALUES) == pytest.approx(float(stats.ttest_1samp(VALUES, 0).pvalue), abs=1e-12)
    assert paired_p([0.1]) is None
    assert paired_p([0.1, 0.1, 0.3 - 0.2]) is None
