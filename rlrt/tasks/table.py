"""Problems from a table: which column is what, which rows are dropped, how answers are compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rlrt.keys import key
from rlrt.tasks.base import content_id
from rlrt.tasks.graded import Graded, function_at, verifier_of
from rlrt.tasks.rows import field_of, rows_of, table_files
from rlrt.types import Prompt
from rlrt.verifiers.answers import boxed, normalised
from rlrt.verifiers.verifier import Verifier


@dataclass
class Table(Graded):
    """A JSONL, JSON, parquet or CSV file, a folder of them, or a data set on the hub."""

    path: str = key("a file, a folder, or a data set's id on the hub")
    revision: str | None = key("hub revision (branch, tag or commit); null: the newest")
    files: str = key("which files of a folder or data set, as a pattern")
    prompt_field: str = key("column of the question; a dot leads into nested columns")
    answer_field: str = key("column of the final answer")
    answer_format: str = key(
        "where the final answer stands in its column: all of it, after the last ####, or in the last box",
        choices=("plain", "hash", "boxed"),
    )
    instruction: str = key(
        "how the answer is to be given, told to the model after the question; empty: the question says it"
    )
    solution_field: str | None = key("column of a worked solution; a row may lack it; null: none")
    verifier: str = key(
        "how answers are compared: exact (letter by letter), math (as mathematics), or the import path of a function "
        "(expected answer, response) -> bool"
    )
    dropped: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a verifier that is not there before anything is read."""
        if self.verifier not in ("exact", "math"):
            function_at(self.verifier)

    def read(self, path: str, pattern: str, known: set[str], where: str) -> list[Prompt]:
        """The problems of a table: repeated questions once, rows without question or answer dropped; ``dropped`` counts both.

        Args:
            path, pattern: as the keys ``path`` and ``files``.
            known: normalised questions that count as repeated.
            where: the key that gave the path, for messages.

        Raises:
            UserError: for a table that is missing or broken, or a column that is not there.
        """
        prompts: list[Prompt] = []
        seen = set(known)
        for file in table_files(path, pattern, self.revision, where):
            for place, row in rows_of(file, where):
                prompt = self._prompt(row, place, where.rpartition(".")[0])
                if prompt is None:
                    continue
                if normalised(prompt.text) in seen:
                    self.dropped["repeated question"] += 1
                    continue
                seen.add(normalised(prompt.text))
                prompts.append(prompt)
        return prompts

    def _prompt(self, row: Any, place: str, section: str) -> Prompt | None:
        question = text_of(field_of(row, self.prompt_field, f"{section}.prompt_field", place))
        answer = self._final(text_of(field_of(row, self.answer_field, f"{section}.answer_field", place)))
        for value, what in ((question, "no question"), (answer, "no answer")):
            if not value:
                self.dropped[what] += 1
                return None
        solution = text_of(row.get(self.solution_field)) if self.solution_field else ""
        name = content_id(question, answer, solution)
        return Prompt(name, question, answer, solution or None, final=answer, instruction=self.instruction)

    def _final(self, text: str) -> str:
        if self.answer_format == "hash":
            return text.rpartition("####")[2].strip().replace(",", "") if "####" in text else ""
        return (boxed(text) or "") if self.answer_format == "boxed" else text

    def report(self) -> str:
        """What was dropped, for a person; empty where nothing was."""
        return ", ".join(f"{count} x {what}" for what, count in sorted(self.dropped.items()))

    def make_verifier(self) -> Verifier:
        """By the key ``verifier``."""
        return verifier_of(self.verifier, self.verifier_timeout_s, self.verifier_workers)


def text_of(value: Any) -> str:
    """A cell as text, trimmed; numbers as they are written, everything else as empty."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else ""
