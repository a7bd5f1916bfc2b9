"""``python -m rlrt.evaluate RUN [RUN ...] [overrides]``: a run's checkpoint on benchmarks, with intervals over problems.

``eval=paper`` chooses the suites, ``eval.samples_per_prompt=256`` gives pass@k up to 256; any other key may be typed too. What
is measured is kept problem by problem in ``RUN/evaluations/``: the same command goes on where it was cut.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.build import closing, load_model, prompt_builder, suites_of
from rlrt.config.load import load
from rlrt.config.schema import Settings
from rlrt.datacheck import check_fit, drop_long_prompts, prepare_suites, prepare_task
from rlrt.errors import UserError
from rlrt.evaluation import Suite, distinct, rollouts_of
from rlrt.folder import RunFolder, write_json
from rlrt.hydra_setup import composed
from rlrt.identity import identity
from rlrt.overrides import grammar
from rlrt.paths import listed
from rlrt.policy import Policy, context_length
from rlrt.refused import guarded
from rlrt.rerun import OWN, TRUST, Reading, add_reading, expand, is_run, reading
from rlrt.run import forget_empty, leased
from rlrt.secrets import to_terminal
from rlrt.statistics import bootstrap_intervals, ladder, pass_at_k
from rlrt.terminal import table
from rlrt.trackers.record import JsonLines
from rlrt.tracking import MLFLOW_STATUS, open_mlflow, stored
from rlrt.types import Sampling

HELD_OUT = "heldout"
"""Name of the held-out problems of the run's own data among suites."""
MEAN = "mean"
log = logging.getLogger("rlrt")


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated.

    Attributes:
        run: the run's folder.
        step: of the checkpoint; 0: the model before training.
        settings: the run's, its model being the checkpoint, with what was typed.
        folder: where the results go: named by the step and the identity of all this.
    """

    run: Path
    step: int
    settings: Settings
    folder: Path


def chosen(run: Path, step: int | None, typed: Sequence[str], how: Reading = OWN) -> Evaluation:
    """The evaluation of a run's checkpoint.

    Args:
        run: its folder.
        step: which checkpoint; None: the newest; 0: the model before training.
        typed: overrides.
        how: what the command line says of reading stored configs.

    Raises:
        UserError: if there is no such checkpoint.
    """
    overrides = expand([f"+from={run}", *typed, *([TRUST] if how.trust else [])], how.config_dirs)
    saved = {int(p.name.removeprefix("step_")): p for p in listed(run / "checkpoints")}
    if step != 0:
        found = max(saved, default=None) if step is None else step
        if found is None or found not in saved:
            asked = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise UserError(
                f"{run}: expected {asked}, found {', '.join(map(str, sorted(saved))) or 'none'}; see --step."
            )
        step = found
        overrides += [f"model.path={grammar(str(saved[step].resolve()))}", "model.lora=null"]
    names = RunFolder(run).manifest().get("choices", {})
    settings = load(composed(overrides, how.config_dirs), names if isinstance(names, dict) else {}, overrides)
    return Evaluation(run, step, settings, run / "evaluations" / f"step_{step}-{identity(settings.plain)}")


def read_problems(settings: Settings) -> None:
    """Read what is evaluated on, and nothing else.

    Raises:
        UserError: for data that cannot be had.
    """
    if settings.eval.suites:
        prepare_suites(settings.eval.suites)
    else:
        prepare_task(settings.data)


def policy_and_suites(settings: Settings) -> tuple[Policy, list[Suite]]:
    """A policy that is only looked at, and what it is looked at on, whose problems have been read.

    Raises:
        UserError: for a model that cannot be had, or problems that leave no room for a response.
    """
    model, tokenizer = load_model(settings)
    policy = Policy(model, tokenizer, None, settings.engine.temperature)
    builder = prompt_builder(settings, tokenizer)
    if not settings.eval.suites:
        drop_long_prompts(settings.data, builder)
    suites = suites_of(settings, policy, builder)
    prompts = [p for suite in suites for p in suite.prompts]
    length = context_length(model, settings.model.context_length)
    check_fit(prompts, builder, length, settings.engine.max_new_tokens)
    return policy, suites


def measure(evaluation: Evaluation, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for every problem of every suite; those that were measured before are not sampled again.

    Raises:
        UserError: for data or a model that cannot be had.
    """
    settings = evaluation.settings
    evaluation.folder.mkdir(parents=True, exist_ok=True)
    record = JsonLines(evaluation.folder / "problems.jsonl")
    read_problems(settings)
    _, suites = policy_and_suites(settings)
    done = {(row["suite"], row["prompt_id"]) for row in record.read()}
    at_once = max(1, getattr(settings.engine, "max_rows", 512) // settings.eval.samples_per_prompt)
    with closing(settings.data, settings.engine, *settings.eval.suites.values()):
        for suite in suites:
            name = suite.name or HELD_OUT
            left = [p for p in suite.prompts if (name, p.id) not in done]
            for start in range(0, len(left), at_once):
                part = Suite(name, suite.sampler, left[start : start + at_once])
                record.append(rows_of(part, settings, evaluation.step))
                record.sync()
            say(f"{name}: {len(suite.prompts)} problems, {len(suite.prompts) - len(left)} of them measured before")
    asked = {(suite.name or HELD_OUT, p.id) for suite in suites for p in suite.prompts}
    return [row for row in record.read() if (row["suite"], row["prompt_id"]) in asked]  # not what other data left there


def rows_of(part: Suite, settings: Settings, step: int) -> list[dict[str, Any]]:
    """Sample and grade some problems of a suite."""
    config, samples = settings.eval, settings.eval.samples_per_prompt
    greedy, rollouts = rollouts_of(part, samples, Sampling(config.temperature, config.top_p, config.top_k))
    rows = []
    for i, prompt in enumerate(part.prompts):
        group = rollouts[i * samples : (i + 1) * samples]
        rows.append(
            {
                "step": step,
                "suite": part.name,
                "prompt_id": prompt.id,
                "greedy": int(greedy[i].grade.correct),
                "correct": sum(r.grade.correct for r in group),
                "samples": samples,
                "distinct_correct": distinct(part.sampler, group),
                "verifier_errors": sum(r.grade.error for r in [greedy[i], *group]),
                "truncated": sum(r.generation.truncated for r in group),
                "tokens": sum(len(r.generation.token_ids) for r in group),
            }
        )
    return rows


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The figures of every suite, and of their mean where there are several: each (value, low, high) over problems."""
    samples = int(rows[0]["samples"])
    suites = {name: [r for r in rows if r["suite"] == name] for name in dict.fromkeys(str(r["suite"]) for r in rows)}
    groups = {name: [mine] for name, mine in suites.items()}
    if len(suites) > 1:
        groups[MEAN] = list(suites.values())
    found = {}
    for name, strata in groups.items():
        values = [[figures(row) for row in stratum] for stratum in strata]
        intervals = bootstrap_intervals(values)
        problems = [row for stratum in strata for row in stratum]
        total = len(problems) * samples
        found[name] = {
            "problems": len(problems),
            "greedy": intervals[0],
            f"avg_at_{samples}": intervals[1],
            "pass_at": dict(enumerate(intervals[2:], 1)),
            "distinct_correct": sum(r["distinct_correct"] for r in problems) / len(problems),
            "length_mean": sum(r["tokens"] for r in problems) / total,
            "truncated_share": sum(r["truncated"] for r in problems) / total,
            "verifier_error_share": sum(r["verifier_errors"] for r in problems) / (total + len(problems)),
        }
    return found


def figures(row: Mapping[str, Any]) -> list[float]:
    """A problem's greedy verdict, its share of correct samples, and pass@1, 2, ... samples."""
    samples, correct = int(row["samples"]), int(row["correct"])
    return [row["greedy"], correct / samples, *(pass_at_k(samples, correct, k) for k in range(1, samples + 1))]


def shown(found: Mapping[str, Mapping[str, Any]], samples: int) -> str:
    """The table for a person."""
    k = f"@{samples}"
    rows = [["suite", "problems", "greedy", f"avg{k}", "95 %", f"pass{k}", "95 %", "tokens", "cut", "errors"]]
    for name, m in found.items():
        average, best = m[f"avg_at_{samples}"], m["pass_at"][samples]
        cells = [f"{m['greedy'][0]:.3f}"]
        for value, low, high in (average, best):
            cells += [f"{value:.3f}", f"{low:.3f}-{high:.3f}"]
        cells += [f"{m['length_mean']:.0f}", f"{m['truncated_share']:.3f}", f"{m['verifier_error_share']:.3f}"]
        rows.append([name, str(m["problems"]), *cells])
    return table(rows)


def write(evaluation: Evaluation, found: Mapping[str, Mapping[str, Any]]) -> None:
    """``results.json``, and ``pass_at_k.csv`` with every k."""
    folder, samples = evaluation.folder, evaluation.settings.eval.samples_per_prompt
    plain = evaluation.settings.plain
    papers = {"step": evaluation.step, "samples": samples, "eval": plain["eval"], "engine": plain["engine"]}
    write_json(folder / "results.json", papers | {"suites": found})
    with (folder / "pass_at_k.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["suite", "k", "pass_at_k", "low", "high"])
        out.writerows([name, k, *values] for name, m in found.items() for k, values in m["pass_at"].items())


def to_mlflow(evaluation: Evaluation, found: Mapping[str, Mapping[str, Any]], trust: bool = False) -> None:
    """The figures into the run's own MLflow run, at the checkpoint's step, under ``eval/SUITE/...``; once."""
    folder, samples = RunFolder(evaluation.run), evaluation.settings.eval.samples_per_prompt
    tracker = open_mlflow(stored(evaluation.run, trust=trust), folder, evaluation.run.name)
    if tracker is None:
        return
    values: dict[str, float] = {}
    for name, m in found.items():
        prefix = f"eval/{name}/"
        values |= {prefix + "greedy": m["greedy"][0], f"{prefix}avg_at_{samples}": m[f"avg_at_{samples}"][0]}
        values |= {f"{prefix}avg_at_{samples}_low": m[f"avg_at_{samples}"][1]}
        values |= {f"{prefix}avg_at_{samples}_high": m[f"avg_at_{samples}"][2]}
        values |= {f"{prefix}pass_at_{k}": m["pass_at"][k][0] for k in ladder(samples)}
    tracker.late_metrics(evaluation.step, values)
    for file in ("results.json", "pass_at_k.csv"):
        tracker.artifact(evaluation.folder / file, f"evaluations/{evaluation.folder.name}")
    tracker.close(MLFLOW_STATUS.get(str(folder.summary().get("state")), "KILLED"))


def runs_of(given: Sequence[Path]) -> list[Path]:
    """The runs named, and of a sweep's folder those that finished.

    Raises:
        UserError: for a folder that is neither.
    """
    runs: list[Path] = []
    for folder in given:
        inside = sorted(p.parent for p in folder.glob("*/manifest.json") if is_run(p.parent))
        done = [p for p in inside if RunFolder(p).summary().get("state") == "finished"]
        if not is_run(folder) and not done:
            raise UserError(f"expected a run's folder, or a sweep's with finished runs, got {folder}.")
        for run in inside if not is_run(folder) else []:
            if run not in done:
                print(f"left out, not finished: {run}", file=sys.stderr)
        runs += [folder] if is_run(folder) else done
    return runs


def evaluate(run: Path, step: int | None, typed: Sequence[str], how: Reading = OWN) -> None:
    """Measure, write, show."""
    evaluation = chosen(run, step, typed, how)
    try:
        with leased(evaluation.folder):
            rows = measure(evaluation, lambda line: print(line, flush=True))
            found = summarised(rows)
            write(evaluation, found)
    except UserError:
        forget_empty(evaluation.folder)
        raise
    to_mlflow(evaluation, found, how.trust)
    print(f"\n{run}, step {evaluation.step}")
    print(shown(found, evaluation.settings.eval.samples_per_prompt))
    print(f"every problem, every k: {evaluation.folder}\n", flush=True)


def main() -> None:
    """Evaluate checkpoints on the run's held-out problems, or on the suites of eval=NAME."""
    parser = argparse.ArgumentParser(prog="python -m rlrt.evaluate", description=main.__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="RUN or override", help="folders of runs or sweeps; eval=paper and the like"
    )
    parser.add_argument("--step", type=int, help="checkpoint of this step (default: the newest); 0: before training")
    add_reading(parser)
    given = parser.parse_args()
    how = reading(given)
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal()])
    typed = [w for w in given.words if "=" in w and not Path(w).is_dir()]
    folders = [Path(w) for w in given.words if w not in typed]

    def act() -> None:
        if not folders:
            raise UserError("expected at least one run's folder, got overrides alone.")
        for run in runs_of(folders):
            evaluate(run, given.step, typed, how)

    try:
        code = guarded(act, typed)
    except KeyboardInterrupt:
        print("\nstopped; what was measured is kept, and the same command goes on", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
