"""Walks: reach a target from a start by allowed moves, over the whole numbers 0 to 99.

A prompt is ``3,62:+7*5-9+12``: the start, the target, then four moves: two that add, one that takes away, one that
multiplies. A response is a walk such as ``+7=10*5=50+12=62``: each step is one of the moves and the number that it leads to; a
move may be used again. The numbers may be left out (``+7*5+12``, shorter, and harder for a model that has to work them out
unseen). A walk is correct if every number in it is right and within 0 and 99, and it ends on the target.

**Families.** Two walks are of one family if they use the same operators in the same order (``+*+``). Most problems have walks
of several families, and some can be solved by one that a model seldom tries: there, exploration can pay.

The task is procedural and complete. Sets of moves are split, so a held-out prompt's moves were never seen together.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.tasks.base import Task
from rlrt.types import Grade, Prompt
from rlrt.verifiers.answers import after_thinking

LIMIT = 99
"""Numbers are 0..99: single tokens of the embedded models."""
ADDED, FACTORS = range(1, 21), range(2, 10)
"""The numbers of moves ``+n`` and ``-n``, and of ``*n``."""
STEP = re.compile(r"([+*-])([0-9]{1,2})(?:=([0-9]{1,2}))?")

PATIENCE = 2000
"""Draws in a row that may bring no new problem before there are taken to be no more."""

Move = tuple[str, int]


@dataclass(frozen=True)
class Problem:
    """Where a walk begins and ends, and its moves (sorted)."""

    start: int
    target: int
    moves: tuple[Move, ...]


def after(value: int, move: Move) -> int | None:
    """Return the number to which a move leads, or None for one that is below 0 or above ``LIMIT``."""
    operator, number = move
    result = value + number if operator == "+" else value - number if operator == "-" else value * number
    return result if 0 <= result <= LIMIT else None


def end_of(start: int, walk: Sequence[Move]) -> int | None:
    """Return the number on which a walk ends; None for one that leaves 0 to ``LIMIT``."""
    value: int | None = start
    for move in walk:
        value = None if value is None else after(value, move)
    return value


def text_of(start: int, walk: Sequence[Move], numbers: bool = True) -> str:
    """Return a walk as a response; without ``numbers`` its moves alone.

    Raises:
        ValueError: for a walk that leaves 0 to ``LIMIT``.
    """
    steps, value = [], start
    for move in walk:
        reached = after(value, move)
        if reached is None:
            raise ValueError(f"{move} leads from {value} out of 0 to {LIMIT}")
        value = reached
        steps.append(f"{move[0]}{move[1]}" + (f"={value}" if numbers else ""))
    return "".join(steps)


def walk_of(text: str) -> list[tuple[Move, int | None]] | None:
    """Return the steps of a response, each with the number that it claims; None for a text that is no walk."""
    steps: list[tuple[Move, int | None]] = []
    end = 0
    while end < len(text):
        match = STEP.match(text, end)
        if match is None or any(g is not None and len(g) == 2 and g[0] == "0" for g in match.group(2, 3)):
            return None
        steps.append(((match[1], int(match[2])), None if match[3] is None else int(match[3])))
        end = match.end()
    return steps or None


def outcome(problem: Problem, text: str, most_moves: int) -> int | None:
    """Return the number on which a walk ends, or None if it breaks a rule: another move, a wrong number, too many moves."""
    steps = walk_of(text)
    if steps is None or len(steps) > most_moves:
        return None
    value: int | None = problem.start
    for move, claimed in steps:
        value = None if value is None else after(value, move)
        if value is None or move not in problem.moves or claimed not in (None, value):
            return None
    return value


def family_of(walk: Sequence[Move]) -> str:
    """Return the operators of a walk in their order."""
    return "".join(operator for operator, _ in walk)


@functools.cache
def move_sets() -> tuple[list[tuple[Move, ...]], list[tuple[Move, ...]]]:
    """Return all sets of moves, two that add, one that takes away, one that multiplies: those for training, and those held out
    (one in eight)."""
    pairs, single = itertools.combinations(ADDED, 2), itertools.product(ADDED, FACTORS)
    sets: list[tuple[Move, ...]] = [
        (("+", a), ("+", b), ("-", c), ("*", d)) for (a, b), (c, d) in itertools.product(pairs, list(single))
    ]
    heldout = {s for s in sets if hashlib.sha256(repr(s).encode()).digest()[0] < 32}
    return [s for s in sets if s not in heldout], [s for s in sets if s in heldout]


def walks_from(start: int, moves: Sequence[Move], longest: int) -> dict[int, list[tuple[Move, ...]]]:
    """Return every walk of at most ``longest`` moves by the number on which it ends, shorter walks first."""
    found: dict[int, list[tuple[Move, ...]]] = {}
    last: list[tuple[int, tuple[Move, ...]]] = [(start, ())]
    for _ in range(longest):
        last = [
            (reached, (*walk, move))
            for value, walk in last
            for move in moves
            if (reached := after(value, move)) is not None
        ]
        for value, walk in last:
            found.setdefault(value, []).append(walk)
    return found


def adds_first(walks: Sequence[Sequence[Move]]) -> bool:
    """True if one of the walks begins with an addition."""
    return any(walk[0][0] == "+" for walk in walks)


def drawn(
    sets: Sequence[tuple[Move, ...]], count: int, shortest: int, longest: int, seed: int, solved_by: str = "any"
) -> list[tuple[Problem, list[tuple[Move, ...]]]]:
    """Draw problems, each with all its walks of at most ``longest`` moves.

    Args:
        sets: sets of moves to draw from, each as often as any other.
        count: number of problems, no two the same.
        shortest: moves of a problem's shortest walk, at least; the target is not the start.
        longest: moves of its shortest walk, at most.
        seed: of the draw.
        solved_by: ``adding``: problems that have a walk which adds first; ``other``: those that have none; ``any``: both.
    """
    wanted = {"any": (True, False), "adding": (True,), "other": (False,)}[solved_by]
    generator = random.Random(seed)
    problems: dict[Problem, list[tuple[Move, ...]]] = {}
    fruitless = 0
    while len(problems) < count and fruitless < PATIENCE:
        fruitless += 1
        moves, start = generator.choice(sets), generator.randrange(LIMIT + 1)
        ends = walks_from(start, moves, longest)
        fitting = [
            target
            for target, walks in ends.items()
            if target != start and len(walks[0]) >= shortest and adds_first(walks) in wanted
        ]
        if fitting:
            problem = Problem(start, generator.choice(sorted(fitting)), moves)
            if problem not in problems:
                problems[problem], fruitless = ends[problem.target], 0
    return list(problems.items())


def prompt_text(problem: Problem, order: random.Random) -> str:
    """Return ``start,target:moves``, the moves in an order that ``order`` draws."""
    moves = list(problem.moves)
    order.shuffle(moves)
    return f"{problem.start},{problem.target}:{''.join(f'{operator}{number}' for operator, number in moves)}"


@dataclass
class Walk(Task):
    """Walks over 0 to 99; the prompts and their order are fixed and pseudo-random, independent of any seed. ``data.*``:"""

    train_prompts: int = key("number of training problems", least=1, most=100_000)
    heldout_prompts: int = key("number of held-out problems for evaluation", least=1, most=100_000)
    shortest: int = key("moves of a problem's shortest walk, at least", least=1, most=4)
    longest: int = key("moves of a problem's shortest walk, at most", least=1, most=4)
    most_moves: int = key("moves that a response may have", least=1, most=50)
    solved_by: str = key(
        "problems that have a walk which adds first, or those that have none", choices=("any", "adding", "other")
    )
    families = True
    train: list[Prompt] = field(default_factory=list, init=False, repr=False)
    heldout: list[Prompt] = field(default_factory=list, init=False, repr=False)

    def prepare(self) -> None:
        """Draw the problems.

        Raises:
            UserError: if so many do not exist.
        """
        if not self.shortest <= self.longest <= self.most_moves:
            raise UserError(
                "data.shortest: expected at most data.longest, and that at most data.most_moves, got "
                f"{self.shortest}, {self.longest} and {self.most_moves}."
            )
        for name, sets, seed in zip(("train", "heldout"), move_sets(), (1, 2), strict=True):
            wanted = getattr(self, f"{name}_prompts")
            problems = drawn(sets, wanted, self.shortest, self.longest, seed, self.solved_by)
            if len(problems) < wanted:
                raise UserError(
                    f"data.{name}_prompts: expected at most as many as there are problems whose shortest walk has "
                    f"{self.shortest} to {self.longest} moves, got {wanted} and found {len(problems)}; lower it."
                )
            setattr(self, name, [self._prompt(*problem) for problem in problems])

    def _prompt(self, problem: Problem, walks: Sequence[tuple[Move, ...]]) -> Prompt:
        digest = hashlib.sha256(repr(problem).encode()).digest()
        solution = walks[int.from_bytes(digest[:4], "big") % len(walks)]
        text = prompt_text(problem, random.Random(int.from_bytes(digest[4:12], "big")))
        name = f"{problem.start},{problem.target}:{''.join(f'{o}{n}' for o, n in problem.moves)}"
        return Prompt(id=name, text=text, answer=problem, solution=text_of(problem.start, solution), states_answer=True)

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """Grade 1 if the walk obeys the rules and ends on the target, else 0; a thought before it does not count."""
        correct = outcome(prompt.answer, after_thinking(text), self.most_moves) == prompt.answer.target
        return Grade(correct=correct, reward=float(correct))

    def extracted(self, prompt: Prompt, text: str) -> str | None:
        """The walk after the thought."""
        return after_thinking(text)

    def canonical(self, prompt: Prompt, text: str) -> str:
        """Return the moves of a correct response: with and without the numbers it is one solution."""
        return "".join(f"{operator}{number}" for (operator, number), _ in walk_of(after_thinking(text)) or [])

    def family(self, prompt: Prompt, text: str) -> str:
        """Return the operators of a correct response in their order."""
        return family_of([move for move, _ in walk_of(after_thinking(text)) or []])
