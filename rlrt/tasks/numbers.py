"""The numbers that a problem's text has in digits, for a filter by size."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", re.ASCII)
"""A number in digits; the commas of 1,250 separate thousands, that of (3,4) does not."""


def largest_number(*texts: str) -> float:
    """Return the largest number that the texts have in digits; 0 if they have none. Words (``twelve``) do not count."""
    return max((float(n.replace(",", "")) for text in texts for n in _NUMBER.findall(text)), default=0.0)
