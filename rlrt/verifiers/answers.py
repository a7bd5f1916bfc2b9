"""The final answer of a response, and exact match."""

from __future__ import annotations

import re

from rlrt.verifiers.literals import NUMBER

END_OF_THOUGHT = "</think>"
BOX = re.compile(r"\\(boxed)(?=\{)")
BOX_OF_ANY_FORM = re.compile(r"\\(boxed|fbox|framebox)(?![A-Za-z])[ \t\n]*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
r"""Braces that group; ``\{`` is a sign."""
ONE_LETTER = re.compile(r"[^\W\d_](?![^\W_])")


def after_thinking(text: str) -> str:
    """Return the text after a thinking model's last thought; empty if a thought is opened and never closed."""
    if END_OF_THOUGHT in text:
        return text.rsplit(END_OF_THOUGHT, 1)[1]
    return "" if "<think>" in text else text


def boxed(text: str, published: bool = False) -> str | None:
    r"""Return the content of the last ``\\boxed{...}``, braces balanced; None without a box, empty if the box never closes.

    Args:
        published: take the forms that published solutions have too: ``\\fbox{...}``, ``\\framebox{...}``, spaces before the
            brace, and without braces the number, or the one letter, that follows.
    """
    for start in reversed(list((BOX_OF_ANY_FORM if published else BOX).finditer(text))):
        begin = start.end()
        if text[begin : begin + 1] != "{":
            bare = NUMBER.match(text, begin) or ONE_LETTER.match(text, begin)
            if bare is None:
                continue  # the command is mentioned, not used
            return bare[0].strip()
        depth = 0
        for brace in BRACE.finditer(text, begin):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                inside = text[begin + 1 : brace.start()].strip()
                return inside if start[1] == "boxed" else re.sub(r"\A\$([^$]*)\$\Z", r"\1", inside).strip()
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
    """Remove all white space: the only difference that exact match ignores."""
    return re.sub(r"\s+", "", answer)
