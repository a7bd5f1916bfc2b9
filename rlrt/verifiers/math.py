"""Mathematical equality by math-verify.

math-verify 0.9 sets signal handlers (and so raises in threads), may take for ever, is not symmetric (the expected answer goes
first), and takes some wrong answers for right (1/2004! = 1/2006!): it runs in processes that can be killed. It also finishes
any sum that it is given, so of a response without a box it is given a plain number (``rlrt.verifiers.literals``) or nothing.
"""

from __future__ import annotations

import logging
import re

from rlrt.verifiers.answers import after_thinking, boxed
from rlrt.verifiers.literals import last_number, readable
from rlrt.verifiers.verifier import InProcesses

LONGEST = 20_000
"""Characters at a response's end in which a box is looked for: answers stand there, and parsing takes time."""

WHOLE = r"(0|-?[1-9]\d{0,14})"


def math_verify(timeout_s: float, workers: int) -> InProcesses:
    """Equality of the final answer with the expected one, as mathematics; the arguments are those of ``InProcesses``."""
    return InProcesses(equal, timeout_s, workers, answer_part, ("1", "\\boxed{1}"), at_sight)


def answer_part(response: str) -> str:
    """What is judged of a response: its last box alone, or without one the plain number at its end; empty without either."""
    text = after_thinking(response)
    inside = boxed(text[-LONGEST:])
    answer = last_number(text) if inside is None else readable(inside)
    return f"\\boxed{{{answer}}}" if answer else ""


def at_sight(expected: str, response: str) -> bool | None:
    """The verdict on no answer (wrong), on the text that was expected (right) and on two whole numbers; None for the rest."""
    if not response:
        return False
    inside = response.removeprefix("\\boxed{").removesuffix("}").strip()
    return True if inside and inside == readable(expected).strip() else whole_numbers(expected, response)


def whole_numbers(expected: str, response: str) -> bool | None:
    """Whether two whole numbers, plainly written, are the same; None for anything else, which sympy must read."""
    mine, theirs = re.fullmatch(rf"\\boxed\{{{WHOLE}\}}", response), re.fullmatch(WHOLE, expected)
    return None if mine is None or theirs is None else mine[1] == theirs[1]


def equal(expected: str, response: str) -> bool:
    """Whether the response's final answer equals the expected one. Runs in a worker, which may be killed.

    Raises whatever math-verify or sympy raise, and ValueError for an expected answer that cannot be read.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns at each call that the time limit is ours
    gold = parse(in_math(readable(expected)), parsing_timeout=None)
    if not gold:
        raise ValueError(f"the expected answer {expected!r} cannot be read")
    answer = parse(response, parsing_timeout=None)
    return bool(answer) and bool(verify(gold, answer, timeout_seconds=None))


def in_math(expected: str) -> str:
    """An expected answer as LaTeX mathematics, unless it says so itself."""
    return expected if re.search(r"\$|\\boxed|\\\(|\\\[", expected) else f"${expected}$"
