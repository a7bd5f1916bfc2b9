"""Rows of text for pre-training the embedded model: students' answers, and answers after an example.

What the rows teach, and why:

- An answer is up to ``max_attempts`` attempts. Each is a random correct path with probability ``p_good``, else a random
  legal one; after a miss the answer tries again with probability ``p_again``, after a hit it always stops. So the model
  is mediocre, knows several solutions, and can learn a better policy (try until a hit) than any in its data.
- In the teacher's format an example stands between the prompt and the answer. Half of the examples are correct and half
  are wrong, with one to three attempts each, so the format itself gives no hint. After a correct example the answer is
  its last attempt with probability ``p_copy``; in all other cases it is drawn exactly as a student's answer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from rlrt.tasks.countdown import Problem, table

ATTEMPT = 11
"""Tokens of one attempt on three numbers: two steps of five tokens and a comma."""


@dataclass(frozen=True)
class Mixture:
    """Probabilities that shape an answer (see the module's docstring)."""

    p_good: float
    p_again: float
    p_copy: float
    max_attempts: int


class Rows:
    """Sampler of batches of rows from the training problems; every draw comes from one seeded generator."""

    def __init__(self, problems: list[Problem], highest: int, token_id: dict[str, int], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.token_id = token_id
        legal: list[list[int]] = []
        span: dict[tuple[int, ...], tuple[int, int]] = {}
        good: dict[Problem, tuple[int, int]] = {}
        training_sets = {p.numbers for p in problems}
        for numbers, by_value in table(3, highest).items():
            if numbers not in training_sets:
                continue
            start = len(legal)
            for value, solutions in by_value.items():
                good[Problem(numbers, value)] = (len(legal), len(solutions))
                legal.extend(self._encode(path) for path in solutions)
            span[numbers] = (start, len(legal) - start)
        self.legal = torch.tensor(legal)
        self.good = torch.tensor([good[p] for p in problems])
        self.span = torch.tensor([span[p.numbers] for p in problems])
        self.numbers = torch.tensor([[token_id[str(n)] for n in p.numbers] for p in problems])
        self.target = torch.tensor([token_id[str(p.target)] for p in problems])
        self.orders = torch.tensor(list(itertools.permutations(range(3))))

    def _encode(self, path: str) -> list[int]:
        for symbol in "+-*=,":
            path = path.replace(symbol, f" {symbol} ")
        return [self.token_id[token] for token in path.split()]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def _pick(self, ranges_B2: Tensor) -> Tensor:
        """Return one index of ``legal`` per row, uniform over the row's range (start, count)."""
        start, count = ranges_B2.unbind(1)
        return start + (self._uniform(len(start)) * count).long().minimum(count - 1)

    def _question(self, problem_B: Tensor) -> Tensor:
        order = self.orders[torch.randint(6, (len(problem_B),), generator=self.generator)]
        numbers = self.numbers[problem_B].gather(1, order)
        bos, colon = (torch.full((len(problem_B), 1), self.token_id[t]) for t in ("<bos>", ":"))
        return torch.cat([bos, self.target[problem_B, None], colon, numbers], 1)

    def _hits(self, problem_B: Tensor, path_B: Tensor) -> Tensor:
        start, count = self.good[problem_B].unbind(1)
        return (path_B >= start) & (path_B < start + count)

    def _attempt(self, problem_B: Tensor, p_good: float) -> Tensor:
        good = self._pick(self.good[problem_B])
        legal = self._pick(self.span[problem_B])
        return torch.where(self._uniform(len(problem_B)) < p_good, good, legal)

    def _answer(self, problem_B: Tensor, mix: Mixture, first_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return answers (ids, mask of real tokens), each attempt followed by ``;`` or the end; ``first_B >= 0`` is copied."""
        rows, alive = [], torch.ones(len(problem_B), dtype=torch.bool)
        masks = []
        for k in range(mix.max_attempts):
            path = self._attempt(problem_B, mix.p_good)
            stop = self._hits(problem_B, path) | (self._uniform(len(path)) >= mix.p_again)
            if k == 0 and first_B is not None:
                copied = first_B >= 0
                path = torch.where(copied, first_B, path)
                stop = stop | copied
            if k == mix.max_attempts - 1:
                stop = torch.ones_like(stop)
            end = torch.where(stop, self.token_id["<eos>"], self.token_id[";"])
            rows.append(torch.cat([self.legal[path], end[:, None]], 1))
            masks.append(alive[:, None].expand(-1, ATTEMPT + 1))
            alive = alive & ~stop
        ids, mask = torch.cat(rows, 1), torch.cat(masks, 1)
        return torch.where(mask, ids, self.token_id["<pad>"]), mask

    def student(self, size: int, mix: Mixture) -> tuple[Tensor, Tensor, int]:
        """Return rows without an example: (ids, mask of answer tokens, length of the prompt)."""
        problem = torch.randint(len(self.target), (size,), generator=self.generator)
        answer, mask = self._answer(problem, mix)
        prompt = torch.cat([self._question(problem), torch.full((size, 1), self.token_id[">"])], 1)
        return torch.cat([prompt, answer], 1), mask, prompt.shape[1]

    def teacher(self, size: int, mix: Mixture) -> tuple[Tensor, Tensor, int]:
        """Return rows with an example between prompt and answer (the same number of attempts for a whole batch)."""
        problem = torch.randint(len(self.target), (size,), generator=self.generator)
        attempts = 1 + int(torch.multinomial(torch.tensor([0.6, 0.25, 0.15]), 1, generator=self.generator))
        example = []
        for k in range(attempts):
            last = k == attempts - 1
            path = self._attempt(problem, 0.5 if last else 0.0)
            example.append(self.legal[path])
            example.append(torch.full((size, 1), self.token_id[">" if last else ";"]))
        copy = self._hits(problem, path) & (self._uniform(size) < mix.p_copy)
        answer, mask = self._answer(problem, mix, torch.where(copy, path, -1))
        prompt = torch.cat([self._question(problem), torch.full((size, 1), self.token_id["|"]), *example], 1)
        return torch.cat([prompt, answer], 1), mask, prompt.shape[1]
