"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass

STATES = ("ok", "warning", "problem", "skipped")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state: one of ``STATES``; a problem is what will not work, a warning what may not.
        topic: what was looked at.
        words: what was found, and where something is wrong the key to change.
    """

    state: str
    topic: str
    words: str

    def __post_init__(self) -> None:
        """Catch a misspelt state."""
        assert self.state in STATES, self.state

    def __str__(self) -> str:
        """The line."""
        return f"{self.state:<8}{self.topic}: {self.words}"
