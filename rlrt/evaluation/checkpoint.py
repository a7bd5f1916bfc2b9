"""A run's checkpoint, measured problem by problem."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.config.overrides import grammar
from rlrt.config.rerun import OWN, TRUST, Reading, expand, is_run
from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.execution.build import load_model, prompt_builder, suites_of
from rlrt.execution.data import check_fit, drop_long_prompts, prepare_suites, prepare_task
from rlrt.execution.memory.share import tell_engine
from rlrt.execution.parts import Parts, cards_for_engine, closing, parts_of
from rlrt.model.load import context_length
from rlrt.model.policy import Policy
from rlrt.paths import saved_steps
from rlrt.records.files import mapping, own_folder, resolved
from rlrt.records.folder import RunFolder
from rlrt.records.identity import identity
from rlrt.records.jsonlines import JsonLines
from rlrt.records.printable import one_line
from rlrt.statistics import pass_at_k, share_intervals
from rlrt.training.evaluation import Suite, distinct, rollouts_of
from rlrt.types import Sampling

HELD_OUT = "heldout"
"""Name of the held-out problems of the run's own data among suites."""


MEAN = "mean"


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint, and the settings under which it is evaluated.

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
    saved = saved_steps(run)
    if step != 0:
        results = max(saved, default=None) if step is None else step
        if results is None or results not in saved:
            asked = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise UserError(
                f"{run}: expected {asked}, found {', '.join(map(str, sorted(saved))) or 'none'}; see --step."
            )
        step = results
        overrides += [f"model.path={grammar(str(resolved(saved[step])))}", "model.lora=null"]
    choices = mapping(RunFolder(run).manifest().get("choices"))
    names = {name: one_line(choice, 200) for name, choice in choices.items()}
    settings = load(composed(overrides, how.config_dirs), names, overrides)
    return Evaluation(run, step, settings, run / "evaluations" / f"step_{step}-{identity(settings.plain)}")


def read_problems(parts: Parts) -> None:
    """Read what is evaluated on, and nothing else.

    Raises:
        UserError: for an engine that is not installed, or data that cannot be had.
    """
    parts.engine.check_installed()
    if parts.suites:
        prepare_suites(parts.suites)
    else:
        prepare_task(parts.task)


def policy_and_suites(settings: Settings, parts: Parts) -> tuple[Policy, list[Suite]]:
    """An evaluation-only policy and its suites; the problems of ``parts`` have been read.

    Raises:
        UserError: for a model that cannot be had, or problems that leave no room for a response.
    """
    model, tokenizer = load_model(settings)
    policy = Policy(model, tokenizer, None, settings.engine.temperature)
    builder = prompt_builder(settings, tokenizer)
    if not parts.suites:
        drop_long_prompts(parts.task, builder)
    suites = suites_of(settings, parts, policy, builder)
    prompts = [p for suite in suites for p in suite.prompts]
    length = context_length(model, settings.model.context_length)
    check_fit(prompts, builder, length, settings.engine.max_new_tokens)
    tell_engine(settings, parts.engine, prompts, builder, model, length, processes=None)
    return policy, suites


def measure(evaluation: Evaluation, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for every problem of every suite; those that were measured before are not sampled again.

    Raises:
        UserError: for data or a model that cannot be had.
    """
    settings = evaluation.settings
    own_folder(evaluation.folder.parent)
    own_folder(evaluation.folder)
    record = JsonLines(evaluation.folder / "problems.jsonl")
    parts = parts_of(settings)
    parts.engine.settle(evaluation.folder, cards_for_engine(settings))
    read_problems(parts)
    _, suites = policy_and_suites(settings, parts)
    done = {(row["suite"], row["prompt_id"]) for row in measured(record, settings.eval.samples_per_prompt)}
    at_once = max(1, settings.engine.max_rows // settings.eval.samples_per_prompt)
    with closing(parts):
        for suite in suites:
            name = suite.name or HELD_OUT
            unmeasured = [p for p in suite.prompts if (name, p.id) not in done]
            for start in range(0, len(unmeasured), at_once):
                part = Suite(name, suite.sampler, unmeasured[start : start + at_once])
                record.append(rows_of(part, settings, evaluation.step))
                record.sync()
            say(
                f"{name}: {len(suite.prompts)} problems, {len(suite.prompts) - len(unmeasured)} of them measured before"
            )
    asked = {(suite.name or HELD_OUT, p.id) for suite in suites for p in suite.prompts}
    rows = measured(record, settings.eval.samples_per_prompt)
    return [row for row in rows if (row["suite"], row["prompt_id"]) in asked]  # not what other data left there


COUNTS = ("greedy", "correct", "distinct_correct", "verifier_errors", "truncated", "tokens")
"""What a row of ``rows_of`` counts."""


def measured(record: JsonLines, samples: int) -> list[dict[str, Any]]:
    """Return the rows of an evaluation that are as ``rows_of`` makes them, one for each problem; others are measured anew."""
    rows = {}
    for row in record.read():
        place, counts = (row.get("suite"), row.get("prompt_id")), [row.get(name) for name in COUNTS]
        texts = all(isinstance(text, str) for text in place)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts)
        if texts and whole and row.get("samples") == samples and row["greedy"] <= 1 and row["correct"] <= samples:
            rows[place] = row
    return list(rows.values())


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
    results = {}
    for name, strata in groups.items():
        values = [[figures(row) for row in stratum] for stratum in strata]
        intervals = share_intervals(values)
        problems = [row for stratum in strata for row in stratum]
        total = len(problems) * samples
        results[name] = {
            "problems": len(problems),
            "greedy": intervals[0],
            f"avg_at_{samples}": intervals[1],
            "pass_at": dict(enumerate(intervals[2:], 1)),
            "distinct_correct": sum(r["distinct_correct"] for r in problems) / len(problems),
            "length_mean": sum(r["tokens"] for r in problems) / total,
            "truncated_share": sum(r["truncated"] for r in problems) / total,
            "verifier_error_share": sum(r["verifier_errors"] for r in problems) / (total + len(problems)),
        }
    return results


def figures(row: Mapping[str, Any]) -> list[float]:
    """A problem's greedy verdict, its share of correct samples, and pass@1, 2, ... samples."""
    samples, correct = int(row["samples"]), int(row["correct"])
    return [row["greedy"], correct / samples, *(pass_at_k(samples, correct, k) for k in range(1, samples + 1))]


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
                print(one_line(f"left out, not finished: {run}"), file=sys.stderr)
        runs += [folder] if is_run(folder) else done
    return runs
