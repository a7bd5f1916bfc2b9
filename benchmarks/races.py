"""How often a race's intervals miss, what it finds, and what it spends beside a fixed number of seeds: by simulation.

``python -m benchmarks.races`` prints the tables of docs/races.md. Differences of pairs are drawn; no run is made. The draws
have fixed seeds, so the tables are the same each time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy
from scipy import stats

from rlrt.statistics import sequence_factor

Law = Callable[[numpy.random.Generator, tuple[int, int]], numpy.ndarray]
MOST, MARGIN, SCALE, ALPHA = 50, 0.02, 1.5, 0.05
"""What ``hydra/sweeper=race`` has unless it is told otherwise."""
SPREAD = 0.03
"""Standard deviation of a pair's difference in avg@8 where the tables need one."""
FIXED = 10
"""Pairs of the fixed design."""


def scores(centre: float, problems: int = 32, samples: int = 8) -> Law:
    """Return the law of a difference of two avg@8: a run's own level around ``centre``, then counts of right samples."""

    def draw(generator: numpy.random.Generator, shape: tuple[int, int]) -> numpy.ndarray:
        levels = generator.beta(centre * 60, (1 - centre) * 60, (2, *shape))
        counts = generator.binomial(problems * samples, levels)
        return (counts[0] - counts[1]) / (problems * samples)

    return draw


def collapsing(share: float, drop: float) -> Law:
    """Return a normal law of which ``share`` of the pairs lose ``drop``, around its own mean."""
    return lambda g, shape: g.normal(0, SPREAD, shape) - drop * (g.random(shape) < share) + drop * share


LAWS: Mapping[str, Law] = {
    "normal": lambda g, shape: g.normal(0, SPREAD, shape),
    "Student's t, 3 degrees of freedom": lambda g, shape: SPREAD * g.standard_t(3, shape),
    "Student's t, 2 degrees of freedom": lambda g, shape: SPREAD * g.standard_t(2, shape),
    "scores, 256 samples, around .5": scores(0.5),
    "scores, 256 samples, around .97": scores(0.97),
    "scores, 16 samples, around .5": scores(0.5, 4, 4),
    "1 arm's run in 5 loses .2": collapsing(0.2, 0.2),
    "1 arm's run in 20 loses .2": collapsing(0.05, 0.2),
    "exponential, one-sided": lambda g, shape: SPREAD * (g.exponential(1, shape) - 1),
}
"""Laws of a pair's difference, all with mean 0."""


def moments(drawn: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return mean and standard error after each value, runs x values; the error of one value is NaN."""
    n = numpy.arange(1, drawn.shape[1] + 1)
    mean = numpy.cumsum(drawn, 1) / n
    centred = numpy.maximum(numpy.cumsum(drawn**2, 1) - n * mean**2, 0)
    centred[centred < 1e-14] = 0  # values without spread
    with numpy.errstate(invalid="ignore", divide="ignore"):
        return mean, numpy.sqrt(centred / (n - 1) / n)


def sequences(drawn: numpy.ndarray, alpha: float, scale: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return both ends of the race's interval after each value, intersected with those before: runs x values each."""
    mean, error = moments(drawn)
    factors = numpy.array([sequence_factor(n, alpha, scale) for n in range(1, drawn.shape[1] + 1)])
    with numpy.errstate(invalid="ignore"):
        half = numpy.where((error > 0) & numpy.isfinite(factors), factors * error, numpy.inf)
    return numpy.maximum.accumulate(mean - half, 1), numpy.minimum.accumulate(mean + half, 1)


def held(drawn: numpy.ndarray, alpha: float, scale: float) -> float:
    """Return the share of runs whose intervals hold 0 after every value."""
    low, high = sequences(drawn, alpha, scale)
    return float(numpy.mean((low[:, -1] <= 0) & (high[:, -1] >= 0)))


def coverage(runs: int) -> list[str]:
    """Return the table of coverage: shares of runs whose intervals hold the mean after every value to the 50th."""
    lines = [
        "| differences | race, 95 % | race, 1 of 3 arms | race, 1 of 10 arms | Student's, looked at each time | "
        "Student's, at 10 only |",
        "|---|---|---|---|---|---|",
    ]
    for number, (name, law) in enumerate(LAWS.items()):
        drawn = law(numpy.random.default_rng(number), (runs, MOST))
        mean, error = moments(drawn)
        n = numpy.arange(2, MOST + 1)
        inside = abs(mean[:, 1:]) <= stats.t.ppf(1 - ALPHA / 2, n - 1) * error[:, 1:]
        cells = [held(drawn, ALPHA / arms, SCALE) for arms in (1, 3, 10)]
        cells += [float(inside[:, 2:].all(1).mean()), float(inside[:, FIXED - 2].mean())]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return lines


def decided(drawn: numpy.ndarray, alpha: float, scale: float = SCALE) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return what a race says of each run (1 better, -1 worse, 0 equivalent, 9 cannot tell) and after how many pairs."""
    low, high = sequences(drawn, alpha, scale)
    equivalent = (low > -MARGIN) & (high < MARGIN)
    known = equivalent | (low > 0) | (high < 0)
    first = numpy.where(known.any(1), known.argmax(1), drawn.shape[1] - 1)
    rows = numpy.arange(len(drawn))
    said = numpy.where(equivalent[rows, first], 0, numpy.where(low[rows, first] > 0, 1, -1))
    return numpy.where(known.any(1), said, 9), first + 1


def pairs_for_power(difference: float, power: float = 0.8) -> str:
    """Return the pairs with which a paired t test at 5 % finds a difference with this power, its spread known beforehand."""
    from rlrt.statistics import t_test_power

    for n in range(2, 1000):
        if t_test_power(difference / SPREAD * n**0.5, float(stats.t.ppf(1 - ALPHA / 2, n - 1)), n - 1) >= power:
            return str(n)
    return "-"


def power(runs: int) -> list[str]:
    """Return the table of what a race of one arm finds and spends, beside a fixed design."""
    lines = [
        "| true difference | better | worse | equivalent | cannot tell | pairs, mean | median | 9 in 10 below | "
        "10 pairs: t test finds it | pairs for 80 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, true in enumerate((0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08)):
        drawn = numpy.random.default_rng(100 + number).normal(true, SPREAD, (runs, MOST))
        said, spent = decided(drawn, ALPHA)
        shares = [float(numpy.mean(said == what)) for what in (1, -1, 0, 9)]
        mean, error = moments(drawn)
        fixed = abs(mean[:, FIXED - 1]) > stats.t.ppf(1 - ALPHA / 2, FIXED - 1) * error[:, FIXED - 1]
        cells = [f"{true:g}", *(f"{share:.3f}" for share in shares), f"{spent.mean():.1f}"]
        cells += [f"{numpy.median(spent):.0f}", f"{numpy.quantile(spent, 0.9):.0f}", f"{fixed.mean():.3f}"]
        lines.append("| " + " | ".join([*cells, pairs_for_power(true) if true else "-"]) + " |")
    return lines


def scales(runs: int) -> list[str]:
    """Return the table of the scale: pairs spent and verdicts for several, and the first pair that can decide."""
    tried = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
    trues = (0.0, 0.02, 0.03, 0.05, 0.08)
    lines = [
        "| scale | first verdict at | " + " | ".join(f"true {t:g}" for t in trues) + " |",
        "|---" * (2 + len(trues)) + "|",
    ]
    for scale in tried:
        first = next(n for n in range(2, MOST) if sequence_factor(n, ALPHA, scale) < numpy.inf)
        cells = []
        for number, true in enumerate(trues):
            drawn = numpy.random.default_rng(200 + number).normal(true, SPREAD, (runs, MOST))
            said, spent = decided(drawn, ALPHA, scale)
            cells.append(f"{spent.mean():.1f} ({numpy.mean(said != 9):.2f})")
        lines.append(f"| {scale:g} | {first} | " + " | ".join(cells) + " |")
    return lines


def several(runs: int) -> list[str]:
    """Return the table of races with four arms: runs that they spend, baseline's included, beside all arms to the 50th seed."""
    fields = {
        "0, 0, 0, 0": (0.0, 0.0, 0.0, 0.0),
        "0, .02, .05, .08": (0.0, 0.02, 0.05, 0.08),
        ".05, .05, .08, .08": (0.05, 0.05, 0.08, 0.08),
    }
    lines = [
        "| true differences | runs of the race | of all arms to seed 50 | any wrong verdict | arms decided |",
        "|---|---|---|---|---|",
    ]
    for number, (name, trues) in enumerate(fields.items()):
        generator = numpy.random.default_rng(300 + number)
        base = generator.normal(0, SPREAD / 2**0.5, (runs, MOST))
        wrong, most, total, known = numpy.zeros(runs, bool), numpy.zeros(runs), numpy.zeros(runs), 0.0
        for true in trues:
            said, spent = decided(generator.normal(true, SPREAD / 2**0.5, (runs, MOST)) - base, ALPHA / len(trues))
            right = {9, *([1] if true > 0 else []), *([0] if abs(true) < MARGIN else [])}
            wrong |= ~numpy.isin(said, list(right))
            most, total, known = numpy.maximum(most, spent), total + spent, known + float(numpy.mean(said != 9))
        runs_spent = (total + most).mean()
        lines.append(
            f"| {name} | {runs_spent:.0f} | {(len(trues) + 1) * MOST} | {wrong.mean():.4f} | {known:.2f} of 4 |"
        )
    return lines


TABLES = {"coverage": coverage, "power": power, "scales": scales, "several": several}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.races", description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000, help="simulated races of each row")
    parser.add_argument("--only", choices=sorted(TABLES), help="one table")
    arguments = parser.parse_args()
    for name, table in TABLES.items():
        if arguments.only in (None, name):
            print("\n".join(table(arguments.runs)), end="\n\n")


if __name__ == "__main__":
    main()
