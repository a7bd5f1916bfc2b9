"""The final answer of a response, and exact match."""

from __future__ import annotations

import re

from rlrt.verifiers.literals import NUMBER

END_OF_THOUGHT = "</think>"
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
r"""Braces that group; ``\{`` is a sign."""
LETTER = re.compile(r"[A-Za-z]")
FACTOR = re.compile(r"(?:[-+*/^_(\[,;\d|]|\\(?:cdot|times|pm|div|frac|sqrt|neg|not|ne))\s*\{*\s*\\[a-z]+\s*\Z")
"""What makes an inner box a part of the outer one."""
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
        end = closed(text, begin)
        if end is None:
            return ""
        outer = around(text, begin, end)
        return text[begin + 1 : end].strip() if outer is None else outer
    return None


def closed(text: str, begin: int) -> int | None:
    """Return the place of the brace that closes the one at ``begin``; None if none does."""
    depth = 0
    for brace in BRACE.finditer(text, begin):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def around(text: str, begin: int, end: int) -> str | None:
    r"""Return the content of the outermost box around the last one, whose braces are at ``begin`` and ``end``.

    None if there is none that closes, or if the last box ends it and is the only one in it: ``\boxed{x = \boxed{2}}``.
    """
    boxes = [m.end() for m in BOX.finditer(text, 0, begin)]
    known = set(boxes)
    opened: list[int] = []
    for brace in BRACE.finditer(text, 0, begin):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            opened.pop()
    first = next((place for place in opened if place in known), None)
    last = None if first is None else closed(text, first)
    if first is None or last is None:
        return None
    alone = set(opened).issuperset(place for place in boxes if first < place < begin)
    alone = alone and not text[end:last].strip("{}$. \t\r\n") and not FACTOR.search(text, first, begin)
    return None if alone else text[first + 1 : last].strip()


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
