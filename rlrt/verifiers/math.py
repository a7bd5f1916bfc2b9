"""Mathematical equality by math-verify.

math-verify 0.9 sets signal handlers (and so raises in threads), may never return, is not symmetric (the expected answer goes
first), and accepts some wrong answers (1/2004! = 1/2006!): it runs in processes that can be killed. It also evaluates any sum,
so from a response without a box it gets a plain number (``rlrt.verifiers.literals``) or nothing.
"""

from __future__ import annotations

import logging
import re

from rlrt.verifiers.answers import after_thinking, boxed
from rlrt.verifiers.literals import last_number, readable
from rlrt.verifiers.verifier import InProcesses

LONGEST = 20_000
"""Characters at a response's end that are searched for a box: answers are there, and parsing takes time."""

WHOLE = r"(0|-?[1-9]\d{0,14})"
"""Pattern of a whole number that is compared without math-verify."""


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
    """Return the verdict that needs no math-verify: on no answer, on the expected text itself, on two whole numbers; else
    None."""
    if not response:
        return False
    inside = response.removeprefix("\\boxed{").removesuffix("}").strip()
    return True if inside and inside == readable(expected).strip() else whole_numbers(expected, response)


def whole_numbers(expected: str, response: str) -> bool | None:
    """Return whether two plain whole numbers are equal; None for anything else, which sympy must parse."""
    actual, expected_number = re.fullmatch(rf"\\boxed\{{{WHOLE}\}}", response), re.fullmatch(WHOLE, expected)
    return None if actual is None or expected_number is None else actual[1] == expected_number[1]


def equal(expected: str, response: str) -> bool:
    """True if the response's final answer equals the expected one. Runs in a worker process, which may be killed.

    Raises whatever math-verify or sympy raise, and ValueError for an expected answer that cannot be parsed.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(
        logging.CRITICAL
    )  # at each call it warns that it has no time limit of its own
    gold = parse(in_math(readable(expected)), parsing_timeout=None)
    if not gold:
        raise ValueError(f"the expected answer {expected!r} cannot be read")
    answer = parse(response, parsing_timeout=None)
    return bool(answer) and bool(verify(gold, answer, timeout_seconds=None))


def in_math(expected: str) -> str:
    """Return an expected answer as LaTeX mathematics; unchanged if it has math delimiters or a box already."""
    return expected if re.search(r"\$|\\boxed|\\\(|\\\[", expected) else f"${expected}$"
