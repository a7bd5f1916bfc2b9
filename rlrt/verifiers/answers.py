"""The final answer of a response, and exact match."""

from __future__ import annotations

import re

END_OF_THOUGHT = "</think>"
_BOX = re.compile(
    r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?:(?P<open>\{)"
    r"|(?P<bare>[-−]?\d+(?:[.,]\d+)*|[A-Za-z])(?=\.?(?:\s*(?:\$|\\\)|\\\]|\n|\Z)|\s+[A-Z]))|)"
)


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
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    match = boxes[-1]
    if match["bare"] is not None:
        return match["bare"]
    depth, i = 1, match.end()
    while i < len(text) and match["open"]:
        if text[i] == "\\":
            i += 1
        elif text[i] in "{}":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[match.end() : i].strip()
        i += 1
    return ""


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
