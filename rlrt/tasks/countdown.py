"""Countdown: reach a target from given numbers with + - *, with all steps written out.

A prompt is ``17:3 4 5``: the target, then the numbers. A response is one or more *attempts* separated by ``;``, of
which **the last counts**; an attempt is one step per operation, ``3*4=12,12+5=17``, that uses every number exactly
once and keeps every value within 0..99. Earlier attempts must be legal too, and may miss; the last must end on the
target. So a prompt has several correct responses, their length varies, and a response may try, see that it missed, and
try again.

The task is procedural. All number sets and all that can be reached from them are enumerated; or, where that is too much (four
or five numbers), as many problems are drawn as ``data.train_prompts`` says, each from a random legal path. Number sets are
split, not problems, so a held-out prompt's numbers were never seen in training with any target.

Under ``data.bare`` a step may leave its value out (``3*4,12+5``): shorter, and harder for a model that has to work it out.

**Families.** Two solutions are of one family if they use the same operators in the same order (``*+``).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.tasks.base import Task
from rlrt.types import Grade, Prompt
from rlrt.verifiers.answers import after_thinking

LIMIT = 99
"""Largest value on a path: whole numbers 0..99 are single tokens of the embedded model."""

MOST_ENUMERATED: Final = 4
"""Numbers of a problem, at most, whose solutions are all enumerated."""
PATIENCE: Final = 2000
"""Draws in a row that may bring no new problem before there are taken to be no more."""

_STEP = re.compile(r"([0-9]{1,2})([+*-])([0-9]{1,2})(?:=([0-9]{1,2}))?")
_VALUE = re.compile(r"=[0-9]{1,2}")


@dataclass(frozen=True)
class Problem:
    """The numbers (sorted) and the target to reach with them."""

    numbers: tuple[int, ...]
    target: int


def apply(a: int, operator: str, b: int) -> int:
    """Return the value of one step; Python's integers, no rounding."""
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def paths(numbers: tuple[int, ...]) -> dict[int, list[str]]:
    """Return every legal attempt on ``numbers``, by the value that it ends on, each list sorted and without duplicates."""
    attempts: dict[int, set[str]] = {}

    def walk(values: tuple[int, ...], steps: tuple[str, ...]) -> None:
        if len(values) == 1:
            attempts.setdefault(values[0], set()).add(",".join(steps))
            return
        for i, j in itertools.permutations(range(len(values)), 2):
            rest = tuple(values[k] for k in range(len(values)) if k not in (i, j))
            for operator in "+-*":
                value = apply(values[i], operator, values[j])
                if 0 <= value <= LIMIT:
                    walk((*rest, value), (*steps, f"{values[i]}{operator}{values[j]}={value}"))

    walk(tuple(numbers), ())
    return {value: sorted(attempts[value]) for value in sorted(attempts)}


def without_values(attempt: str) -> str:
    """Return an attempt whose steps leave their values out."""
    return _VALUE.sub("", attempt)


def outcome(numbers: tuple[int, ...], attempt: str, bare: bool = False) -> int | None:
    """Return the value that a legal attempt ends on, or None if the attempt breaks a rule.

    Every step must be ``a?b=c`` with a and b still available, c right and within 0..99; no number may remain unused, and
    no text may stand before, between or after the steps. Leading zeros are refused. If ``bare``, ``=c`` may be left out.
    """
    available = list(numbers)
    for step in attempt.split(","):
        match = _STEP.fullmatch(step)
        if match is None or any(g is not None and len(g) == 2 and g[0] == "0" for g in match.group(1, 3, 4)):
            return None
        a, b = int(match[1]), int(match[3])
        for number in (a, b):
            if number not in available:
                return None
            available.remove(number)
        value = apply(a, match[2], b)
        if (
            not 0 <= value <= LIMIT
            or (match[4] is None and not bare)
            or (match[4] is not None and int(match[4]) != value)
        ):
            return None
        available.append(value)
    return available[0] if len(available) == 1 else None


def prompt_text(problem: Problem, order: random.Random | None = None) -> str:
    """Return ``target:numbers``; the numbers' order is a function of the problem unless ``order`` is given."""
    if order is None:
        digest = hashlib.sha256(repr((problem.numbers, problem.target)).encode()).digest()
        order = random.Random(int.from_bytes(digest[:8], "big"))
    numbers = list(problem.numbers)
    order.shuffle(numbers)
    return f"{problem.target}:{' '.join(map(str, numbers))}"


WORDING = (
    "Reach the target {target} using each of the numbers {numbers} exactly once with + - *. Every value must stay "
    "within 0 and 99. Write the steps on the last line, like 3*4=12,12+5=17 for the target 17 and the numbers 3, 4, 5."
)


@functools.cache
def table(count: int, highest: int) -> dict[tuple[int, ...], dict[int, list[str]]]:
    """Return ``paths`` of every multiset of ``count`` numbers in 1..``highest``."""
    sets = itertools.combinations_with_replacement(range(1, highest + 1), count)
    return {numbers: paths(numbers) for numbers in sets}


def is_heldout(numbers: tuple[int, ...]) -> bool:
    """True for the number sets (sorted) of held-out problems, one in eight."""
    return hashlib.sha256(repr(numbers).encode()).digest()[0] < 32


def split(count: int, highest: int, target_low: int, target_high: int) -> tuple[list[Problem], list[Problem]]:
    """Return all training and held-out problems, disjoint in their number sets."""
    train: list[Problem] = []
    heldout: list[Problem] = []
    for numbers, by_value in table(count, highest).items():
        side = heldout if is_heldout(numbers) else train
        side.extend(Problem(numbers, value) for value in by_value if target_low <= value <= target_high)
    for side in (train, heldout):
        side.sort(key=lambda p: hashlib.sha256(repr((p.numbers, p.target)).encode()).digest())
    return train, heldout


def drawn_path(numbers: Sequence[int], generator: random.Random, first: str = "+-*") -> tuple[str, int] | None:
    """Return a random legal attempt and the value that it ends on; None if the draw found no next step.

    Args:
        numbers: the numbers, each of which the attempt uses once.
        generator: of the draw; a step is any legal one with the same probability.
        first: operators with which the attempt may begin.
    """
    values: list[int] = list(numbers)
    steps: list[str] = []
    while len(values) > 1:
        legal = [
            (i, operator, j, value)
            for i, j in itertools.permutations(range(len(values)), 2)
            for operator in (first if not steps else "+-*")
            if 0 <= (value := apply(values[i], operator, values[j])) <= LIMIT
        ]
        if not legal:
            return None
        i, operator, j, value = generator.choice(legal)
        steps.append(f"{values[i]}{operator}{values[j]}={value}")
        values = [values[k] for k in range(len(values)) if k not in (i, j)] + [value]
    return ",".join(steps), values[0]


def drawn(
    count: int, highest: int, target_low: int, target_high: int, heldout: bool, wanted: int, seed: int
) -> dict[Problem, str]:
    """Return ``wanted`` problems, or as many as are found, each with the attempt that it was made from.

    Args:
        count, highest: how many numbers, each from 1 to ``highest``.
        target_low, target_high: smallest and largest target.
        heldout: from held-out number sets, or else from the others.
        wanted: how many.
        seed: of the draw.
    """
    generator = random.Random(f"{seed} {count} {heldout}")
    problems: dict[Problem, str] = {}
    fruitless = 0
    while len(problems) < wanted and fruitless < PATIENCE:
        fruitless += 1
        numbers = tuple(sorted(generator.choices(range(1, highest + 1), k=count)))
        path = drawn_path(numbers, generator) if is_heldout(numbers) == heldout else None
        if path is not None and target_low <= path[1] <= target_high:
            problem = Problem(numbers, path[1])
            if problem not in problems:
                problems[problem], fruitless = path[0], 0
    return problems


@dataclass
class Countdown(Task):
    """The countdown task; the order of its prompts is fixed and pseudo-random, independent of any seed. ``data.*``:"""

    numbers: int = key("number of numbers in a problem", least=2, most=5)
    highest: int = key("largest number in a problem", least=1, most=LIMIT)
    target_low: int = key("smallest target", least=0, most=LIMIT)
    target_high: int = key("largest target", least=0, most=LIMIT)
    train_prompts: int | None = key(
        "number of training problems, drawn at random; null: all that exist (at most four numbers)", least=1
    )
    heldout_prompts: int = key("number of held-out problems for evaluation", least=1)
    wording: str = key(
        "format of the prompt: '17:3 4 5', or a sentence for language models", choices=("symbols", "words")
    )
    bare: bool = key("steps may leave out the value that they reach: 3*4,12+5")
    families = True
    train: list[Prompt] = field(default_factory=list, init=False, repr=False)
    heldout: list[Prompt] = field(default_factory=list, init=False, repr=False)

    def prepare(self) -> None:
        """Enumerate or draw the problems.

        Raises:
            UserError: if no problem fits the keys, or fewer than are wanted.
        """
        if self.train_prompts is None and self.numbers > MOST_ENUMERATED:
            raise UserError(
                f"data.train_prompts: expected a number of problems to draw, since those of {self.numbers} numbers are too "
                f"many to enumerate, got null; set data.train_prompts, or data.numbers to at most {MOST_ENUMERATED}."
            )
        if self.train_prompts is None:
            train, heldout = split(self.numbers, self.highest, self.target_low, self.target_high)
            if not train or not heldout:
                raise UserError(self._too_few("no problem has"))
            self.train = [self._prompt(p, self._one_of_all(p)) for p in train]
            self.heldout = [self._prompt(p, self._one_of_all(p)) for p in heldout[: self.heldout_prompts]]
            return
        for name, wanted in (("train", self.train_prompts), ("heldout", self.heldout_prompts)):
            found = drawn(self.numbers, self.highest, self.target_low, self.target_high, name == "heldout", wanted, 0)
            if len(found) < wanted:
                raise UserError(self._too_few(f"of {wanted} {name} problems only {len(found)} have"))
            setattr(self, name, [self._prompt(problem, solution) for problem, solution in found.items()])

    def _too_few(self, what: str) -> str:
        return (
            f"data: {what} a target from {self.target_low} to {self.target_high} with {self.numbers} numbers "
            f"up to {self.highest}; widen data.target_low and data.target_high, or raise data.highest."
        )

    def _one_of_all(self, problem: Problem) -> str:
        solutions = table(self.numbers, self.highest)[problem.numbers][problem.target]
        digest = hashlib.sha256(repr((problem, "solution")).encode()).digest()
        return solutions[int.from_bytes(digest[:4], "big") % len(solutions)]

    def _prompt(self, problem: Problem, solution: str) -> Prompt:
        text = prompt_text(problem)
        target, numbers = text.split(":")
        if self.wording == "words":
            text = WORDING.format(target=target, numbers=numbers.replace(" ", ", "))
        name = f"{problem.target}:{','.join(map(str, problem.numbers))}"
        return Prompt(id=name, text=text, answer=problem, solution=solution, states_answer=True)

    def _attempts(self, text: str) -> list[str]:
        text = after_thinking(text)
        if self.wording == "words":
            lines = text.strip().splitlines()
            text = lines[-1].strip() if lines else ""
        return text.split(";")

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """Grade 1 if every attempt is legal and the last one ends on the target, else 0."""
        problem: Problem = prompt.answer
        ends = [outcome(problem.numbers, attempt, self.bare) for attempt in self._attempts(text)]
        correct = None not in ends and ends[-1] == problem.target
        return Grade(correct=correct, reward=float(correct))

    def extracted(self, prompt: Prompt, text: str) -> str | None:
        """The last attempt, which must end on the target."""
        return self._attempts(text)[-1]

    def canonical(self, prompt: Prompt, text: str) -> str:
        """Return the last attempt of a correct response without its values: with and without them it is one solution."""
        return without_values(self._attempts(text)[-1])

    def family(self, prompt: Prompt, text: str) -> str:
        """Return the operators of a correct response's last attempt in their order."""
        return "".join(step[2] for step in _STEP.finditer(self._attempts(text)[-1]))
