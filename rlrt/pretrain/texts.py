"""What the testbed's rows of text share, whatever the task: batches with prompts of one length, and a mask of the answers."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlrt.pretrain.tokenizer import WITH_TAGS, build


@dataclass(frozen=True)
class Habits:
    """Probabilities that shape an answer (``rlrt.pretrain.walks``, ``rlrt.pretrain.levels``).

    Attributes:
        added_first: of beginning with an addition; None: a right answer is drawn whatever it begins with.
        p_good: of a right answer, if there is one of that kind.
        bare: of an answer without the numbers on the way.
        attempts: attempts of a thought, at most; 0: no thought.
        p_copy: of copying a right example.
    """

    added_first: float | None = 0.9
    p_good: float = 0.2
    bare: float = 0.3
    attempts: int = 0
    p_copy: float = 0.85


@dataclass
class TextRows(ABC):
    """Sampler of batches of rows; every draw comes from one seeded generator.

    Args:
        seed: of the draws.
    """

    seed: int
    token_id: ClassVar[Mapping[str, int]] = WITH_TAGS
    generator: random.Random = field(init=False)
    tokenizer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.generator = random.Random(self.seed)
        self.tokenizer = build(tags=True)

    @abstractmethod
    def answered(self, size: int, habits: Habits) -> list[tuple[str, str]]:
        """Draw prompts, all of one length in tokens, each with an answer."""

    @abstractmethod
    def shown(self, size: int, habits: Habits, tries: int) -> list[tuple[str, str, str]]:
        """Draw prompts, each with an example of so many attempts in its thought, and the answer that follows; prompt and
        example together are of one length in tokens."""

    def student(self, size: int, habits: Habits) -> tuple[Tensor, Tensor, int]:
        """Return rows without an example: (ids, mask of answer tokens, length of the prompt)."""
        return self._rows([(f"{question}>", answer) for question, answer in self.answered(size, habits)])

    def teacher(self, size: int, habits: Habits) -> tuple[Tensor, Tensor, int]:
        """Return rows with an example between prompt and answer."""
        tries = self.generator.randint(0, habits.attempts) if habits.attempts else 0
        rows = self.shown(size, habits, tries)
        return self._rows([(f"{question}|{example}>", answer) for question, example, answer in rows])

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rows(self, rows: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, int]:
        prompts, answers = ([self._tokens(f"<bos>{p}") for p, _ in rows], [self._tokens(f"{a}<eos>") for _, a in rows])
        width, pad = max(map(len, answers)), WITH_TAGS["<pad>"]
        ids = [p + a + [pad] * (width - len(a)) for p, a in zip(prompts, answers, strict=True)]
        mask = [[i < len(a) for i in range(width)] for a in answers]
        return torch.tensor(ids), torch.tensor(mask), len(prompts[0])


def thought(attempts: Sequence[str]) -> str:
    """Return attempts as a thought."""
    return f"<think>{';'.join(attempts)}</think>"
