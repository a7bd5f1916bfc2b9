"""The final answer of a response, and exact match."""

from __future__ import annotations

import re

END_OF_THOUGHT = "</think>"


def after_thinking(text: str) -> str:
    """Return the text after a thinking model's last thought; empty if a thought is opened and never closed."""
    if END_OF_THOUGHT in text:
        return text.rsplit(END_OF_THOUGHT, 1)[1]
    return "" if "<think>" in text else text


def boxed(text: str) -> str | None:
    r"""Return the content of the last ``\\boxed{...}``, braces balanced; None without a box, empty if the box never closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i].strip()
    return ""


def final_answer(text: str) -> str:
    """Return the content of the last box, or the last line if there is no box; white space trimmed."""
    inside = boxed(text)
    if inside is not None:
        return inside
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def normalised(answer: str) -> str:
    """Remove all white space: the only difference that exact match ignores."""
    return re.sub(r"\s+", "", answer)
