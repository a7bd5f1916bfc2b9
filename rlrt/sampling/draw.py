"""A step's rollouts: groups, dynamic sampling, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlrt.sampling.sampler import Sampler, refill_prompts
from rlrt.types import Prompt, Rollout


def judged(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts that the verifier judged; it failed on the others, and nothing is known of them."""
    return [r for r in rollouts if not r.grade.error]


def carries_signal(group: Sequence[Rollout]) -> bool:
    """True if the rewards of a group differ."""
    rewards = [r.grade.reward for r in judged(group)]
    return bool(rewards) and max(rewards) > min(rewards)


def is_mixed(group: Sequence[Rollout]) -> bool:
    """True if a group has correct and wrong rollouts; dynamic sampling reads verdicts, not rewards."""
    return 0 < sum(r.grade.correct for r in group) < len(judged(group))


def groups_of(rollouts: Sequence[Rollout], samples: int) -> list[list[Rollout]]:
    """Rollouts, group after group, as lists."""
    return [list(rollouts[i : i + samples]) for i in range(0, len(rollouts), samples)]


@dataclass
class Draw:
    """A step's rollouts.

    Attributes:
        rollouts: what is trained on.
        first: the first draw, before dynamic sampling: what compares with other methods.
        sampled: tokens sampled in all, discarded groups included.
        attempts: times that groups were drawn again.
        replaced: groups that were replaced.
        seconds: of the wall clock, by the name of the metric.
    """

    rollouts: list[Rollout]
    first: list[Rollout]
    sampled: int
    attempts: int = 0
    replaced: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def with_refills(
    sampler: Sampler, prompts: Sequence[Prompt], samples: int, step: int, max_refills: int, load: bool = True
) -> Draw:
    """The step's rollouts, all-wrong and all-correct groups replaced up to ``max_refills`` times (DAPO).

    A replacement is kept where its group is mixed; the rest stay as they were.
    """
    first = sampler(prompts, samples, ("train", step), load=load)
    draw = Draw(first, first, token_count(first))
    taken = {p.id for p in prompts}
    for attempt in range(1, max_refills + 1):
        groups = groups_of(draw.rollouts, samples)
        empty = [i for i, group in enumerate(groups) if not is_mixed(group)]
        shares = getattr(sampler.task, "shares", None)
        chosen = refill_prompts(sampler.task.train, sampler.seed, step, attempt, len(empty), taken, shares)
        if not chosen:
            break
        taken |= {p.id for p in chosen}
        fresh = sampler(chosen, samples, ("refill", step, attempt))
        draw.attempts, draw.sampled = attempt, draw.sampled + token_count(fresh)
        useful = [group for group in groups_of(fresh, samples) if is_mixed(group)]
        for slot, group in zip(empty, useful, strict=False):
            for rollout in group:
                rollout.group = slot
            groups[slot] = group
            draw.replaced += 1
        draw.rollouts = [rollout for group in groups for rollout in group]
    return draw


def token_count(rollouts: Sequence[Rollout]) -> int:
    """Response tokens in all."""
    return sum(len(r.generation.token_ids) for r in rollouts)


def rollout_metrics(draw: Draw, samples: int) -> dict[str, float]:
    """Rewards, lengths, groups and entropy of a step's first draw, and the cost of what dynamic sampling added to it.

    Of a mixture also ``reward/SOURCE/mean``, ``reward/SOURCE/correct_share`` and ``rollout/SOURCE/share``.
    """
    rollouts, groups = draw.first, groups_of(draw.first, samples)
    count, tokens = len(rollouts), token_count(rollouts)
    known = judged(rollouts)
    correct = [sum(r.grade.correct for r in group) for group in groups]
    judged_in = [len(judged(group)) for group in groups]
    names = sorted({name for r in known for name in r.grade.parts})
    trained = groups_of(draw.rollouts, samples)
    return by_source(rollouts) | {
        "reward/mean": sum(r.grade.reward for r in known) / max(1, len(known)),
        "reward/correct_share": sum(correct) / max(1, len(known)),
        "reward/verifier_error_share": sum(r.grade.error for r in rollouts) / count,
        "rollout/length_mean": tokens / count,
        "rollout/length_max": float(max(len(r.generation.token_ids) for r in rollouts)),
        "rollout/truncated_share": sum(r.generation.truncated for r in rollouts) / count,
        "rollout/tokens": float(draw.sampled),
        "policy/entropy": entropy_mean(rollouts),
        "group/all_correct_share": sum(0 < c == n for c, n in zip(correct, judged_in, strict=True)) / len(groups),
        "group/all_wrong_share": sum(c == 0 < n for c, n in zip(correct, judged_in, strict=True)) / len(groups),
        "group/no_signal_share": sum(not carries_signal(g) for g in trained) / len(groups),
        "group/refill_attempts": float(draw.attempts),
        "group/replaced": float(draw.replaced),
        **{f"reward/{name}": part_mean(known, name) for name in names},
    }


def by_source(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The rewards of each source of a mixture, and its share of the rollouts; nothing where there is one data set."""
    numbers = {}
    for name in sorted({r.prompt.source for r in rollouts} - {""}):
        own = [r for r in rollouts if r.prompt.source == name]
        known = [r.grade for r in judged(own)]
        numbers[f"reward/{name}/mean"] = sum(g.reward for g in known) / max(1, len(known))
        numbers[f"reward/{name}/correct_share"] = sum(g.correct for g in known) / max(1, len(known))
        numbers[f"rollout/{name}/share"] = len(own) / len(rollouts)
    return numbers


def part_mean(rollouts: Sequence[Rollout], name: str) -> float:
    """Mean of one part of the rewards, over the rollouts that have it."""
    values = [r.grade.parts[name] for r in rollouts if name in r.grade.parts]
    return sum(values) / len(values)


def entropy_mean(rollouts: Sequence[Rollout]) -> float:
    """Mean entropy per token of the distributions that rollouts were sampled from, nats; of engines that are not ``exact`` an
    unbiased estimate of it."""
    return float(sum(r.generation.entropy_T.double().sum() for r in rollouts)) / token_count(rollouts)
