"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass

STATES = ("ok", "warning", "problem", "skipped")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state: one of ``STATES``; a problem will not work, a warning may not work.
        topic: subject of the check.
        sentence: the result, and the key to change if something is wrong.
    """

    state: str
    topic: str
    sentence: str

    def __post_init__(self) -> None:
        """Fail on a misspelt state."""
        assert self.state in STATES, self.state

    def __str__(self) -> str:
        """Return the line."""
        return f"{self.state:<8}{self.topic}: {self.sentence}"
