"""Countdown: reach a target from given numbers with + - *, with all steps written out.

A prompt is ``17:3 4 5``: the target, then the numbers. A response is one or more *attempts* separated by ``;``, of
which **the last counts**; an attempt is one step per operation, ``3*4=12,12+5=17``, that uses every number exactly
once and keeps every value within 0..99. Earlier attempts must be legal too, and may miss; the last must end on the
target. So a prompt has several correct responses, their length varies, and a response may try, see that it missed, and
try again.

The task is procedural and complete: all number sets are enumerated. Number sets are split, not problems, so a held-out
prompt's numbers were never seen in training with any target.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
from dataclasses import dataclass, field

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.tasks.base import Task
from rlrt.types import Grade, Prompt

LIMIT = 99
"""Largest value on a path: whole numbers 0..99 are single tokens of the embedded model."""

_STEP = re.compile(r"([0-9]{1,2})([+*-])([0-9]{1,2})=([0-9]{1,2})")


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


def outcome(numbers: tuple[int, ...], attempt: str) -> int | None:
    """Return the value that a legal attempt ends on, or None if the attempt breaks a rule.

    Every step must be ``a?b=c`` with a and b still available, c right and within 0..99; no number may remain unused, and
    no text may stand before, between or after the steps. Leading zeros are refused.
    """
    available = list(numbers)
    for step in attempt.split(","):
        match = _STEP.fullmatch(step)
        if match is None or any(len(g) == 2 and g[0] == "0" for g in match.group(1, 3, 4)):
            return None
        a, b, c = int(match[1]), int(match[3]), int(match[4])
        for number in (a, b):
            if number not in available:
                return None
            available.remove(number)
        if apply(a, match[2], b) != c:
            return None
        available.append(c)
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


def split(count: int, highest: int, target_low: int, target_high: int) -> tuple[list[Problem], list[Problem]]:
    """Return training and held-out problems, disjoint in their number sets (one set in eight is held out)."""
    train: list[Problem] = []
    heldout: list[Problem] = []
    for numbers, by_value in table(count, highest).items():
        digest = hashlib.sha256(repr(numbers).encode()).digest()
        side = heldout if digest[0] < 32 else train
        side.extend(Problem(numbers, value) for value in by_value if target_low <= value <= target_high)
    for side in (train, heldout):
        side.sort(key=lambda p: hashlib.sha256(repr((p.numbers, p.target)).encode()).digest())
    return train, heldout


@dataclass
class Countdown(Task):
    """The countdown task; the order of its prompts is fixed and pseudo-random, independent of any seed. ``data.*``:"""

    numbers: int = key("number of numbers in a problem", least=2, most=4)
    highest: int = key("largest number in a problem", least=1, most=LIMIT)
    target_low: int = key("smallest target", least=0, most=LIMIT)
    target_high: int = key("largest target", least=0, most=LIMIT)
    heldout_prompts: int = key("number of held-out problems for evaluation", least=1)
    wording: str = key(
        "format of the prompt: '17:3 4 5', or a sentence for language models", choices=("symbols", "words")
    )
    train: list[Prompt] = field(default_factory=list, init=False, repr=False)
    heldout: list[Prompt] = field(default_factory=list, init=False, repr=False)

    def prepare(self) -> None:
        """Enumerate the problems.

        Raises:
            UserError: if no problem fits the keys.
        """
        train, heldout = split(self.numbers, self.highest, self.target_low, self.target_high)
        if not train or not heldout:
            raise UserError(
                f"data: no problem has a target from {self.target_low} to {self.target_high} with {self.numbers} numbers "
                f"up to {self.highest}; widen data.target_low and data.target_high, or raise data.highest."
            )
        self.train = [self._prompt(p) for p in train]
        self.heldout = [self._prompt(p) for p in heldout[: self.heldout_prompts]]

    def _prompt(self, problem: Problem) -> Prompt:
        text = prompt_text(problem)
        target, numbers = text.split(":")
        if self.wording == "words":
            text = WORDING.format(target=target, numbers=numbers.replace(" ", ", "))
        solutions = table(self.numbers, self.highest)[problem.numbers][problem.target]
        digest = hashlib.sha256(repr((problem, "solution")).encode()).digest()
        solution = solutions[int.from_bytes(digest[:4], "big") % len(solutions)]
        name = f"{problem.target}:{','.join(map(str, problem.numbers))}"
        return Prompt(id=name, text=text, answer=problem, solution=solution, states_answer=True)

    def _attempts(self, text: str) -> list[str]:
        if self.wording == "words":
            lines = text.strip().splitlines()
            text = lines[-1].strip() if lines else ""
        return text.split(";")

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """Grade 1 if every attempt is legal and the last one ends on the target, else 0."""
        problem: Problem = prompt.answer
        ends = [outcome(problem.numbers, attempt) for attempt in self._attempts(text)]
        correct = None not in ends and ends[-1] == problem.target
        return Grade(correct=correct, reward=float(correct))

    def extracted(self, prompt: Prompt, text: str) -> str | None:
        """The last attempt, which must end on the target."""
        return self._attempts(text)[-1]

    def canonical(self, prompt: Prompt, text: str) -> str:
        """Return the last attempt of a correct response, without earlier attempts: equal strings are one solution."""
        return self._attempts(text)[-1]
