"""All analyses of a run: pass@k, distribution shift, intervention, and information asymmetry, over its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.config.rerun import Reading
from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.evaluation import asymmetry
from rlrt.evaluation.analysis import RARE, Shift, by_difficulty, intervene, shift
from rlrt.evaluation.checkpoint import chosen, counted, measure, policy_and_suites, read_problems, summarised
from rlrt.execution.parts import cards_for_engine, closing, parts_of
from rlrt.model.load import context_length
from rlrt.model.policy import Policy
from rlrt.model.prompting import PromptBuilder
from rlrt.paths import saved_steps
from rlrt.reporting.jobs import read_job
from rlrt.training.batch import student_rows
from rlrt.types import Rollout

FOLDER = "analysis"
"""In a run's folder, and in the folder that the runs share."""


SAMPLES = 8
"""Rollouts of a problem that decide whether it is hard or easy (the paper's)."""


THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Divergences of the complementary distribution function, nats."""


@dataclass
class Findings:
    """The measurements of a run.

    Attributes:
        label: what tells the run from the others.
        hard, easy: how many problems the start solves seldom, and mostly.
        shift: of the last checkpoint along its rollouts on hard problems; None without hard problems.
        turned: (step, kind, place) -> (rollouts whose verdict turned, rollouts tried).
        pass_at: name of the policy -> pass@1, 2, ...
        gaps: name of the policy -> D of its rollouts under several teacher contexts.
    """

    label: str
    hard: int = 0
    easy: int = 0
    shift: Shift | None = None
    turned: dict[tuple[int, str, str], tuple[int, int]] = field(default_factory=dict)
    pass_at: dict[str, list[float]] = field(default_factory=dict)
    gaps: dict[str, asymmetry.Gaps] = field(default_factory=dict)


def study(run: Path, typed: Sequence[str], insertion: str, how: Reading, contexts: Sequence[str]) -> Findings:
    """All analyses of a run.

    Args:
        contexts: the teacher contexts under which D is compared, as they are written.

    Raises:
        UserError: for a run without a checkpoint, or data that cannot be had.
    """
    steps = list(saved_steps(run))
    if not steps:
        raise UserError(f"{run}: expected a checkpoint, found none; let the run finish.")
    job = read_job(run)
    findings = Findings(f"{job.label} seed={job.seed}")
    start = chosen(run, 0, typed, how).settings
    parts = parts_of(start)
    parts.engine.settle(run, cards_for_engine(start))
    read_problems(parts)
    with closing(parts):
        base, (suite, *_) = policy_and_suites(start, parts)
        with counted(suite.sampler, "difficulty", len(suite.prompts), SAMPLES):
            rollouts = suite.sampler(suite.prompts, SAMPLES, ("difficulty",))
        hard, easy = by_difficulty(rollouts, SAMPLES)
        findings.hard, findings.easy = len(hard), len(easy)
        findings.gaps["start"] = gaps_of(start, base, suite.sampler.builder, contexts, rollouts)
        for step in [0, *steps]:
            settings = chosen(run, step, typed, how).settings
            policy, (suite_now, *_) = policy_and_suites(settings, parts)
            put_in = policy.tokenizer(insertion, add_special_tokens=False)["input_ids"] if insertion else []
            budget = settings.train.budget
            for kind, prompts in (("wrong to right", hard), ("right to wrong", easy)):
                if prompts:
                    to_right = kind == "wrong to right"
                    with counted(suite_now.sampler, f"step {step}, {kind}", len(prompts), SAMPLES):
                        turned = intervene(suite_now.sampler, prompts, SAMPLES, to_right, put_in, budget)
                    findings.turned |= {(step, kind, where): counts for where, counts in turned.items()}
            if step == steps[-1] and hard:
                with counted(suite_now.sampler, "distribution shift", len(hard), SAMPLES):
                    rows = student_rows(suite_now.sampler(hard, SAMPLES, ("shift",)))
                findings.shift = shift(policy.model, base.model, rows, policy.temperature, budget)
            if step == steps[-1]:
                with counted(suite_now.sampler, "asymmetry", len(suite_now.prompts), SAMPLES):
                    rollouts = suite_now.sampler(suite_now.prompts, SAMPLES, ("asymmetry",))
                findings.gaps["last"] = gaps_of(settings, policy, suite_now.sampler.builder, contexts, rollouts)
    for name, step in (("start", 0), ("last", steps[-1])):
        summary = next(iter(summarised(measure(chosen(run, step, typed, how), lambda text: None)).values()))
        findings.pass_at[name] = [value for value, _, _ in summary["pass_at"].values()]
    return findings


def gaps_of(
    settings: Settings, policy: Policy, builder: PromptBuilder, names: Sequence[str], rollouts: Sequence[Rollout]
) -> asymmetry.Gaps:
    """D of a policy's rollouts under several contexts, by the teacher's prompt of the run."""
    view = asymmetry.View(
        asymmetry.contexts_of(names),
        builder,
        settings.teacher.max_context_tokens,
        context_length(policy.model, settings.model.context_length),
    )
    return asymmetry.gaps(policy, view, names, rollouts, settings.train.budget)


def tables(findings: Findings) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Headings and rows by the name of their files."""
    passes = [[name, k, value] for name, values in findings.pass_at.items() for k, value in enumerate(values, 1)]
    made: dict[str, tuple[list[str], list[list[Any]]]] = {
        "pass_at_k": (["policy", "k", "pass_at_k"], passes),
        "intervention": (
            ["step", "kind", "place", "turned", "tried"],
            [[*key, *counts] for key, counts in findings.turned.items()],
        ),
        "asymmetry": (
            ["policy", "verdict", "context", "class", "tokens", "share_of_tokens", "share_of_abs_d", "mean_d", "mean_abs_d"],
            [[name, *row] for name, found in findings.gaps.items() for row in asymmetry.carriers(found)],
        ),
        "asymmetry_correlation": (
            ["policy", "verdict", "context", "other_context", "tokens", "correlation"],
            [[name, *row] for name, found in findings.gaps.items() for row in asymmetry.correlations(found)],
        ),
    }  # fmt: skip
    if findings.shift is not None:
        js_N, moved = findings.shift.js_N, len(findings.shift.promoted_M)
        made["shift"] = (
            ["js_above", "share_of_positions"],
            [[t, float((js_N > t).float().mean())] for t in THRESHOLDS],
        )
        if moved:
            means = findings.shift.overlap_MK.mean(0).tolist()
            made["overlap"] = (["k", "overlap_at_moved_positions"], [[k, v] for k, v in enumerate(means, 1)])
            shares = [[t, float((findings.shift.promoted_M < t).float().mean())] for t in RARE]
            made["promoted"] = (["base_probability_below", "share_of_moved_positions"], shares)
    return made
