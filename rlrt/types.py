"""The values that pass between the parts of a run, and the legend of shape suffixes.

Suffixes name the axes of a tensor or list: ``B`` rollouts, ``T`` response tokens (padded to the longest), ``N`` response
tokens of all rollouts laid end to end (no padding), ``C`` the tokens of one chunk of N, ``M`` those of N that have a
teacher, ``V`` vocabulary, ``H`` hidden size, ``S`` sequences of a packing, ``P`` prompts, ``G`` rollouts of one prompt,
``K`` several of a kind, ``1`` an axis of length 1. ``logp`` is a natural logarithm; entropies and divergences are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One problem of a task.

    Attributes:
        id: stable name of the problem, the same in every run.
        text: what the model is asked, before any template of the model.
        answer: what the verifier needs to grade a response (opaque to everybody else).
        solution: a reference solution, or None where the data has none.
        final: the final answer as text, or None.
        states_answer: whether ``text`` already gives the final answer away (as countdown's target does).
        instruction: how the answer is to be given; empty where ``text`` says it.
        source: name of the data set in a mixture of several; empty where there is one.
        row: the problem's row of its table, where rewards of the user's own are computed from it.
        hint: a text that helps without being a solution, or None.
        examples: worked examples of the data, each a question and its answer, which a model may be shown before ``text``.
    """

    id: str
    text: str
    answer: Any
    solution: str | None = None
    final: str | None = None
    states_answer: bool = False
    instruction: str = ""
    source: str = ""
    row: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    hint: str | None = None
    examples: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Grade:
    """A verifier's verdict on one response.

    ``correct`` is what every gate reads; ``reward`` may be shaped. ``error`` says that the verifier itself failed
    (time-out, crash): nothing is known of the answer, so the rollout is left out of its group and of the loss, and counted
    apart. ``parts`` are rewards that were added up to ``reward``, by name, each before its weight: logged apart.
    """

    correct: bool
    reward: float
    error: bool = False
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)


LARGEST_REWARD = 1e18
"""Rewards beyond it are as good as infinite: the square of one, summed over a group, must fit float32."""


def finite(value: Any) -> float | None:
    """A reward as a float, also from numpy and torch; None for what is no finite number of at most ``LARGEST_REWARD``."""
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        number = float(value)
    except Exception:  # users' types raise anything
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST_REWARD else None


def truth(value: Any) -> bool | None:
    """A verdict as a bool, also from numpy and torch; None for what is none: None, a text, several values, 0.5."""
    number = finite(value)
    return bool(number) if number in (0.0, 1.0) else None


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: of the softmax; 0 is greedy.
        top_p: the smallest set of most likely tokens with at least this probability; 1: all.
        top_k: the most likely tokens that are considered; 0: all.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


@dataclass
class Generation:
    """What an engine returns for one response.

    Attributes:
        token_ids: the sampled tokens, the first end-of-sequence token included.
        logp_T: log-probability of each, nats, under the distribution it was sampled from.
        entropy_T: entropy of each of those distributions, nats: exact, or from an engine that is not ``exact`` the unbiased
            estimate -logp_T.
        truncated: True when the response reached the length limit without an end-of-sequence token.
    """

    token_ids: list[int]
    logp_T: Tensor
    entropy_T: Tensor
    truncated: bool


@dataclass
class Rollout:
    """One graded response.

    Attributes:
        prompt: the problem.
        group: index of the prompt within the step; the rollouts of one group share it.
        sample: index of the rollout within its group.
        seed: the seed it was sampled with.
        prompt_ids: token ids given to the student.
        generation: what the engine returned.
        text: the response without special tokens.
        grade: the verifier's verdict; a truncated response is wrong, unless ``engine.grade_truncated``.
    """

    prompt: Prompt
    group: int
    sample: int
    seed: int
    prompt_ids: list[int]
    generation: Generation
    text: str
    grade: Grade
