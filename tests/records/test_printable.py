"""Text that is printed does nothing to a terminal."""

from __future__ import annotations

import logging

import pytest

from rlrt.records.printable import one_line, printable
from rlrt.records.secrets import MaskingFormatter


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"), ("a\rb", "a\\rb"), ("\x9b31m", "\\x9b31m"), ("\x07", "\\x07"), ("\x7f", "\\x7f"),
        ("\u202eabc", "\\u202eabc"), ("\u2066x\u2069", "\\u2066x\\u2069"), ("\ufeff", "\\ufeff"), ("\u200b", "\\u200b"),
        ("\U000e0041", "\\U000e0041"), ("\u2028", "\\u2028"), ("\udcff", "\\xff"), ("\ud800", "\\ud800"), ("a\tb", "a\\tb"),
        ("é ± ␣ 中 🙂", "é ± ␣ 中 🙂"), ("👩\u200d💻", "👩\u200d💻"),
    ],
)  # fmt: skip
def test_control_characters_become_escapes(text, shown):
    assert printable(text) == one_line(text) == shown
    assert printable(text).encode()


def test_a_line_feed_stays_where_lines_are_meant_and_only_there():
    assert printable("a\nb") == "a\nb"
    assert one_line("a\nb") == "a\\nb"
    assert one_line("x" * 3000, 10) == "x" * 10 + "..."


def test_log_lines_too():
    record = logging.LogRecord("rlrt", logging.WARNING, "", 0, "%s", ("\x1b]0;title\x07",), None)
    assert MaskingFormatter("%(message)s").format(record) == "\\x1b]0;title\\x07"
