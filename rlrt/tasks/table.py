"""Problems from a table: the meaning of its columns, dropped rows, and the comparison of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlrt.errors import UserError, nearest
from rlrt.keys import key
from rlrt.tasks.base import content_id
from rlrt.tasks.cells import ANSWERS, ASKS, MISSING, SHOWN, NotUnderstood, columns_of, example_of, field_of, text_of
from rlrt.tasks.files import table_files
from rlrt.tasks.finals import FORMATS, final_of
from rlrt.tasks.graded import Graded, function_at, verifier_of
from rlrt.tasks.numbers import largest_number
from rlrt.tasks.questions import plain
from rlrt.tasks.rows import rows_of
from rlrt.types import Prompt
from rlrt.verifiers.verifier import Verifier

USUAL_SOLUTION = "solution"
"""The default of ``solution_field``, which a table need not have. Any other name was chosen, so the table must have it."""
REPEATED = "repeated question"


@dataclass
class Columns:
    """Which columns of a file's rows were found, to refuse a column that no row has."""

    rows: int = 0
    found: set[str] = field(default_factory=set)
    seen: dict[str, None] = field(default_factory=dict)
    first: str = ""
    inside: str = ""

    def value(self, row: Any, name: str) -> Any:
        """Return a row's field or ``MISSING``; of several names (``input|question``) the first that the row has."""
        for one in alternatives(name):
            value = field_of(row, one)
            if value is not MISSING:
                self.found.add(name)
                return value
        return MISSING

    def note(self, row: Mapping[str, Any], where: str) -> None:
        """Note a row's columns for messages."""
        self.first = self.first or where
        self.rows += 1
        if self.rows == 1:
            lists = [n for n, v in row.items() if isinstance(v, list) and v and all(isinstance(e, Mapping) for e in v)]
            self.inside = f" Perhaps the rows are inside {lists[0]!r}: write that list as a file." if lists else ""
        if len(self.seen) < 100:
            self.seen.update(dict.fromkeys(columns_of(row)))

    def refuse_missing(self, wanted: Mapping[str, list[str]], nothing_yet: bool) -> None:
        """Refuse a column that no row of a file has; a file of one row may lack it if other files have problems.

        Args:
            wanted: names of columns by the key that gave them.
            nothing_yet: no file has had a problem.

        Raises:
            UserError: with the nearest name.
        """
        for key_name, names in wanted.items():
            for name in names:
                if self.rows and name not in self.found and (self.rows > 1 or nothing_yet):
                    more = "" if self.rows == 1 else f" or any other of its {self.rows} rows"
                    *others, last = map(repr, alternatives(name)[1:])
                    either = f"{', '.join(others)} or {last}" if others else repr(name)
                    close = (nearest(one, self.seen) for one in alternatives(name)[1:] if self.seen)
                    hint = min(close, key=lambda said: not said.startswith(" Did"), default="")
                    raise UserError(
                        f"{key_name}: expected a column {either} in {self.first}{more}, found "
                        f"{', '.join(list(self.seen)[:12]) or 'none'}; set {key_name} to one that is there.{hint}"
                        f"{self.inside if self.rows == 1 else ''}"
                    )


def alternatives(name: str) -> list[str]:
    """Return the columns that a key may mean: the name as it stands, and those that ``|`` separates in it."""
    return [name, *name.split("|")]


@dataclass
class Table(Graded):
    """A table of questions and answers: a file of a kind that docs/data.md names, a folder of them, or a hub data set."""

    path: str = key("a file, a folder, or a data set's id on the hub")
    revision: str | None = key("hub revision (branch, tag or commit); null: the newest")
    files: str = key("pattern of the files in a folder or data set; of several, a|b, the first that matches a file")
    prompt_field: str | list[str] = key(
        "column of the question; a dot leads into nested columns; several columns, [Body,Question], are one question with a "
        "space between them; of several names, input|question, the first that a row has"
    )
    answer_field: str = key("column of the final answer")
    answer_format: str = key(
        "position of the final answer in its column: the whole text, after the last ####, in the last box, or the one number "
        "without its unit",
        choices=FORMATS,
    )
    instruction: str = key(
        "format of the answer, which the model reads after the question; empty: the question states it"
    )
    examples: list[dict[str, str]] = key(
        "worked examples, each {question: ..., answer: ...}, of which a model is shown the first model.examples before the "
        "question"
    )
    max_number: float | None = key(
        "problems with a larger number, in digits, in question or final answer are dropped; null: none", least=0
    )
    solution_field: str | None = key("column of a worked solution; a row may lack it; null: none")
    hint_field: str | None = key("column of a hint, for teacher.context=hint; a row may lack it; null: none")
    verifier: str = key(
        "how answers are compared: exact (letter by letter), math (as mathematics), or the import path of a function "
        "(expected answer, response) -> bool"
    )
    _two_answers: int = field(default=0, init=False, repr=False)
    _shown: tuple[tuple[str, str], ...] = field(default=(), init=False, repr=False)

    keeps_rows: bool = field(default=False, init=False, repr=False)
    """Whether each prompt carries its row."""

    def __post_init__(self) -> None:
        """Refuse a verifier that cannot be imported, and examples without question or answer, before any table is read."""
        if self.verifier not in ("exact", "math"):
            function_at(self.verifier)
        for example in self.examples:
            if example.keys() != {"question", "answer"} or not all(text.strip() for text in example.values()):
                raise UserError(
                    f"data.examples: expected {{question: TEXT, answer: TEXT}} for each example, got {example_of(example)}."
                )
        self._shown = tuple((example["question"], example["answer"]) for example in self.examples)

    @property
    def question_columns(self) -> list[str]:
        """The columns that make the question."""
        return [self.prompt_field] if isinstance(self.prompt_field, str) else list(self.prompt_field)

    def read(self, path: str, pattern: str, where: str) -> list[Prompt]:
        """Return the problems of a table without repeated questions and rows that lack question or answer; ``dropped`` counts
        both, and what is not understood by its type.

        Args:
            path, pattern: values like those of the keys ``path`` and ``files``.
            where: name of the key that gave the path, for messages.

        Raises:
            UserError: for a table that is missing or broken, or a missing column.
        """
        section = where.rpartition(".")[0]
        if not self.question_columns:
            raise UserError(f"{section}.prompt_field: expected a column or a list of columns, got an empty list.")
        wanted = {f"{section}.prompt_field": self.question_columns, f"{section}.answer_field": [self.answer_field]}
        if self.solution_field not in (None, USUAL_SOLUTION):
            wanted[f"{section}.solution_field"] = [str(self.solution_field)]
        if self.hint_field is not None:
            wanted[f"{section}.hint_field"] = [self.hint_field]
        prompts: dict[str, Prompt] = {}
        for file in table_files(path, pattern, self.revision, where):
            columns = Columns()
            for prompt in self._problems(rows_of(file, where), columns):
                first = prompts.setdefault(plain(prompt.text), prompt)
                if first is not prompt:
                    self._repeated(first, prompt)
            columns.refuse_missing(wanted, nothing_yet=not prompts)
        return list(prompts.values())

    def _problems(self, rows: Iterator[tuple[str, Mapping[str, Any]]], columns: Columns) -> Iterator[Prompt]:
        """Yield a prompt for every row that has question and answer; the others are counted."""
        for row_name, row in rows:
            columns.note(row, row_name)
            asked = [columns.value(row, name) for name in self.question_columns]
            given = columns.value(row, self.answer_field)
            value = columns.value(row, self.solution_field) if self.solution_field else None
            helping = columns.value(row, self.hint_field) if self.hint_field else None
            question = self._question(asked, row_name)
            answer = self._text(given, "answer", row_name, self.answer_format)
            if question is None or answer is None:
                continue
            if not question or not answer:
                reason = "no question" if not question else "no answer"
                self.dropped[reason] += 1
                if MISSING in (asked if not question else [given]):
                    self.remarks.setdefault(
                        reason,
                        f"for example {row_name} has only {', '.join(columns_of(row, 1))[:SHOWN] or 'no column'}",
                    )
                continue
            if self.max_number is not None and largest_number(question, answer) > self.max_number:
                self.dropped[f"number over {self.max_number:g}"] += 1
                continue
            solution = self._text(value, "solution", row_name) or ""
            hint = self._text(helping, "hint", row_name) or None
            name = content_id(question, answer, solution)  # the hint is no part: with another one the rollouts stay
            kept = row if self.keeps_rows else None
            yield Prompt(
                name,
                question,
                answer,
                solution or None,
                final=answer,
                instruction=self.instruction,
                row=kept,
                hint=hint,
                examples=self._shown,
            )

    def _question(self, values: list[Any], row_name: str) -> str | None:
        """Return the question of one or several cells; empty if a row lacks one of them."""
        if any(value is None or value is MISSING for value in values):
            return ""
        parts = [self._text(value, "question", row_name) for value in values]
        return None if None in parts else " ".join(part for part in parts if part)

    def _text(self, value: Any, what: str, row_name: str, answer_format: str = "plain") -> str | None:
        """Return a cell as text; None, counted by its type with an example, if it is not understood."""
        try:
            return final_of(text_of(value, ASKS if what == "question" else ANSWERS), answer_format)
        except NotUnderstood as error:
            reason = f"{what} is {error.kind}" + (
                " (the problem stays without it)" if what in ("solution", "hint") else ""
            )
            self.dropped[reason] += 1
            self.remarks.setdefault(reason, f"for example {example_of(value)} in {row_name}")
            return None

    def _repeated(self, first: Prompt, second: Prompt) -> None:
        self.dropped[REPEATED] += 1
        if first.answer == second.answer:
            return
        self._two_answers += 1
        self.remarks[REPEATED] = (
            f"{self._two_answers} of them with another answer; the first is kept, for example {example_of(second.answer)} was "
            f"dropped and {example_of(first.answer)} kept for {example_of(second.text)}"
        )

    def make_verifier(self) -> Verifier:
        """Return the verifier that the key ``verifier`` names."""
        return verifier_of(self.verifier, self.verifier_timeout_s, self.verifier_workers)
