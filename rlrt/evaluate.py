"""``python -m rlrt.evaluate RUN [RUN ...] [overrides]``: evaluate a run's checkpoint, with intervals over problems.

``eval=paper`` selects the suites, ``eval.samples_per_prompt=256`` gives pass@k up to 256, and any other key may be overridden
too. Results are stored problem by problem in ``RUN/evaluations/``: after an interruption the same command continues.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.refused import guarded
from rlrt.config.rerun import OWN, Reading, add_reading, reading
from rlrt.errors import UserError
from rlrt.evaluation.checkpoint import (
    Evaluation,
    chosen,
    measure,
    runs_of,
    summarised,
)
from rlrt.execution.tracking import open_mlflow, stored
from rlrt.records.files import replace_text, write_json
from rlrt.records.folder import Beginning, RunFolder
from rlrt.records.lease import leased
from rlrt.records.mlflow import status_of
from rlrt.records.printable import one_line
from rlrt.records.secrets import to_terminal
from rlrt.records.storage import storing
from rlrt.records.streams import mask_streams
from rlrt.reporting.tables import inert
from rlrt.reporting.terminal import say, table
from rlrt.statistics import ladder

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
    return table(rows)


def write(evaluation: Evaluation, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``results.json``, and ``pass_at_k.csv`` with every k."""
    folder, samples = evaluation.folder, evaluation.settings.eval.samples_per_prompt
    plain = evaluation.settings.plain
    setup = {"step": evaluation.step, "samples": samples, "eval": plain["eval"], "engine": plain["engine"]}
    write_json(folder / "results.json", setup | {"suites": results})
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["suite", "k", "pass_at_k", "low", "high"])
    out.writerows([inert(name), k, *values] for name, m in results.items() for k, values in m["pass_at"].items())
    replace_text(folder / "pass_at_k.csv", text.getvalue())


def to_mlflow(evaluation: Evaluation, results: Mapping[str, Mapping[str, Any]], trust: bool = False) -> None:
    """Send the results to the run's own MLflow run, once, as ``eval/SUITE/...`` at the checkpoint's step."""
    folder, samples = RunFolder(evaluation.run), evaluation.settings.eval.samples_per_prompt
    tracker = open_mlflow(stored(evaluation.run, trust=trust), folder, evaluation.run.name)
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
    beginning = Beginning(evaluation.folder)
    try:
        with storing(evaluation.folder), leased(evaluation.folder):
            rows = measure(evaluation, say)
            results = summarised(rows)
            write(evaluation, results)
    except UserError:
        beginning.undo()
        raise
    to_mlflow(evaluation, results, how.trust)
    say("\n" + one_line(f"{run}, step {evaluation.step}"))
    say(results_table(results, evaluation.settings.eval.samples_per_prompt))
    say(one_line(f"every problem, every k: {evaluation.folder}") + "\n")


def main() -> None:
    """Evaluate checkpoints on the run's held-out problems, or on the suites of eval=NAME."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.evaluate", description=main.__doc__)
    parser.add_argument(
        "arguments", nargs="+", metavar="RUN or override", help="folders of runs or sweeps; eval=paper and the like"
    )
    parser.add_argument("--step", type=int, help="checkpoint of this step (default: the newest); 0: before training")
    add_reading(parser)
    options = parser.parse_intermixed_args()
    how = reading(options)
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal()])
    typed = [a for a in options.arguments if "=" in a and not Path(a).is_dir()]
    folders = [Path(a) for a in options.arguments if a not in typed]

    def act() -> None:
        if not folders:
            raise UserError("expected at least one run's folder, got overrides alone.")
        for run in runs_of(folders):
            evaluate(run, options.step, typed, how)

    try:
        code = guarded(act, typed)
    except KeyboardInterrupt:
        print("\nstopped; the results so far are stored, and the same command continues", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
