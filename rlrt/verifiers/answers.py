"""The final answer of a response, and exact match."""

from __future__ import annotations

import re

from rlrt.verifiers.literals import NUMBER

END_OF_THOUGHT = "</think>"
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
r"""Braces that group; ``\{`` is a sign."""
LETTER = re.compile(r"[A-Za-z]")
END = re.compile(r"\.?(?:\s*(?:\$|\\\)|\\\]|\n|\Z)|\s+[A-Z])")
"""What follows the content of a box without braces: the end of a line, a sentence or its mathematics."""


def after_thinking(text: str) -> str:
    """Return the text after a thinking model's last thought; empty if a thought is opened and never closed."""
    if END_OF_THOUGHT in text:
        return text.rsplit(END_OF_THOUGHT, 1)[1]
    return "" if "<think>" in text else text


def boxed(text: str) -> str | None:
    r"""Return the content of the last box, braces balanced; None without a box, empty if the box never closes.

    A box is ``\\boxed{2}``, ``\\fbox{2}``, ``\\framebox{2}``, also with white space before the brace, and ``\\boxed 2``, a
    number or letter that ends a line, a sentence or its mathematics. ``\\{`` and ``\\}`` are signs, not braces.
    """
    for start in reversed(list(BOX.finditer(text))):
        begin = start.end()
        if text[begin : begin + 1] != "{":
            bare = NUMBER.match(text, begin) or LETTER.match(text, begin)
            if bare is None:
                continue  # the command is mentioned, not used
            return bare[0].strip() if END.match(text, bare.end()) else ""  # where does it end?
        depth = 0
        for brace in BRACE.finditer(text, begin):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[begin + 1 : brace.start()].strip()
        return ""
    return None


def final_answer(text: str) -> str:
    """Return the content of the last box, or the last line if there is no box; white space trimmed."""
    inside = boxed(text)
    if inside is not None:
        return inside
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def normalised(answer: str) -> str:
    """Remove all white space: what makes two questions or two solutions the same text."""
    return re.sub(r"\s+", "", answer)


def spaced(answer: str) -> str:
    """Write every run of white space as one space, and none at the ends: the only difference that exact match ignores."""
    return " ".join(answer.split())
