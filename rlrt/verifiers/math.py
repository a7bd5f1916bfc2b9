"""Mathematical equality: numbers, words and what is made of them are compared at sight, expressions by math-verify.

math-verify 0.9 sets signal handlers (and so raises in threads), and may never return: it runs in processes that can be killed
(``rlrt.verifiers.symbolic``). It also evaluates any sum, so from a response without a box it gets a plain number
(``rlrt.verifiers.literals``) or nothing.
"""

from __future__ import annotations

import re

from rlrt.verifiers.answers import after_thinking, boxed
from rlrt.verifiers.equality import Undecided, equal_answers
from rlrt.verifiers.literals import last_number, readable
from rlrt.verifiers.symbolic import equal_expressions
from rlrt.verifiers.verifier import InProcesses

LONGEST = 20_000
"""Characters at a response's end that are searched for a box: answers are there, and parsing takes time."""

WHOLE = r"(0|-?[1-9][0-9]{0,14})"
"""Pattern of a whole number that is compared without being read."""


def math_verify(timeout_s: float, workers: int) -> InProcesses:
    """Return a verifier of mathematical equality with the expected answer; the arguments are those of ``InProcesses``."""
    return InProcesses(equal, timeout_s, workers, answer_part, ("1", "\\boxed{1}"), at_sight)


def answer_part(response: str) -> str:
    """Return the graded part of a response: its last box, or else the plain number at its end; empty without either."""
    text = after_thinking(response)
    inside = boxed(text[-LONGEST:])
    answer = last_number(text) if inside is None else readable(inside)
    return f"\\boxed{{{answer}}}" if answer else ""


def at_sight(expected: str, response: str) -> bool | None:
    """Return the verdict that needs no math-verify: on no answer, on numbers, words, choices, and lists of them; else None."""
    if not response:
        return False
    quick = whole_numbers(expected, response)
    if quick is not None:
        return quick
    try:
        return equal_answers(expected_text(expected), inside_of(response), undecided) if expected.strip() else None
    except Undecided:
        return None


def whole_numbers(expected: str, response: str) -> bool | None:
    """Return whether two plain whole numbers are equal; None for anything else."""
    actual, expected_number = re.fullmatch(rf"\\boxed\{{{WHOLE}\}}", response), re.fullmatch(WHOLE, expected)
    return None if actual is None or expected_number is None else actual[1] == expected_number[1]


def undecided(expected: str, given: str) -> bool:
    """Decide nothing: expressions need a process."""
    raise Undecided


def inside_of(response: str) -> str:
    """Return the answer within ``answer_part``'s box."""
    return response.removeprefix("\\boxed{").removesuffix("}").strip()


def expected_text(expected: str) -> str:
    """Return an expected answer without a box around it."""
    inside = boxed(expected)
    return inside if inside else expected


def equal(expected: str, response: str) -> bool:
    """True if the response's final answer equals the expected one. Runs in a worker process, which may be killed.

    Raises whatever math-verify or sympy raise, and ValueError for an expected answer that cannot be read.
    """
    if not expected.strip():
        raise ValueError(f"the expected answer {expected!r} cannot be read")
    return equal_answers(expected_text(expected), inside_of(response), equal_expressions)
