"""A run's checkpoint, or a model without a run, measured problem by problem."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlrt.config.compose import composed, composer, plain_of
from rlrt.config.load import load
from rlrt.config.overrides import grammar
from rlrt.config.rerun import OWN, TRUST, Reading, expand, is_run
from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.execution.build import load_model, prompt_builder, suites_of
from rlrt.execution.data import check_fit, drop_long_prompts, prepare_suites, prepare_task, tell_lacking_examples
from rlrt.execution.memory.share import tell_engine
from rlrt.execution.parts import Parts, cards_for_engine, closing, parts_of
from rlrt.model.load import context_length
from rlrt.model.policy import Policy
from rlrt.paths import saved_steps
from rlrt.records.files import mapping, own_folder, resolved
from rlrt.records.folder import RunFolder
from rlrt.records.identity import identity
from rlrt.records.jsonlines import JsonLines, is_number
from rlrt.records.names import readable
from rlrt.records.printable import one_line
from rlrt.reporting.terminal import Bar
from rlrt.sampling.draw import groups_of
from rlrt.sampling.sampler import Sampler, nothing
from rlrt.statistics import pass_at_k, share_intervals
from rlrt.training.evaluation import Suite, distinct, families, rollouts_of
from rlrt.types import Rollout, Sampling

HELD_OUT = "heldout"
"""Name of the held-out problems of the run's own data among suites."""


MEAN = "mean"
EVALUATIONS = Path("outputs/evaluations")
"""Folder of the evaluations of models without a run."""
READ = 5
"""Problems of each suite whose first responses are stored for a person to read."""
Load = Callable[[Settings], tuple[Any, Any]]
"""Gives the model of some settings, and its tokenizer."""


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint or a model, and the settings under which it is evaluated.

    Attributes:
        run: the run's folder; None: the model of a config, without a run.
        step: of the checkpoint; 0: the model before training.
        settings: the run's, its model being the checkpoint, with what was typed.
        folder: where the results go: named by the step, or by what was typed, and the identity of all this.
    """

    run: Path | None
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


def of_model(typed: Sequence[str], how: Reading = OWN) -> Evaluation:
    """The evaluation of a config's model, which no run has trained.

    Args:
        typed: overrides, composed as for a run.
        how: what the command line says of reading stored configs (``+from=RUN``) and of config groups.

    Raises:
        UserError: for a config that cannot work, or keys of Hydra's own section.
    """
    for name in (a.split("=", 1)[0].lstrip("+~") for a in typed):
        if name.startswith(("hydra.", "hydra/")):
            raise UserError(f"{name}: an evaluation does not read it; leave it out.")
    overrides = expand([*typed, *([TRUST] if how.trust else [])], how.config_dirs)
    with composer(how.config_dirs) as compose:
        plain, choices = plain_of(compose(overrides))
    return of_config(plain, choices, overrides)


def of_config(plain: Mapping[str, Any], choices: Mapping[str, str], overrides: Sequence[str]) -> Evaluation:
    """The evaluation of a composed config's model; one of the same identity has its folder already, whatever its name.

    Raises:
        UserError: for a config that cannot work.
    """
    settings = load(dict(plain), choices, overrides)
    short = identity(settings.plain)
    name = f"{readable(overrides, 'model=' + choices.get('model', 'default'))}-{short}"
    return Evaluation(None, 0, settings, next(iter(sorted(EVALUATIONS.glob(f"*-{short}"))), EVALUATIONS / name))


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


def policy_and_suites(settings: Settings, parts: Parts, load_one: Load = load_model) -> tuple[Policy, list[Suite]]:
    """An evaluation-only policy and its suites; the problems of ``parts`` have been read.

    Args:
        load_one: gives the model.

    Raises:
        UserError: for a model that cannot be had, or problems that leave no room for a response.
    """
    model, tokenizer = load_one(settings)
    policy = Policy(model, tokenizer, None, settings.engine.temperature)
    builder = prompt_builder(settings, tokenizer)
    if not parts.suites:
        drop_long_prompts(parts.task, builder)
    suites = suites_of(settings, parts, policy, builder)
    prompts = [p for suite in suites for p in suite.prompts]
    tell_lacking_examples(prompts, builder)
    length = context_length(model, settings.model.context_length)
    check_fit(prompts, builder, length, settings.engine.max_new_tokens)
    tell_engine(settings, parts.engine, prompts, builder, model, length, processes=None)
    return policy, suites


def measure(evaluation: Evaluation, say: Callable[[str], None], load_one: Load = load_model) -> list[dict[str, Any]]:
    """A row for every problem of every suite; those that were measured before are not sampled again.

    Args:
        say: told of every suite when it is done.
        load_one: gives the model.

    Raises:
        UserError: for data or a model that cannot be had.
    """
    settings = evaluation.settings
    own_folder(evaluation.folder.parent)
    own_folder(evaluation.folder)
    record, texts = (JsonLines(evaluation.folder / f"{name}.jsonl") for name in ("problems", "samples"))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    parts = parts_of(settings)
    parts.engine.settle(evaluation.folder, cards_for_engine(settings))
    read_problems(parts)
    policy, suites = policy_and_suites(settings, parts, load_one)
    done = {(row["suite"], row["prompt_id"]) for row in measured(record, settings.eval.samples_per_prompt)}
    at_once = max(1, settings.engine.max_rows // settings.eval.samples_per_prompt)
    with closing(parts):
        for suite in suites:
            name = suite.name or HELD_OUT
            unmeasured = [p for p in suite.prompts if (name, p.id) not in done]
            read = {p.id for p in suite.prompts[:READ]}
            with counted(suite.sampler, name, len(unmeasured), 1 + settings.eval.samples_per_prompt):
                for start in range(0, len(unmeasured), at_once):
                    part = Suite(name, suite.sampler, unmeasured[start : start + at_once])
                    rows, groups = rows_of(part, settings, evaluation.step)
                    shown = [rollout for group in groups if group[0].prompt.id in read for rollout in to_read(group)]
                    texts.append([text_row(r, name, evaluation.step, policy) for r in shown])
                    record.append(rows)
                    record.sync()
            say(
                f"{name}: {len(suite.prompts)} problems, {len(suite.prompts) - len(unmeasured)} of them measured before"
            )
    asked = {(suite.name or HELD_OUT, p.id) for suite in suites for p in suite.prompts}
    rows = measured(record, settings.eval.samples_per_prompt)
    return [row for row in rows if (row["suite"], row["prompt_id"]) in asked]  # not what other data left there


@contextmanager
def counted(sampler: Sampler, name: str, problems: int, responses: int) -> Iterator[None]:
    """Show how many problems are done, and the time left, while the block samples ``responses`` responses to each of them."""
    with Bar(name, problems, each=responses) as bar:
        sampler.heard = bar.one
        try:
            yield
        finally:
            sampler.heard = nothing


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


def rows_of_all(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the stored rows of an evaluation."""
    return measured(JsonLines(evaluation.folder / "problems.jsonl"), evaluation.settings.eval.samples_per_prompt)


def rows_of(part: Suite, settings: Settings, step: int) -> tuple[list[dict[str, Any]], list[list[Rollout]]]:
    """Sample and grade some problems of a suite: a row for each problem, and its samples."""
    config, samples = settings.eval, settings.eval.samples_per_prompt
    greedy, rollouts = rollouts_of(part, samples, Sampling(config.temperature, config.top_p, config.top_k))
    rows, groups = [], groups_of(rollouts, samples)
    for i, (prompt, group) in enumerate(zip(part.prompts, groups, strict=True)):
        kinds = {"distinct_families": families(part.sampler, group)} if part.sampler.task.families else {}
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
            | kinds
        )
    return rows, groups


def to_read(group: Sequence[Rollout]) -> list[Rollout]:
    """Return the first sample of a group, and the first one of the other verdict if there is one."""
    other = next((r for r in group if r.grade.correct != group[0].grade.correct), None)
    return [group[0]] if other is None else [group[0], other]


def text_row(rollout: Rollout, suite: str, step: int, policy: Policy) -> dict[str, Any]:
    """Return a sample for a person to read: the prompt as it was sent, the expected answer, the response and its verdict."""
    prompt, generation = rollout.prompt, rollout.generation
    return {
        "step": step,
        "suite": suite,
        "prompt_id": prompt.id,
        "sample": rollout.sample,
        "prompt": str(policy.tokenizer.decode(rollout.prompt_ids)),
        "expected": prompt.final if prompt.final is not None or not isinstance(prompt.answer, str) else prompt.answer,
        "response": rollout.text,
        "correct": rollout.grade.correct,
        "error": rollout.grade.error,
        "truncated": generation.truncated,
        "length": len(generation.token_ids),
    }


def texts_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the samples that an evaluation stored for a person to read, each once, in order of suite and problem."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in JsonLines(evaluation.folder / "samples.jsonl").read():
        rows.setdefault(tuple(str(row.get(name)) for name in ("suite", "prompt_id", "sample")), row)
    return list(rows.values())


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
            "mixed_share": sum(0 < r["correct"] < samples for r in problems) / len(problems),
            "distinct_correct": sum(r["distinct_correct"] for r in problems) / len(problems),
            "length_mean": sum(r["tokens"] for r in problems) / total,
            "truncated_share": sum(r["truncated"] for r in problems) / total,
            "verifier_error_share": sum(r["verifier_errors"] for r in problems) / (total + len(problems)),
        }
        kinds = [count for r in problems if is_number(count := r.get("distinct_families"))]
        if len(kinds) == len(problems):
            results[name]["distinct_families"] = sum(kinds) / len(kinds)
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
