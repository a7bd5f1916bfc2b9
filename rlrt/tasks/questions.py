"""When two questions are one: the same words, or nearly the same."""

from __future__ import annotations

import re
import unicodedata

END = ".?,;:…。？，；："
"""Punctuation that says nothing at a question's end. An exclamation mark does: it is a factorial after a number."""
_SHOUT = re.compile(r"(?:(?<=[^\W\d_]{2})|(?<=[.?…。？]))!+\Z")


def plain(question: str) -> str:
    """Return what two equal questions share: runs of white space count as one space, but no space vanishes."""
    return " ".join(question.split())


def near(question: str) -> str:
    """Return what two nearly equal questions share: capitals, white space around and punctuation at the end apart.

    Nothing inside changes: ``1 23`` is not ``12 3``, and ``1.5`` is not ``15``.
    """
    text = unicodedata.normalize("NFC", plain(question)).casefold()
    while True:
        shorter = _SHOUT.sub("", text.rstrip(END)).rstrip()
        if shorter == text:
            return text
        text = shorter


KEYS = {"near": near, "equal": plain}
"""What two questions share that count as one, by the values of ``data.duplicates``."""
