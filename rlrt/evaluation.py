"""Held-out evaluation: greedy, avg@k, unbiased pass@k, distinct correct solutions."""

from __future__ import annotations

from collections.abc import Sequence

from rlrt.rollouts import Sampler, entropy_mean
from rlrt.statistics import ladder, pass_at_k
from rlrt.types import Prompt, Rollout


def evaluate(sampler: Sampler, prompts: Sequence[Prompt], samples: int, temperature: float) -> dict[str, float]:
    """Accuracy on ``prompts``, over ``samples`` rollouts of each and one greedy rollout.

    The samples' seeds are functions of (sampler's seed, prompt, sample) alone: the same at every step and in every run
    that shares the evaluation seed, so that evaluations compare.

    Returns:
        ``eval/greedy``, ``eval/avg_at_k``, ``eval/pass_at_1, 2, 4 ... k``, ``eval/distinct_correct`` (different correct
        solutions among k), ``eval/entropy`` (nats per token), ``eval/length_mean`` (tokens), ``eval/truncated_share``,
        ``eval/verifier_error_share``.
    """
    greedy = sampler(prompts, 1, ("greedy",), temperature=0.0)
    rollouts = sampler(prompts, samples, ("evaluation",), temperature=temperature)
    groups = [rollouts[i : i + samples] for i in range(0, len(rollouts), samples)]
    correct = [sum(r.grade.correct for r in group) for group in groups]
    lengths = [len(r.generation.token_ids) for r in rollouts]
    metrics = {
        "eval/greedy": sum(r.grade.correct for r in greedy) / len(greedy),
        f"eval/avg_at_{samples}": sum(correct) / len(rollouts),
        "eval/distinct_correct": sum(distinct(sampler, group) for group in groups) / len(groups),
        "eval/entropy": entropy_mean(rollouts),
        "eval/length_mean": sum(lengths) / len(rollouts),
        "eval/truncated_share": sum(r.generation.truncated for r in rollouts) / len(rollouts),
        "eval/verifier_error_share": sum(r.grade.error for r in rollouts) / len(rollouts),
    }
    for k in ladder(samples):
        metrics[f"eval/pass_at_{k}"] = sum(pass_at_k(samples, c, k) for c in correct) / len(correct)
    return metrics


def distinct(sampler: Sampler, group: Sequence[Rollout]) -> int:
    """How many different solutions a group's correct rollouts found."""
    return len({sampler.task.canonical(r.prompt, r.text) for r in group if r.grade.correct})
