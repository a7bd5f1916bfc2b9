"""Rows of text for pre-training the models of the testbed on walks (``rlrt.tasks.walk``), and their recipes.

What the rows teach, and why:

- First (``LEARN``) all moves, on right walks alone, whatever they begin with.
- Then a mediocre policy (``BASE``). An answer adds first with probability ``added_first``, and a right walk of that kind is
  written with probability ``p_good``, if there is one; else one that misses. So the start can do more than it does, prefers
  one kind of solution, and seldom tries what the problems need that cannot be solved by adding first.
- Of the base's answers a share ``bare`` leaves the numbers out, a habit that a policy can drop. The instruct model is tuned on
  answers with numbers alone.
- The thinking model is tuned on answers that begin with a thought: up to ``attempts`` such walks; after a right one the thought
  ends, and the answer repeats the last. Each walk is right less often than the base's, since there are several.
- In the teacher's format an example stands between the prompt and the answer. Half of the examples are right and half are
  wrong, so the format itself gives no hint. After a right example the answer is the example with probability ``p_copy``; in
  all other cases it is drawn exactly as a student's answer. The thinking model's examples are a walk alone, as data has it, or
  a response with its thought; what it copies is the walk, after a thought of that one walk.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rlrt.pretrain.recipe import Phase, Recipe
from rlrt.pretrain.texts import Habits, TextRows, thought
from rlrt.tasks.walk import Move, Problem, adds_first, end_of, prompt_text, text_of

Solved = tuple[Problem, Sequence[tuple[Move, ...]]]
"""A problem and all its walks."""

LEARN = Habits(added_first=None, p_good=1.0)
BASE = Habits()
INSTRUCT = Habits(bare=0.0)
THINKING = Habits(p_good=0.14, bare=0.0, attempts=3)


@dataclass
class WalkRows(TextRows):
    """Sampler of batches of rows.

    Args:
        problems: training problems with their walks.
    """

    problems: Sequence[Solved]

    def answered(self, size: int, habits: Habits) -> list[tuple[str, str]]:
        """Draw prompts, each with an answer."""
        chosen = self.generator.choices(self.problems, k=size)
        return [(self._question(p), self._answer(p, walks, habits)) for p, walks in chosen]

    def shown(self, size: int, habits: Habits, tries: int) -> list[tuple[str, str, str]]:
        """Draw prompts, each with an example and the answer that follows; of several times as many those with one length."""
        chosen = self.generator.choices(self.problems, k=(8 if tries else 4) * size)
        texts = [self._shown(problem, walks, habits, tries) for problem, walks in chosen]
        lengths = [len(self._tokens(example)) for _, example, _ in texts]
        wanted = self.generator.choice(lengths)
        return [text for text, length in zip(texts, lengths, strict=True) if length == wanted][:size]

    def _shown(
        self, problem: Problem, walks: Sequence[tuple[Move, ...]], habits: Habits, tries: int
    ) -> tuple[str, str, str]:
        """Return a question, an example with so many walks in its thought, and the answer that follows."""
        right = self.generator.random() < 0.5
        walk = self.generator.choice(walks) if right else self._miss(problem, walks, self.generator.random() < 0.5)
        written = self._written(problem, walk, habits)
        missed = [
            self._miss(problem, walks, self.generator.random() < (habits.added_first or 0.0)) for _ in range(tries - 1)
        ]
        example = (self._thought([*missed, walk], problem) if tries else "") + written
        copied = right and self.generator.random() < habits.p_copy
        copy = self._thought([walk], problem) + written if habits.attempts else example
        return self._question(problem), example, copy if copied else self._answer(problem, walks, habits)

    def _question(self, problem: Problem) -> str:
        return prompt_text(problem, self.generator)

    def _answer(self, problem: Problem, walks: Sequence[tuple[Move, ...]], habits: Habits) -> str:
        tried = [self._attempt(problem, walks, habits)]
        while len(tried) < habits.attempts and tried[-1] not in walks:
            tried.append(self._attempt(problem, walks, habits))
        thought = self._thought(tried, problem) if habits.attempts else ""
        return thought + self._written(problem, tried[-1], habits)

    def _attempt(self, problem: Problem, walks: Sequence[tuple[Move, ...]], habits: Habits) -> tuple[Move, ...]:
        if habits.added_first is None:
            return self.generator.choice(walks)
        adds = self.generator.random() < habits.added_first
        right = [walk for walk in walks if adds_first([walk]) == adds]
        if right and self.generator.random() < habits.p_good:
            return self.generator.choice(right)
        return self._miss(problem, walks, adds)

    def _thought(self, tried: Sequence[tuple[Move, ...]], problem: Problem) -> str:
        return thought([text_of(problem.start, walk) for walk in tried])

    def _written(self, problem: Problem, walk: Sequence[Move], habits: Habits) -> str:
        return text_of(problem.start, walk, numbers=self.generator.random() >= habits.bare)

    def _miss(self, problem: Problem, walks: Sequence[tuple[Move, ...]], adds: bool) -> tuple[Move, ...]:
        """Return a walk that misses, as long as a right one where there is such a walk; one that adds first if ``adds``."""
        length = len(self.generator.choice(walks))
        first = [move for move in problem.moves if (move[0] == "+") == adds]
        for tries in itertools.count():
            count = length if tries < 50 else self.generator.randint(1, LONGEST)
            walk = (self.generator.choice(first), *self.generator.choices(problem.moves, k=count - 1))
            if tries > 1000:  # nothing of that kind stays within the limits
                first = list(problem.moves)
            end = end_of(problem.start, walk)
            if end is not None and end != problem.target:
                return walk
        raise AssertionError


LONGEST = 4
"""Moves of a walk, at most."""
RECIPES = {
    "base": Recipe(phases=(Phase(4500, 0.15, LEARN, decays=False), Phase(2000, 0.5, BASE, decays=True))),
    "instruct": Recipe(phases=(Phase(300, 0.5, INSTRUCT, decays=True),), learning_rate=2e-3),
    "thinking": Recipe(phases=(Phase(1500, 0.5, THINKING, decays=True),), learning_rate=3e-3),
}
"""By kind of model; instruct and thinking go on from the base."""
PROBLEMS = 60_000
"""Training problems of the rows, drawn from the training sets of moves."""
