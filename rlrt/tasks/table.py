"""Problems from a table: the meaning of its columns, dropped rows, and the comparison of answers."""

from __future__ import annotations

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
    files: str = key("pattern of the files in a folder or data set")
    prompt_field: str = key("column of the question; a dot leads into nested columns")
    answer_field: str = key("column of the final answer")
    answer_format: str = key(
        "position of the final answer in its column: the whole text, after the last ####, or in the last box",
        choices=("plain", "hash", "boxed"),
    )
    instruction: str = key(
        "format of the answer, which the model reads after the question; empty: the question states it"
    )
    solution_field: str | None = key("column of a worked solution; a row may lack it; null: none")
    verifier: str = key(
        "how answers are compared: exact (letter by letter), math (as mathematics), or the import path of a function "
        "(expected answer, response) -> bool"
    )

    keeps_rows: bool = field(default=False, init=False, repr=False)
    """Whether each prompt carries its row."""

    def __post_init__(self) -> None:
        """Refuse a verifier that cannot be imported, before any table is read."""
        if self.verifier not in ("exact", "math"):
            function_at(self.verifier)

    def read(self, path: str, pattern: str, known: set[str], where: str) -> list[Prompt]:
        """Return the problems of a table without repeated questions and rows that lack question or answer; ``dropped`` counts
        both.

        Args:
            path, pattern: values like those of the keys ``path`` and ``files``.
            known: normalised questions that count as repeated.
            where: name of the key that gave the path, for messages.

        Raises:
            UserError: for a table that is missing or broken, or a missing column.
        """
        prompts: list[Prompt] = []
        seen = set(known)
        for file in table_files(path, pattern, self.revision, where):
            for row_name, row in rows_of(file, where):
                prompt = self._prompt(row, row_name, where.rpartition(".")[0])
                if prompt is None:
                    continue
                if normalised(prompt.text) in seen:
                    self.dropped["repeated question"] += 1
                    continue
                seen.add(normalised(prompt.text))
                prompts.append(prompt)
        return prompts

    def _prompt(self, row: Any, row_name: str, section: str) -> Prompt | None:
        question = text_of(field_of(row, self.prompt_field, f"{section}.prompt_field", row_name))
        answer = self._final(text_of(field_of(row, self.answer_field, f"{section}.answer_field", row_name)))
        for value, what in ((question, "no question"), (answer, "no answer")):
            if not value:
                self.dropped[what] += 1
                return None
        solution = text_of(row.get(self.solution_field)) if self.solution_field else ""
        name = content_id(question, answer, solution)
        kept = row if self.keeps_rows else None
        return Prompt(name, question, answer, solution or None, final=answer, instruction=self.instruction, row=kept)

    def _final(self, text: str) -> str:
        if self.answer_format == "hash":
            return text.rpartition("####")[2].strip().replace(",", "") if "####" in text else ""
        return (boxed(text) or "") if self.answer_format == "boxed" else text

    def make_verifier(self) -> Verifier:
        """Return the verifier that the key ``verifier`` names."""
        return verifier_of(self.verifier, self.verifier_timeout_s, self.verifier_workers)


def text_of(value: Any) -> str:
    """Return a cell as trimmed text; numbers as they are written, everything else as empty."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else ""
