"""Sampling and grading a step's rollouts, and what they look like to a method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from rlrt.distributed.world import ALONE, World, parts
from rlrt.engines.engine import Engine
from rlrt.errors import Interrupted, UserError
from rlrt.model.policy import Policy
from rlrt.model.prompting import PromptBuilder
from rlrt.sampling.grading import Door
from rlrt.sampling.mixing import mixed_prompts, numbers_of, of_source
from rlrt.seeds import derive, permutation
from rlrt.tasks.base import Task
from rlrt.types import Generation, Grade, Prompt, Rollout, Sampling


def step_prompts(
    prompts: Sequence[Prompt], seed: int, step: int, count: int, shares: Mapping[str, float] | None = None
) -> list[Prompt]:
    """The prompts of a step, all different: a function of (seed, step).

    An epoch is as many whole steps as the prompts allow, in an order of its own; what is left over at its end waits for
    another epoch's order. With ``shares``, each source of a mixture has epochs of its own (``rlrt.sampling.mixing``).

    Raises:
        UserError: for fewer prompts than a step takes.
    """
    if count > len(prompts):
        raise UserError(
            f"train.prompts_per_step: a step takes {count} different prompts and the data has {len(prompts)}; set "
            f"train.prompts_per_step={len(prompts)} or less."
        )
    if shares is not None:
        return mixed_prompts(prompts, seed, step, count, shares)
    epoch, offset = divmod(step - 1, len(prompts) // count)
    order = permutation(len(prompts), seed, "prompts", epoch)
    return [prompts[i] for i in order[offset * count : (offset + 1) * count]]


def refill_prompts(
    prompts: Sequence[Prompt],
    seed: int,
    step: int,
    attempt: int,
    count: int,
    taken: Collection[str],
    shares: Mapping[str, float] | None = None,
) -> list[Prompt]:
    """Replacements for groups without signal: a function of (seed, step, attempt), none of the ``taken`` ids; in the shares of
    a mixture, as far as there are such prompts."""
    order = permutation(len(prompts), seed, "refill", step, attempt)
    free = [prompts[i] for i in order if prompts[i].id not in taken]
    if shares is None:
        return free[:count]
    return [
        p for name, n in numbers_of(shares, count, seed, "refill", step, attempt) for p in of_source(free, name)[:n]
    ]


def overlong_penalty(length: int, limit: int, cache: int, weight: float) -> float:
    """DAPO's soft penalty (arXiv 2503.14476, eq. 13) times ``weight``: 0 up to limit - cache, then linear to -1 at the limit,
    then -1. Beside the rewards 1 and -1 of that paper -1 is half of what a correct answer is worth; beside 1 and 0, .5 is."""
    if cache == 0 or length <= limit - cache:
        return 0.0
    return weight * max(-1.0, (limit - cache - length) / cache)


def nothing() -> None:
    """Do nothing."""


class Sampler:
    """Prompts in, graded rollouts out.

    Args:
        engine, policy, builder, task: the parts.
        seed: the run's seed; a rollout's own seed is a function of (seed, stream, step, prompt, sample).
        overlong: cache and weight of ``overlong_penalty``; a cache of 0: none.
        world: the processes that share the rollouts; each samples and grades its part, all get the whole.

    Attributes:
        waited_s: seconds that all calls together waited for grades after the last response was there.
        heard: called after each response that this process samples, for whoever shows how far it is.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        builder: PromptBuilder,
        task: Task,
        seed: int,
        overlong: tuple[int, float] = (0, 0.0),
        world: World = ALONE,
    ) -> None:
        self.engine, self.policy, self.builder, self.task = engine, policy, builder, task
        self.seed, self._overlong, self.world = seed, overlong, world
        self.waited_s = 0.0
        self.heard: Callable[[], None] = nothing
        self._door = Door(type(task).__name__)

    def __call__(
        self,
        prompts: Sequence[Prompt],
        samples: int,
        stream: tuple[object, ...],
        sampling: Sampling | None = None,
        load: bool = True,
        shown: Sequence[Sequence[int]] | None = None,
    ) -> list[Rollout]:
        """Sample ``samples`` rollouts of every prompt, and grade them while others are still being sampled.

        Each rank samples and grades its share; all ranks get all rollouts.

        Args:
            stream: names the random stream, for example ("train", step).
            sampling: instead of the engine's temperature.
            load: sync the current weights to the engine first.
            shown: token ids that the engine is given, one list for each prompt, instead of the student's.

        Returns:
            the rollouts, group after group.

        Raises:
            Interrupted: on all ranks, if a rank's engine was told to stop.
        """
        ids = [self.builder.student(p) for p in prompts] if shown is None else [list(one) for one in shown]
        seeds = [[derive(self.seed, *stream, p.id, g) for g in range(samples)] for p in prompts]
        pairs = [(i, g) for i in range(len(prompts)) for g in range(samples)]
        share = parts([1] * len(pairs), self.world.size)[self.world.rank]
        own: dict[int, list[int]] = {}  # this rank's samples, by prompt
        for i, g in pairs[share.start : share.stop]:
            own.setdefault(i, []).append(g)
        if load:
            self.load()
        own_prompts = list(own)
        responses = self.engine.sample([ids[i] for i in own], [[seeds[i][g] for g in own[i]] for i in own], sampling)
        answered = []
        for k, n, generation in responses:
            self._check(generation)
            i = own_prompts[k]
            text = self.policy.text(generation.token_ids)
            answered.append((i, own[i][n], generation, text, self._start_grading(prompts[i], text, generation)))
            self.heard()
            if self.engine.asked_to_end():
                break
        if self.world.any(self.engine.asked_to_end()):
            raise Interrupted
        if len(answered) != len(share):
            raise UserError(
                f"engine: expected a response to every prompt and seed, {len(share)} in all, got {len(answered)} from "
                f"{type(self.engine).__name__}.sample; see docs/engines.md."
            )
        begin = perf_counter()
        graded = [
            (i, g, generation, text, self._shaped(grade(), len(generation.token_ids)))
            for i, g, generation, text, grade in answered
        ]
        self.waited_s += perf_counter() - begin
        return [
            Rollout(prompts[i], i, g, seeds[i][g], ids[i], generation, text, grade)
            for i, g, generation, text, grade in sorted(self.world.gather(graded), key=lambda one: one[:2])
        ]

    def judged(self, prompts: Sequence[Prompt], generations: Sequence[Generation]) -> list[tuple[str, Grade]]:
        """Texts and grades of responses that no engine sampled, one for each prompt; all ranks get those of the first one."""

        def judge() -> list[tuple[str, Grade]]:
            texts = [self.policy.text(g.token_ids) for g in generations]
            waiting = [self._start_grading(*one) for one in zip(prompts, texts, generations, strict=True)]
            return [(text, grade()) for text, grade in zip(texts, waiting, strict=True)]

        return self.world.on_main(judge)

    def load(self) -> None:
        """Give the engine the policy's weights of now."""
        self.engine.load(self.policy.model, self.policy.stop_ids, self.policy.version)

    def synced(self) -> tuple[float, int]:
        """Seconds and bytes of all moves of weights to the engine so far."""
        return self.engine.synced_s, self.engine.synced_bytes

    def _start_grading(self, prompt: Prompt, text: str, generation: Generation) -> Callable[[], Grade]:
        """Ask for a grade; a verifier in processes of its own works beside the sampling. The result waits for the grade."""
        # the verifier must see a thought that the prompt began and the response did not end
        pair = (prompt, self.builder.opening + text)
        if generation.truncated and not self.engine.grade_truncated:
            return self._door.begin(lambda: lambda: replace(self.task.grade_truncated(*pair), correct=False))

        def start() -> Callable[[], Any]:
            pending = self.task.start_grading([pair])
            return lambda: pending()[0]

        return self._door.begin(start)

    def _check(self, generation: Generation) -> None:
        """Refuse a response that cannot be trained on.

        Raises:
            UserError: with the lengths.
        """
        tokens, logp, entropy = len(generation.token_ids), len(generation.logp_T), len(generation.entropy_T)
        if not tokens or (logp, entropy) != (tokens, tokens):
            raise UserError(
                f"engine: expected at least one token, and a log-probability and an entropy for each, got {tokens} tokens, "
                f"{logp} log-probabilities and {entropy} entropies from {type(self.engine).__name__}.sample; see "
                "docs/engines.md."
            )

    def _shaped(self, grade: Grade, length: int) -> Grade:
        if grade.error:
            return grade
        penalty = overlong_penalty(length, self.engine.max_new_tokens, *self._overlong)
        return replace(grade, reward=grade.reward + penalty) if penalty else grade
