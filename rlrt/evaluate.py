"""``python -m rlrt.evaluate RUN [RUN ...] [overrides]``: evaluate a run's checkpoint, with intervals over problems.

``python -m rlrt.evaluate model=... data=...``, overrides without a run, evaluates the model of a config that is composed as for
``rlrt.run``; its results lie in ``outputs/evaluations/``.

``eval=paper`` selects the suites, ``eval.samples_per_prompt=256`` gives pass@k up to 256, and any other key may be overridden
too. Results are stored problem by problem in ``RUN/evaluations/``: after an interruption the same command continues.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.refused import guarded
from rlrt.config.rerun import OWN, Reading, add_reading, reading
from rlrt.errors import UserError
from rlrt.evaluation.checkpoint import Evaluation, chosen, of_model, rows_of_all, runs_of
from rlrt.evaluation.late import NAMES, steps_of, when_solved
from rlrt.evaluation.results import carried_out
from rlrt.execution.tracking import open_tracker, stored
from rlrt.records.folder import RunFolder
from rlrt.records.mlflow import status_of
from rlrt.records.printable import one_line
from rlrt.records.secrets import to_terminal
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import say, table
from rlrt.statistics import ladder
from rlrt.sweep.plan import is_axis

log = logging.getLogger("rlrt")


def results_table(results: Mapping[str, Mapping[str, Any]], samples: int) -> str:
    """Format the results of every suite as a table for the terminal."""
    k = f"@{samples}"
    rows = [["suite", "problems", "greedy", f"avg{k}", "95 %", f"pass{k}", "95 %", "tokens", "cut", "errors"]]
    for name, m in results.items():
        average, best = m[f"avg_at_{samples}"], m["pass_at"][samples]
        cells = [f"{m['greedy'][0]:.3f}"]
        for value, low, high in (average, best):
            cells += [f"{value:.3f}", f"{low:.3f}-{high:.3f}"]
        cells += [f"{m['length_mean']:.0f}", f"{m['truncated_share']:.3f}", f"{m['verifier_error_share']:.3f}"]
        rows.append([name, str(m["problems"]), *cells])
    families = [m.get("distinct_families") for m in results.values()]
    if any(count is not None for count in families):
        for row, cell in zip(
            rows, ["families", *("" if count is None else f"{count:.2f}" for count in families)], strict=True
        ):
            row.append(cell)
    return table(rows)


def to_mlflow(run: Path, evaluation: Evaluation, results: Mapping[str, Mapping[str, Any]], trust: bool = False) -> None:
    """Send the results to the run's own MLflow run, once, as ``eval/SUITE/...`` at the checkpoint's step."""
    folder, samples = RunFolder(run), evaluation.settings.eval.samples_per_prompt
    tracker = open_tracker(stored(run, trust=trust), folder, run.name)
    if tracker is None:
        return
    values: dict[str, float] = {}
    for name, m in results.items():
        prefix = f"eval/{name}/"
        values |= {prefix + "greedy": m["greedy"][0], f"{prefix}avg_at_{samples}": m[f"avg_at_{samples}"][0]}
        values |= {f"{prefix}avg_at_{samples}_low": m[f"avg_at_{samples}"][1]}
        values |= {f"{prefix}avg_at_{samples}_high": m[f"avg_at_{samples}"][2]}
        values |= {f"{prefix}pass_at_{k}": m["pass_at"][k][0] for k in ladder(samples)}
    tracker.late_metrics(evaluation.step, values)
    for file in ("results.json", "pass_at_k.csv"):
        tracker.artifact(evaluation.folder / file, f"evaluations/{evaluation.folder.name}")
    tracker.close(status_of(folder.summary().get("state")))


def evaluate(run: Path, step: int | None, typed: Sequence[str], how: Reading = OWN) -> None:
    """Evaluate one checkpoint; write, print and track the results."""
    evaluation = chosen(run, step, typed, how)
    results = carried_out(evaluation, say)
    to_mlflow(run, evaluation, results, how.trust)
    tell(f"{run}, step {evaluation.step}", evaluation, results)


def tell_when_solved(run: Path, after: int, typed: Sequence[str], how: Reading = OWN) -> None:
    """Evaluate a run before training and at every checkpoint, and say when its problems were first solved.

    Raises:
        UserError: for a run without a checkpoint later than ``after``.
    """
    rows: dict[int, list[dict[str, Any]]] = {}
    for step in steps_of(run, after):
        evaluation = chosen(run, step, typed, how)
        carried_out(evaluation, say)
        rows[step] = rows_of_all(evaluation)
    samples = evaluation.settings.eval.samples_per_prompt
    found = [["suite", "problems", f"by step {after}", "later", "never", "lost again"]]
    for suite, shares in when_solved(rows, after).items():
        cells = ["{:.3f} ({:.3f}-{:.3f})".format(*shares[name]) for name in NAMES]
        found.append([one_line(suite), str(shares["problems"]), *cells])
    say(
        f"\n{one_line(run)}: first solved, by {samples} samples at the steps {', '.join(map(str, rows))}; 95 % over problems"
    )
    say(table(found) + "\n")


def evaluate_model(typed: Sequence[str], how: Reading = OWN) -> None:
    """Evaluate the model of a config, without a run; write and print the results.

    Raises:
        UserError: for several values of a key, or a config that cannot work.
    """
    for argument in filter(is_axis, typed):
        raise UserError(
            f"{argument}: several values are compared by python -m rlrt.scout; give one, or a list as [a,b]."
        )
    evaluation = of_model(typed, how)
    results = carried_out(evaluation, say)
    tell(f"{evaluation.settings.model.path}, without a run", evaluation, results)


def tell(title: str, evaluation: Evaluation, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the results, and where they lie."""
    say("\n" + one_line(title))
    say(results_table(results, evaluation.settings.eval.samples_per_prompt))
    say(one_line(f"every problem, every k: {evaluation.folder}") + "\n")


def runs_named(folders: Sequence[Path]) -> list[Path]:
    """The runs that the command line names.

    Raises:
        UserError: for what is neither a run's folder nor an override.
    """
    try:
        return runs_of(folders)
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}; a model without a run is evaluated by overrides alone, as in "
            "rlrt.evaluate model=hf model.path=FOLDER."
        ) from None


def main() -> None:
    """Evaluate checkpoints on the run's held-out problems, or on the suites of eval=NAME; without a run a config's model."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.evaluate", description=main.__doc__)
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="RUN or override",
        help="folders of runs or sweeps, or none; eval=paper and the like",
    )
    parser.add_argument("--step", type=int, help="checkpoint of this step (default: the newest); 0: before training")
    parser.add_argument(
        "--first-solved-after",
        type=int,
        metavar="STEP",
        help="evaluate every checkpoint, and say which share of the problems was first solved after this step",
    )
    add_reading(parser)
    options = parser.parse_intermixed_args()
    how = reading(options)
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal()])
    typed = [a for a in options.arguments if "=" in a and not Path(a).is_dir()]
    folders = [Path(a) for a in options.arguments if a not in typed]

    def act() -> None:
        if not folders:
            for name in ("step", "first_solved_after"):
                if getattr(options, name) is not None:
                    flag = f"--{name.replace('_', '-')}"
                    raise UserError(
                        f"{flag} {getattr(options, name)}: only a run has steps, and none is named; leave {flag} out."
                    )
            evaluate_model(typed, how)
        if options.step is not None and options.first_solved_after is not None:
            raise UserError(
                "--step and --first-solved-after: give one of them; the second one evaluates every checkpoint."
            )
        for run in runs_named(folders) if folders else []:
            if options.first_solved_after is not None:
                tell_when_solved(run, options.first_solved_after, typed, how)
            else:
                evaluate(run, options.step, typed, how)

    try:
        code = guarded(act, typed)
    except KeyboardInterrupt:
        print("\nstopped; the results so far are stored, and the same command continues", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
