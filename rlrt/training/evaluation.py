"""Evaluation: greedy, avg@k, unbiased pass@k, distinct correct solutions; on held-out prompts or on benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlrt.sampling.draw import entropy_mean, groups_of
from rlrt.sampling.sampler import Sampler
from rlrt.statistics import ladder, pass_at_k
from rlrt.types import Prompt, Rollout, Sampling

GREEDY = Sampling(0.0)


@dataclass(frozen=True)
class Suite:
    """Prompts to evaluate on.

    Attributes:
        name: of the benchmark; empty for a task's held-out prompts.
        sampler: whose task grades them.
        prompts: in a fixed order.
    """

    name: str
    sampler: Sampler
    prompts: Sequence[Prompt]


def evaluate(suites: Sequence[Suite], samples: int, sampling: Sampling) -> dict[str, float]:
    """Accuracy over ``samples`` rollouts of each prompt and one greedy rollout.

    The samples' seeds are functions of (sampler's seed, prompt, sample) alone: the same at every step and in every run that
    shares the evaluation seed, so that evaluations compare.

    Returns:
        ``eval/greedy``, ``eval/avg_at_k``, ``eval/pass_at_1, 2, 4 ... k``, ``eval/distinct_correct`` (different correct
        solutions among k), ``eval/distinct_families`` (different kinds of them, where the task tells kinds apart),
        ``eval/entropy`` (nats per token), ``eval/length_mean`` (tokens), ``eval/truncated_share``,
        ``eval/verifier_error_share``. Of named suites the same as ``eval/NAME/...``, and under the bare names the mean over
        the suites, each counting alike whatever its size.
    """
    by_suite = {suite.name: metrics(suite, *rollouts_of(suite, samples, sampling)) for suite in suites}
    if list(by_suite) == [""]:
        return {f"eval/{name}": value for name, value in by_suite[""].items()}
    names = next(iter(by_suite.values()))
    means = {f"eval/{name}": sum(m[name] for m in by_suite.values()) / len(by_suite) for name in names}
    return means | {f"eval/{suite}/{name}": value for suite, m in by_suite.items() for name, value in m.items()}


def rollouts_of(suite: Suite, samples: int, sampling: Sampling) -> tuple[list[Rollout], list[Rollout]]:
    """One greedy rollout of each prompt, and ``samples`` others, group after group."""
    greedy = suite.sampler(suite.prompts, 1, ("greedy",), GREEDY)
    return greedy, suite.sampler(suite.prompts, samples, ("evaluation",), sampling)


def metrics(suite: Suite, greedy: Sequence[Rollout], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The numbers of a suite, by their bare names."""
    samples = len(rollouts) // len(suite.prompts)
    groups = groups_of(rollouts, samples)
    correct = [sum(r.grade.correct for r in group) for group in groups]
    lengths = [len(r.generation.token_ids) for r in rollouts]
    numbers = {
        "greedy": sum(r.grade.correct for r in greedy) / len(greedy),
        f"avg_at_{samples}": sum(correct) / len(rollouts),
        "distinct_correct": sum(distinct(suite.sampler, group) for group in groups) / len(groups),
        "entropy": entropy_mean(rollouts),
        "length_mean": sum(lengths) / len(rollouts),
        "truncated_share": sum(r.generation.truncated for r in rollouts) / len(rollouts),
        "verifier_error_share": sum(r.grade.error for r in rollouts) / len(rollouts),
    }
    if suite.sampler.task.families:
        numbers["distinct_families"] = sum(families(suite.sampler, group) for group in groups) / len(groups)
    for k in ladder(samples):
        numbers[f"pass_at_{k}"] = sum(pass_at_k(samples, c, k) for c in correct) / len(correct)
    return numbers


def distinct(sampler: Sampler, group: Sequence[Rollout]) -> int:
    """Number of different solutions among a group's correct rollouts."""
    return len({sampler.task.canonical(r.prompt, r.text) for r in group if r.grade.correct})


def families(sampler: Sampler, group: Sequence[Rollout]) -> int:
    """Number of different kinds of solutions among a group's correct rollouts."""
    return len({sampler.task.family(r.prompt, r.text) for r in group if r.grade.correct})
