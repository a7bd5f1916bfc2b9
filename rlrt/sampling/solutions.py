"""The data's own solutions in place of rollouts: what a supervised start learns from."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlrt.errors import UserError
from rlrt.model.plain_text import END_OF_THOUGHT
from rlrt.model.prompting import PromptBuilder, response_texts
from rlrt.sampling.draw import Draw, rollout_metrics, token_count
from rlrt.sampling.sampler import Sampler
from rlrt.sampling.source import Source
from rlrt.seeds import derive
from rlrt.types import Generation, Prompt, Rollout

MEANT = ("reward/", "rollout/length", "rollout/tokens", "rollout/truncated")
"""Beginnings of the metrics of rollouts that say something of responses that nobody sampled."""


@dataclass(frozen=True)
class Lessons:
    """Writes the responses that a policy is taught.

    Args:
        builder: that of the student's prompts.
        template: ``method.response_template``.
        stop_ids: the tokens that end a response.
        longest: tokens that a response may have (``engine.max_new_tokens``): evaluation cuts a longer one.

    Raises:
        UserError: for a template that no text of the data stands in, or that never ends the thought that the prompt opens.
    """

    builder: PromptBuilder
    template: str
    stop_ids: Sequence[int]
    longest: int

    def __post_init__(self) -> None:
        if not self.needed:
            raise UserError(
                f"method.response_template: expected a text with {{solution}} or {{answer}} in it, got {self.template!r}."
            )
        if self.builder.opening and END_OF_THOUGHT not in self.template:
            raise UserError(
                f"method.response_template: this model's prompt opens a thought ({self.builder.opening}), and "
                f"{self.template!r} never ends it; put {END_OF_THOUGHT} where the answer begins, or set model.thinking=false."
            )

    @property
    def needed(self) -> set[str]:
        """The texts of a problem that the template names."""
        return {"solution", "answer"} & set(re.findall(r"\{(\w+)\}", self.template))

    @property
    def unlike_examples(self) -> bool:
        """True if a worked example's answer stands behind its prompt with a space, and a taught response without one."""
        return self.builder.spaces_examples and not self.template[:1].isspace()

    @functools.cached_property
    def end(self) -> int:
        """The token that ends a response."""
        return self.builder.ending(self.stop_ids)

    def ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt's response, the token that ends it included."""
        return [*self.builder.response(prompt, self.template), self.end]

    def unfit(self, prompt: Prompt) -> str | None:
        """Return why a problem has no response that can be taught, or None."""
        lacking = sorted(self.needed - response_texts(prompt).keys())
        if lacking:
            return f"problem without {lacking[0]}, which method.response_template names"
        ids = self.ids(prompt)
        if not set(self.stop_ids).isdisjoint(ids[:-1]):
            return "solution with a token inside it that ends a response (model.stop_tokens)"
        return f"solution over {self.longest} tokens (engine.max_new_tokens)" if len(ids) > self.longest else None


class Solutions(Source):
    """Gives each step the data's responses to its prompts, as rollouts that the verifier has judged.

    A step's prompts are those of a run that samples, and so a function of (seed, step). Nothing is sampled: log-probabilities
    and entropies of the rollouts are not known.

    Args:
        sampler, train, seed: as of ``Source``.
        lessons: writes the responses.
    """

    def __init__(self, sampler: Sampler, train: Any, seed: int, lessons: Lessons) -> None:
        super().__init__(sampler, train, seed)
        self._lessons = lessons

    @property
    def exact(self) -> bool:
        """True: no sampler has a probability of its own, so there is nothing to correct for."""
        return True

    def metrics(self, draw: Draw) -> dict[str, float]:
        """Numbers of a step's responses to log."""
        return {k: v for k, v in rollout_metrics(draw, 1).items() if k.startswith(MEANT)}

    def _draw(self, step: int, ahead: bool) -> Draw:
        prompts = self._prompts(step)
        generations = [unsampled(self._lessons.ids(prompt)) for prompt in prompts]
        rollouts = [
            Rollout(
                prompt=prompt,
                group=i,
                sample=0,
                seed=derive(self._seed, "train", step, prompt.id, 0),
                prompt_ids=self.sampler.builder.student(prompt),
                generation=generation,
                text=text,
                grade=grade,
            )
            for i, (prompt, generation, (text, grade)) in enumerate(
                zip(prompts, generations, self.sampler.judged(prompts, generations), strict=True)
            )
        ]
        # an update leaves rollouts without a verdict out; what is taught does not hang on the verifier
        taught = [replace(r, grade=replace(r.grade, error=False)) for r in rollouts]
        return Draw(taught, rollouts, token_count(rollouts))


def unsampled(ids: Sequence[int]) -> Generation:
    """A response that nobody sampled; NaN for what is not known of it."""
    unknown_T = torch.full((len(ids),), torch.nan)
    return Generation(list(ids), unknown_T, unknown_T, truncated=False)
