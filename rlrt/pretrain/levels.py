"""Rows of text for pre-training the testbed's models on countdown in levels (``data=levels``), and their recipes.

What the rows teach is what ``rlrt.pretrain.walks`` teaches, with attempts instead of walks: first to reach a target, then
a mediocre policy that adds first in nine answers of ten and is right in one of five. Nothing is enumerated: a right answer is a
random legal path, and the problem's target is where it ends; for a wrong one the target is where another path ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlrt.pretrain.recipe import Phase, Recipe
from rlrt.pretrain.texts import Habits, TextRows, thought
from rlrt.tasks.countdown import Problem, drawn_path, is_heldout, prompt_text, without_values

LEARN = Habits(added_first=None, p_good=1.0)
BASE = Habits()
SHARES = {3: 0.25, 4: 0.35, 5: 0.4}
"""Of the batches, by how many numbers a problem has."""
PATIENCE = 300
"""Draws of a path to a given target before it is taken to have no other."""
INSTRUCT = Habits(bare=0.0)
THINKING = Habits(p_good=0.09, bare=0.0, attempts=3)
RECIPES = {
    "levels_base": Recipe(phases=(Phase(3500, 0.15, LEARN, decays=False), Phase(2000, 0.5, BASE, decays=True))),
    "levels_instruct": Recipe(phases=(Phase(300, 0.5, INSTRUCT, decays=True),), learning_rate=2e-3),
    "levels_thinking": Recipe(phases=(Phase(1500, 0.5, THINKING, decays=True),), learning_rate=3e-3),
}
"""By kind of model; instruct and thinking go on from the base."""

Path = tuple[str, int]
"""An attempt and the value that it ends on."""


@dataclass
class LevelRows(TextRows):
    """Sampler of batches of rows, each batch of problems with as many numbers as one another.

    Args:
        highest, target_low, target_high: the keys of ``data.*``.
    """

    highest: int
    target_low: int
    target_high: int

    def answered(self, size: int, habits: Habits) -> list[tuple[str, str]]:
        """Draw prompts of one level, each with an answer."""
        count = self._level()
        rows = []
        for _ in range(size):
            numbers = self._numbers(count)
            target, tried = self._tried(numbers, habits)
            rows.append((self._question(numbers, target), self._answer(tried, habits)))
        return rows

    def shown(self, size: int, habits: Habits, tries: int) -> list[tuple[str, str, str]]:
        """Draw prompts of one level, each with an example and the answer that follows; all examples leave out their values, or
        none does."""
        count, bare = self._level(), self.generator.random() < habits.bare
        return [self._shown(self._numbers(count), habits, tries, bare) for _ in range(size)]

    def _shown(self, numbers: Sequence[int], habits: Habits, tries: int, bare: bool) -> tuple[str, str, str]:
        right, copied = self.generator.random() < 0.5, self.generator.random() < habits.p_copy
        if right:
            path = self._path(numbers, self._kind(habits))
            target = path[1]
            tried = [path] if copied else self._attempts(numbers, target, habits)
        else:
            target, tried = self._tried(numbers, habits)
            path = self._miss(numbers, target, habits)
        missed = [self._miss(numbers, target, habits) for _ in range(tries - 1)]
        example = _written([*missed, path], tries > 0, bare)
        answer = _written(tried, habits.attempts > 0, bare) if right and copied else self._answer(tried, habits)
        return self._question(numbers, target), example, answer

    def _tried(self, numbers: Sequence[int], habits: Habits) -> tuple[int, list[Path]]:
        """Return a target and attempts on it, of which the last may be right."""
        most = max(1, habits.attempts)
        misses = next((k for k in range(most) if self.generator.random() < habits.p_good), most)
        path = self._path(numbers, self._kind(habits) if misses < most else "+-*")
        tried = [self._miss(numbers, path[1], habits) for _ in range(misses)]
        return path[1], [*tried, path] if misses < most else tried

    def _attempts(self, numbers: Sequence[int], target: int, habits: Habits) -> list[Path]:
        """Return attempts on a given target, of which the last may be right."""
        tried: list[Path] = []
        while len(tried) < max(1, habits.attempts) and not (tried and tried[-1][1] == target):
            good = self.generator.random() < habits.p_good
            kind = self._kind(habits)
            paths = (self._path(numbers, kind) for _ in range(PATIENCE)) if good else iter(())
            found = next((path for path in paths if path[1] == target), None)
            tried.append(found or self._miss(numbers, target, habits))
        return tried

    def _miss(self, numbers: Sequence[int], target: int, habits: Habits) -> Path:
        while (path := self._path(numbers, self._kind(habits), within=False))[1] == target:
            pass
        return path

    def _path(self, numbers: Sequence[int], first: str, within: bool = True) -> Path:
        """Return a legal path that begins with one of some operators; one that ends on a target, if ``within``."""
        while True:
            path = drawn_path(numbers, self.generator, first)
            if path is not None and (not within or self.target_low <= path[1] <= self.target_high):
                return path

    def _kind(self, habits: Habits) -> str:
        if habits.added_first is None:
            return "+-*"
        return "+" if self.generator.random() < habits.added_first else "-*"

    def _level(self) -> int:
        return self.generator.choices(list(SHARES), list(SHARES.values()))[0]

    def _numbers(self, count: int) -> tuple[int, ...]:
        while is_heldout(numbers := tuple(sorted(self.generator.choices(range(1, self.highest + 1), k=count)))):
            pass
        return numbers

    def _question(self, numbers: Sequence[int], target: int) -> str:
        return prompt_text(Problem(tuple(numbers), target), self.generator)

    def _answer(self, tried: Sequence[Path], habits: Habits) -> str:
        return _written(tried, habits.attempts > 0, self.generator.random() < habits.bare)


def _written(tried: Sequence[Path], thinks: bool, bare: bool) -> str:
    """Return the last of some attempts as a response, after a thought of all of them if it ``thinks``."""
    text = without_values(tried[-1][0]) if bare else tried[-1][0]
    return (thought([attempt for attempt, _ in tried]) if thinks else "") + text
