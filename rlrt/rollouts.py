"""Sampling and grading a step's rollouts, and what they look like to a method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, ClassVar, Protocol

import torch

from rlrt.distributed.world import ALONE, World, parts
from rlrt.errors import UserError
from rlrt.forward import Row, pad
from rlrt.methods.signals import Signals
from rlrt.policy import Policy
from rlrt.prompting import PromptBuilder
from rlrt.seeds import derive, permutation
from rlrt.tasks.base import Task
from rlrt.types import Generation, Grade, Prompt, Rollout, Sampling

UNGRADED = Grade(correct=False, reward=0.0)
"""A truncated response's grade, and every response's before it is graded."""


class Engine(Protocol):
    """What the loop asks of a sampler.

    Attributes:
        exact: whether it samples from the trainer's own weights and arithmetic, and its entropies are exact.
    """

    max_new_tokens: int
    temperature: float
    exact: ClassVar[bool]

    def load(self, model: Any, stop_ids: Sequence[int], version: int) -> None:
        """Take the current weights; ``version`` counts the optimiser steps they have had."""

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, int, Generation]]:
        """Responses as they end: a prompt's index, the index of one of its seeds, and the response to it."""

    def release(self) -> None:
        """Give back what memory the device has for sampling, until the next ``load``."""

    def close(self) -> None:
        """End whatever was started."""


def step_prompts(prompts: Sequence[Prompt], seed: int, step: int, count: int) -> list[Prompt]:
    """The prompts of a step, all different: a function of (seed, step).

    An epoch is as many whole steps as the prompts allow, in an order of its own; what is left over at its end waits for
    another epoch's order.

    Raises:
        UserError: for fewer prompts than a step takes.
    """
    if count > len(prompts):
        raise UserError(
            f"train.prompts_per_step: a step takes {count} different prompts and the data has {len(prompts)}; set "
            f"train.prompts_per_step={len(prompts)} or less."
        )
    epoch, offset = divmod(step - 1, len(prompts) // count)
    order = permutation(len(prompts), seed, "prompts", epoch)
    return [prompts[i] for i in order[offset * count : (offset + 1) * count]]


def refill_prompts(
    prompts: Sequence[Prompt], seed: int, step: int, attempt: int, count: int, taken: Collection[str]
) -> list[Prompt]:
    """Replacements for groups without signal: a function of (seed, step, attempt), none of the ``taken`` ids."""
    order = permutation(len(prompts), seed, "refill", step, attempt)
    return [prompts[i] for i in order if prompts[i].id not in taken][:count]


def overlong_penalty(length: int, limit: int, cache: int) -> float:
    """DAPO's soft penalty (arXiv 2503.14476, eq. 13): 0 up to limit - cache, then linear to -1 at the limit, then -1."""
    if cache == 0 or length <= limit - cache:
        return 0.0
    return max(-1.0, (limit - cache - length) / cache)


class Sampler:
    """Prompts in, graded rollouts out.

    Args:
        engine, policy, builder, task: the parts.
        seed: the run's seed; a rollout's own seed is a function of (seed, stream, step, prompt, sample).
        overlong_cache: see ``overlong_penalty``; 0: none.
        world: the processes that share the rollouts; each samples and grades its part, all get the whole.

    Attributes:
        waited_s: seconds that all calls together waited for grades after the last response was there.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        builder: PromptBuilder,
        task: Task,
        seed: int,
        overlong_cache: int = 0,
        world: World = ALONE,
    ) -> None:
        self.engine, self.policy, self.builder, self.task = engine, policy, builder, task
        self.seed, self._overlong_cache, self.world = seed, overlong_cache, world
        self.waited_s = 0.0

    def __call__(
        self,
        prompts: Sequence[Prompt],
        samples: int,
        stream: tuple[object, ...],
        sampling: Sampling | None = None,
        load: bool = True,
    ) -> list[Rollout]:
        """``samples`` rollouts of every prompt, group after group; graded while others are still being sampled.

        Args:
            stream: names the random stream, for example ("train", step).
            sampling: instead of the engine's temperature.
            load: give the engine the weights of now first; False: it has those that are wanted.
        """
        ids = [self.builder.student(p) for p in prompts]
        seeds = [[derive(self.seed, *stream, p.id, g) for g in range(samples)] for p in prompts]
        share = parts([1] * (len(prompts) * samples), self.world.size)[self.world.rank]
        wanted: dict[int, list[int]] = {}
        for place in share:
            wanted.setdefault(place // samples, []).append(place % samples)
        if load:
            self.load()
        waiting = []
        mine, numbers = list(wanted), list(wanted.values())
        drawn = self.engine.sample([ids[i] for i in mine], [[seeds[i][g] for g in wanted[i]] for i in mine], sampling)
        for k, n, generation in drawn:
            i, g = mine[k], numbers[k][n]
            text = self.policy.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
            rollout = Rollout(prompts[i], i, g, seeds[i][g], ids[i], generation, text, UNGRADED)
            waiting.append((rollout, self._start_grading(rollout)))
        begin = perf_counter()
        for rollout, grade in waiting:
            rollout.grade = self._shaped(grade(), len(rollout.generation.token_ids))
        self.waited_s += perf_counter() - begin
        found = self.world.gather([(r.group, r.sample, r.generation, r.text, r.grade) for r, _ in waiting])
        return [
            Rollout(prompts[i], i, g, seeds[i][g], ids[i], generation, text, grade)
            for i, g, generation, text, grade in sorted(found, key=lambda one: one[:2])
        ]

    def load(self) -> None:
        """Give the engine the policy's weights of now."""
        self.engine.load(self.policy.model, self.policy.stop_ids, self.policy.version)

    def _start_grading(self, rollout: Rollout) -> Callable[[], Grade]:
        """Ask for a grade: a verifier in processes of its own works on it beside the sampling; waits when called."""
        if rollout.generation.truncated:
            return lambda: UNGRADED
        text = self.builder.opening + rollout.text  # an unended thought that the prompt began must be seen as one
        start = getattr(self.task, "start_grading", None)
        if start is None:
            return lambda: self.task.grade(rollout.prompt, text)
        pending = start([(rollout.prompt, text)])
        return lambda: pending()[0]

    def _shaped(self, grade: Grade, length: int) -> Grade:
        penalty = overlong_penalty(length, self.engine.max_new_tokens, self._overlong_cache)
        return replace(grade, reward=grade.reward + penalty) if penalty else grade


def carries_signal(group: Sequence[Rollout]) -> bool:
    """Whether the rewards of a group differ."""
    rewards = [r.grade.reward for r in group]
    return max(rewards) > min(rewards)


def is_mixed(group: Sequence[Rollout]) -> bool:
    """Whether some rollouts of a group are correct and some are not; dynamic sampling reads verdicts, not rewards."""
    return 0 < sum(r.grade.correct for r in group) < len(group)


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
    """

    rollouts: list[Rollout]
    first: list[Rollout]
    sampled: int
    attempts: int = 0
    replaced: int = 0


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
        chosen = refill_prompts(sampler.task.train, sampler.seed, step, attempt, len(empty), taken)
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


def signals_of(rollouts: Sequence[Rollout], step: int, special_ids: Sequence[int], exact: bool = True) -> Signals:
    """What a method may read, before anything is scored (log-probabilities and entropies are still zero).

    Args:
        exact: whether the rollouts were sampled by the weights that are trained now, by the trainer's arithmetic.
    """
    width = max(len(r.generation.token_ids) for r in rollouts)
    token_BT = pad([torch.tensor(r.generation.token_ids) for r in rollouts], width)
    length_B = torch.tensor([len(r.generation.token_ids) for r in rollouts])
    mask_BT = torch.arange(width)[None] < length_B[:, None]
    zeros_BT = torch.zeros(len(rollouts), width)
    return Signals(
        step=step,
        group_B=torch.tensor([r.group for r in rollouts]),
        reward_B=torch.tensor([r.grade.reward for r in rollouts]),
        correct_B=torch.tensor([r.grade.correct for r in rollouts]),
        seed_B=torch.tensor([r.seed for r in rollouts]),
        token_BT=token_BT,
        mask_BT=mask_BT,
        special_BT=torch.isin(token_BT, torch.tensor(list(special_ids), dtype=torch.long)) & mask_BT,
        logp_BT=zeros_BT,
        entropy_BT=zeros_BT.clone(),
        scored_B=torch.zeros(len(rollouts), dtype=torch.bool),
        sampler_logp_BT=None if exact else pad([r.generation.logp_T for r in rollouts], width),
        text_B=[r.text for r in rollouts],
    )


def student_rows(rollouts: Sequence[Rollout]) -> list[Row]:
    """The sequences that the student is scored and trained on."""
    return [Row(r.prompt_ids, r.generation.token_ids) for r in rollouts]


def rollout_metrics(draw: Draw, samples: int) -> dict[str, float]:
    """Rewards, lengths, groups and entropy of a step's first draw, and the cost of what dynamic sampling added to it."""
    rollouts, groups = draw.first, groups_of(draw.first, samples)
    count, tokens = len(rollouts), token_count(rollouts)
    correct = [sum(r.grade.correct for r in group) for group in groups]
    trained = groups_of(draw.rollouts, samples)
    return {
        "reward/mean": sum(r.grade.reward for r in rollouts) / count,
        "reward/correct_share": sum(correct) / count,
        "reward/verifier_error_share": sum(r.grade.error for r in rollouts) / count,
        "rollout/length_mean": tokens / count,
        "rollout/length_max": float(max(len(r.generation.token_ids) for r in rollouts)),
        "rollout/truncated_share": sum(r.generation.truncated for r in rollouts) / count,
        "rollout/tokens": float(draw.sampled),
        "policy/entropy": entropy_mean(rollouts),
        "group/all_correct_share": sum(c == samples for c in correct) / len(groups),
        "group/all_wrong_share": sum(c == 0 for c in correct) / len(groups),
        "group/no_signal_share": sum(not carries_signal(g) for g in trained) / len(groups),
        "group/refill_attempts": float(draw.attempts),
        "group/replaced": float(draw.replaced),
    }


def entropy_mean(rollouts: Sequence[Rollout]) -> float:
    """Mean entropy per token of the distributions that rollouts were sampled from, nats; of engines that are not ``exact`` an
    unbiased estimate of it."""
    return float(sum(r.generation.entropy_T.double().sum() for r in rollouts)) / token_count(rollouts)
