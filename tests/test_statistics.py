from __future__ import annotations

import itertools
import math
import random

import numpy
import pytest

from rlrt.statistics import around_ratio, bootstrap_intervals, mean_and_halfwidth, pass_at_k, share_intervals


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one():
    for correct in range(6):
        flags = [i < correct for i in range(5)] if correct < 6 else []
        for k in range(1, 6):
            subsets = list(itertools.combinations(flags[:5], k))
            share = sum(any(s) for s in subsets) / len(subsets)
            assert pass_at_k(5, min(correct, 5), k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("wrong", [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)])
def test_impossible_counts_are_refused(wrong):
    with pytest.raises(ValueError, match="expected 0 <= correct"):
        pass_at_k(*wrong)


def test_interval_by_hand():
    # 1, 2, 3: mean 2, sample std 1, t_{.975, 2} = 4.302653; half-width 4.302653 / sqrt(3)
    mean, half = mean_and_halfwidth([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302652729911275 / math.sqrt(3), abs=1e-9)
    assert mean_and_halfwidth([5.0]) == (5.0, math.inf)


def test_interval_covers_as_often_as_it_says():
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        mean, half = mean_and_halfwidth([rng.gauss(0.3, 2.0) for _ in range(5)])
        hits += abs(mean - 0.3) <= half
    assert 0.935 <= hits / 2000 <= 0.965  # 95 % with three standard errors of .005


def test_bootstrap_by_hand():
    """Two problems, 0 and 1: resampled means are 0, .5, 1 with probability 1/4, 1/2, 1/4, so the 95 % interval is all of it."""
    ((mean, low, high),) = bootstrap_intervals([[[0.0], [1.0]]])
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    ((mean, low, high),) = bootstrap_intervals([[[0.25]] * 7])
    assert (mean, low, high) == pytest.approx((0.25, 0.25, 0.25), abs=1e-15)
    one, two = bootstrap_intervals([[[0.0, 1.0], [1.0, 3.0]], [[1.0, 5.0]]])
    assert one == pytest.approx((0.75, 0.5, 1.0), abs=1e-15)  # each benchmark counts alike: (0.5 + 1) / 2
    assert two == pytest.approx((3.5, 3.0, 4.0), abs=1e-15)
    assert bootstrap_intervals([[[0.0], [1.0]]], seed=3) == bootstrap_intervals([[[0.0], [1.0]]], seed=3)


def test_bootstrap_over_problems_covers():
    """Thirty problems of a benchmark with 16 samples each, drawn from a known law: the interval holds its mean about as often
    as it says."""
    generator = numpy.random.default_rng(0)
    covered = 0
    for trial in range(300):
        chance = generator.beta(0.5, 1.0, 30)  # mean 1/3
        shares = generator.binomial(16, chance) / 16
        ((_, low, high),) = bootstrap_intervals([[[float(s)] for s in shares]], resamples=1000, seed=trial)
        covered += low <= 1 / 3 <= high
    assert 0.89 <= covered / 300 <= 0.99


def test_interval_of_shares_at_a_ceiling_by_hand():
    """z = 1.959964, z^2 = 3.841459: of 30 problems, all solved, the interval begins at 30 / 33.841459 = .886487."""
    all_solved, none, half = share_intervals([[[1.0, 0.0, 0.5]] * 30])
    assert all_solved == pytest.approx((1.0, 0.886487, 1.0), abs=1e-6)
    assert none == pytest.approx((0.0, 0.0, 0.113513), abs=1e-6)
    assert half == pytest.approx((0.5, 0.5, 0.5), abs=1e-15)
    # two benchmarks: one at the ceiling (half of .113513 = .056757), one of 0 and 1 (.25 from its resamples)
    ((mean, low, high),) = share_intervals([[[1.0]] * 30, [[0.0], [1.0]]])
    assert (mean, low, high) == pytest.approx((0.75, 0.75 - math.hypot(0.25, 0.0567567), 1.0), abs=1e-6)
    mixed = [[[0.25], [0.5], [1.0]]]
    assert share_intervals(mixed)[0] == pytest.approx(bootstrap_intervals(mixed)[0], abs=1e-15)


def test_interval_of_pass_at_16_near_one_covers():
    """30 problems with solve rates of Beta(2, 3), 16 samples: in half of all studies each problem is solved once."""
    generator = numpy.random.default_rng(0)
    truth = 1 - numpy.mean((1 - generator.beta(2, 3, 1_000_000)) ** 16)
    covered = {share_intervals: 0, bootstrap_intervals: 0}
    for trial in range(300):
        solved = generator.binomial(16, generator.beta(2, 3, 30)) > 0
        for interval in covered:
            ((_, low, high),) = interval([[[float(s)] for s in solved]], resamples=500, seed=trial)
            covered[interval] += low <= truth <= high
    assert covered[share_intervals] / 300 >= 0.93
    assert covered[bootstrap_intervals] / 300 < 0.75


def test_values_around_a_ratio_by_hand():
    """Sums 1, 3 over counts 2, 2: R = 1, values 1 + (1 - 2) / 2 and 1 + (3 - 2) / 2. Sums 1, 3 over 1, 3: R in each problem."""
    assert around_ratio([1.0, 3.0], [2.0, 2.0]) == [0.5, 1.5]
    assert around_ratio([1.0, 3.0], [1.0, 3.0]) == [1.0, 1.0]
    assert around_ratio([0.0, 1.0, 0.0], [0.0, 2.0, 1.0]) == pytest.approx([1 / 3, 1 / 3 + (1 - 2 / 3), 1 / 3 - 1 / 3])
