"""Sampling and grading a step's rollouts, and what they look like to a method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from time import perf_counter

from rlrt.distributed.world import ALONE, World, parts
from rlrt.engines.engine import Engine
from rlrt.errors import UserError
from rlrt.model.policy import Policy
from rlrt.model.prompting import PromptBuilder
from rlrt.seeds import derive, permutation
from rlrt.tasks.base import Task
from rlrt.types import Grade, Prompt, Rollout, Sampling

UNGRADED = Grade(correct=False, reward=0.0)
"""A truncated response's grade, and every response's before it is graded."""


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
