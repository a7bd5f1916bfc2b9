"""Text of a foreign folder on a terminal and in a page: no character of it moves the cursor, sets a title or turns the text."""

from __future__ import annotations

import unicodedata

HARMLESS = ("\u200c", "\u200d")
"""Format characters that scripts and emoji need: the zero-width joiner and non-joiner."""
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that are written as escapes: controls, format characters (the direction of the text among them), half
characters (bytes of a file's name that are no UTF-8), and separators of lines."""


def printable(text: str) -> str:
    """Return a text of several lines with every control character but the line feed written as an escape, as ``\\x1b``."""
    return "".join(c if c == "\n" else escaped(c) for c in text)


def one_line(text: object, most: int = 1000) -> str:
    """Return a text on one line, control characters written as escapes; of a longer one the first ``most`` characters."""
    line = "".join(map(escaped, str(text)[: most + 1]))
    return line if len(line) <= most else f"{line[:most]}..."


def escaped(character: str) -> str:
    """Return a character, or its escape if it is not to be seen as itself."""
    if character.isprintable() or character in HARMLESS or unicodedata.category(character) not in HIDDEN:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file's name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )
