"""``python -m rlrt.analyze RUN [RUN ...] [overrides]``: what training did to the policies, as CSV and figures side by side.

pass@k of the start and the last checkpoint, the distribution's shift along rollouts on hard problems, and continuing rollouts
anew at their most and least asymmetric positions over all checkpoints (arXiv 2605.10781). Overrides are those of the runs, for
example ``eval.prompts=64`` or ``eval.samples_per_prompt=32``.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.analysis import PLACES, RARE, Shift, by_difficulty, intervene, shift
from rlrt.build import closing
from rlrt.errors import UserError
from rlrt.evaluate import chosen, measure, policy_and_suites, read_problems, runs_of, summarised
from rlrt.folder import RunFolder
from rlrt.paths import listed
from rlrt.refused import guarded
from rlrt.reporting.figures import SHARE, Picture, axes, legend, line
from rlrt.reporting.jobs import read_job
from rlrt.rerun import Reading, add_reading, reading
from rlrt.rollouts import student_rows
from rlrt.secrets import to_terminal
from rlrt.tracking import MLFLOW_STATUS, open_mlflow, stored

FOLDER = "analysis"
"""In a run's folder, and in the folder that the runs share."""
SAMPLES = 8
"""Rollouts of a problem that decide whether it is hard or easy (the paper's)."""
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Divergences of the complementary distribution function, nats."""


@dataclass
class Findings:
    """What was measured of a run.

    Attributes:
        label: what tells the run from the others.
        hard, easy: how many problems the start solves seldom, and mostly.
        shift: of the last checkpoint along its rollouts on hard problems; None without hard problems.
        turned: (step, kind, place) -> (rollouts whose verdict turned, rollouts tried).
        pass_at: name of the policy -> pass@1, 2, ...
    """

    label: str
    hard: int = 0
    easy: int = 0
    shift: Shift | None = None
    turned: dict[tuple[int, str, str], tuple[int, int]] = field(default_factory=dict)
    pass_at: dict[str, list[float]] = field(default_factory=dict)


def study(run: Path, typed: Sequence[str], insertion: str, how: Reading) -> Findings:
    """All analyses of a run.

    Raises:
        UserError: for a run without a checkpoint, or data that cannot be had.
    """
    steps = [int(p.name.removeprefix("step_")) for p in listed(run / "checkpoints")]
    if not steps:
        raise UserError(f"{run}: expected a checkpoint, found none; let the run finish.")
    papers = read_job(run)
    found = Findings(f"{papers.label} seed={papers.seed}")
    start = chosen(run, 0, typed, how).settings
    read_problems(start)
    with closing(start.data, start.engine, *start.eval.suites.values()):
        base, (suite, *_) = policy_and_suites(start)
        rollouts = suite.sampler(suite.prompts, SAMPLES, ("difficulty",))
        hard, easy = by_difficulty(rollouts, SAMPLES)
        found.hard, found.easy = len(hard), len(easy)
        for step in [0, *steps]:
            settings = chosen(run, step, typed, how).settings
            settings.data, settings.engine, settings.eval.suites = start.data, start.engine, start.eval.suites
            policy, (here, *_) = policy_and_suites(settings)
            put_in = policy.tokenizer(insertion, add_special_tokens=False)["input_ids"] if insertion else []
            budget = settings.train.token_budget
            for kind, prompts in (("wrong to right", hard), ("right to wrong", easy)):
                if prompts:
                    parts = (
                        here.sampler,
                        here.sampler.builder,
                        prompts,
                        SAMPLES,
                        kind == "wrong to right",
                        put_in,
                        budget,
                    )
                    for place, counts in intervene(*parts).items():
                        found.turned[step, kind, place] = counts
            if step == steps[-1] and hard:
                rows = student_rows(here.sampler(hard, SAMPLES, ("shift",)))
                found.shift = shift(policy.model, base.model, rows, policy.temperature, budget)
    for name, step in (("start", 0), ("last", steps[-1])):
        summary = next(iter(summarised(measure(chosen(run, step, typed, how), lambda text: None)).values()))
        found.pass_at[name] = [value for value, _, _ in summary["pass_at"].values()]
    return found


def tables(found: Findings) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Headings and rows by the name of their files."""
    passes = [[name, k, value] for name, values in found.pass_at.items() for k, value in enumerate(values, 1)]
    made: dict[str, tuple[list[str], list[list[Any]]]] = {
        "pass_at_k": (["policy", "k", "pass_at_k"], passes),
        "intervention": (
            ["step", "kind", "place", "turned", "tried"],
            [[*key, *counts] for key, counts in found.turned.items()],
        ),
    }  # fmt: skip
    if found.shift is not None:
        js_N, moved = found.shift.js_N, len(found.shift.promoted_M)
        made["shift"] = (
            ["js_above", "share_of_positions"],
            [[t, float((js_N > t).float().mean())] for t in THRESHOLDS],
        )
        if moved:
            means = found.shift.overlap_MK.mean(0).tolist()
            made["overlap"] = (["k", "overlap_at_moved_positions"], [[k, v] for k, v in enumerate(means, 1)])
            shares = [[t, float((found.shift.promoted_M < t).float().mean())] for t in RARE]
            made["promoted"] = (["base_probability_below", "share_of_moved_positions"], shares)
    return made


def write(found: Findings, folder: Path) -> list[Path]:
    """The tables as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, (headings, rows) in tables(found).items():
        file = folder / f"{name}.csv"
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([headings, *rows])
        files.append(file)
    return files


def told_apart(all_found: Sequence[Findings]) -> list[Findings]:
    """The runs under labels that lack what all of them share; a single run needs none."""
    words = [found.label.split(" ") for found in all_found]
    common = set(words[0]).intersection(*map(set, words))
    labels = [" ".join(w for w in mine if w not in common) for mine in words]
    return [dataclasses.replace(found, label=label) for found, label in zip(all_found, labels, strict=True)]


def pictures(all_found: Sequence[Findings]) -> list[Picture]:
    """All runs side by side."""
    made = []
    for name, x, y, title in (
        ("shift", "Jensen-Shannon divergence above, nats", "share of positions", "How far the policies moved"),
        ("overlap", "k", "top-k overlap with the start at moved positions", "What they kept"),
        ("promoted", "base probability below", "share of moved positions", "Tokens lifted to the top"),
    ):
        figure, panel = axes(x, y)
        there = [(f, tables(f)[name][1]) for f in all_found if name in tables(f)]
        for number, (found, rows) in enumerate(there):
            line(panel, number, found.label or "run", [r[0] for r in rows], [[r[1]] for r in rows], True, SHARE)
        if name == "promoted":
            panel.set_xscale("log")
        if there:
            legend(panel)
            made.append(
                Picture(
                    f"analysis_{name}",
                    title,
                    "Last checkpoint, rollouts on problems that the start solves 0-2 of 8 times.",
                    figure,
                )
            )
    for kind in ("wrong to right", "right to wrong"):
        figure, panel = axes("step (updates)", f"{kind}, share of rollouts")
        number = 0
        for found in all_found:
            for place in PLACES:
                points = [
                    (s, t / n) for (s, k, p), (t, n) in sorted(found.turned.items()) if (k, p) == (kind, place) and n
                ]
                if points:
                    label = f"{place}: {found.label}" if found.label else place
                    line(panel, number, label, [p[0] for p in points], [[p[1]] for p in points], True, SHARE)
                number += 1
        if panel.lines:
            legend(panel)
            made.append(
                Picture(
                    f"analysis_{kind.replace(' ', '_')}",
                    f"Continued anew: {kind}",
                    "Rollouts continued anew from their most asymmetric, a random, their least asymmetric position.",
                    figure,
                )
            )
    figure, panel = axes("k, samples of a problem", "pass@k")
    for number, (found, name, values) in enumerate((f, n, v) for f in all_found for n, v in f.pass_at.items()):
        line(
            panel,
            number,
            f"{name}: {found.label}" if found.label else name,
            range(1, len(values) + 1),
            [[v] for v in values],
            False,
            SHARE,
        )
    panel.set_xscale("log", base=2)
    legend(panel)
    return [*made, Picture("analysis_pass_at_k", "pass@k before and after", "Start and last checkpoint.", figure)]


def to_mlflow(run: Path, files: Sequence[Path], trust: bool) -> None:
    """The files into the run's own MLflow run."""
    folder = RunFolder(run)
    tracker = open_mlflow(stored(run, trust=trust), folder, run.name)
    if tracker is not None:
        for file in files:
            tracker.artifact(file, FOLDER)
        tracker.close(MLFLOW_STATUS.get(str(folder.summary().get("state")), "KILLED"))


def main() -> None:
    """Analyse runs, or the finished runs of a sweep."""
    parser = argparse.ArgumentParser(prog="python -m rlrt.analyze", description=main.__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="RUN or override", help="folders of runs or sweeps; eval.prompts=64 and the like"
    )
    parser.add_argument(
        "--insert",
        default="",
        help="text put in where a rollout is continued (Wait, let me reconsider.); default: none",
    )
    parser.add_argument("--out", type=Path, help="folder of the figures (default: analysis/ beside the runs)")
    add_reading(parser)
    given = parser.parse_args()
    how = reading(given)
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal()])
    typed = [w for w in given.words if "=" in w and not Path(w).is_dir()]

    def act() -> None:
        runs = runs_of([Path(w) for w in given.words if w not in typed])
        if not runs:
            raise UserError("expected at least one run's folder, got overrides alone.")
        all_found = []
        for run in runs:
            found = study(run, typed, given.insert, how)
            all_found.append(found)
            files = write(found, run / FOLDER)
            to_mlflow(run, files, how.trust)
            print(
                f"{run}: {found.hard} hard and {found.easy} easy problems, {len(files)} tables in {run / FOLDER}",
                flush=True,
            )
        out = given.out or runs[0].parent / FOLDER
        for picture in pictures(told_apart(all_found)):
            picture.save(out)
        print(f"figures: {out}")

    try:
        code = guarded(act, typed)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
