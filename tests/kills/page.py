"""A page of several logs: each writer replaces its own section."""

from __future__ import annotations

from pathlib import Path


def put(file: Path, heading: str, lines: list[str]) -> None:
    """Write a section of a page in place of the earlier one with that heading, or at the end.

    Args:
        file: the page, which need not be there.
        heading: the section's first line; of a section ``#`` the text before the first ``##`` is replaced.
        lines: the section, the heading included.
    """
    sections: list[list[str]] = []
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.startswith(("# ", "## ")) or not sections:
            sections.append([])
        sections[-1].append(line)
    kept = [section for section in sections if section[0] != heading]
    at = next((i for i, section in enumerate(sections) if section[0] == heading), len(sections))
    kept.insert(at, lines)
    file.write_text("\n\n".join("\n".join(section).strip() for section in kept) + "\n")
