"""Problems from a table, here or on the hub, graded by their final answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.seeds import permutation
from rlrt.tasks.rows import field_of, rows_of, table_files
from rlrt.types import Grade, Prompt
from rlrt.verifiers.answers import boxed, normalised
from rlrt.verifiers.math import MathVerify
from rlrt.verifiers.verifier import ExactMatch, Verifier


@dataclass
class ProblemFile:
    """JSONL, JSON, parquet or CSV. ``data.*``:"""

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
    heldout_path: str | None = key("problems for evaluation, as path; null: a share of these")
    heldout_files: str = key("like files, for heldout_path")
    heldout_share: float = key("share of the problems kept for evaluation", above=0, most=0.9)
    heldout_prompts: int = key("evaluation problems kept at most; 0: all", least=0)
    max_prompt_tokens: int = key("longer prompts are dropped, counted and reported", "tokens", least=1)
    verifier: str = key("how answers are compared: letter by letter, or as mathematics", choices=("exact", "math"))
    verifier_timeout_s: float = key(
        "time for one answer; a late one is an error, not a wrong answer", "seconds", above=0
    )
    verifier_workers: int = key("processes of the verifier", least=1)
    train: list[Prompt] = field(default_factory=list, init=False, repr=False)
    heldout: list[Prompt] = field(default_factory=list, init=False, repr=False)
    dropped: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _verifier: Verifier | None = field(default=None, init=False, repr=False)

    def prepare(self) -> None:
        """Read the tables. Repeated questions are kept once, rows without question or answer dropped; ``dropped`` counts both.

        Raises:
            UserError: for a table that is missing or broken, a column that is not there, or too few questions.
        """
        self.dropped = Counter()
        unique = self._read(self.path, self.files, set())
        if len(unique) < 2:
            counts = f" ({self.report()})" if self.dropped else ""
            raise UserError(f"data.path: expected at least 2 questions in {self.path}, found {len(unique)}{counts}.")
        if self.heldout_path is not None:
            self.train = unique
            held = self._read(self.heldout_path, self.heldout_files, {normalised(p.text) for p in unique})
            if not held:
                raise UserError(f"data.heldout_path: {self.heldout_path} has no question that is not trained on.")
            self.heldout = held
        else:
            order = permutation(len(unique), 0, "heldout")
            count = max(1, round(self.heldout_share * len(unique)))
            self.heldout = [unique[i] for i in sorted(order[:count])]
            self.train = [unique[i] for i in sorted(order[count:])]
        if self.heldout_prompts:
            self.heldout = self.heldout[: self.heldout_prompts]

    def _read(self, path: str, pattern: str, known: set[str]) -> list[Prompt]:
        prompts: list[Prompt] = []
        seen = set(known)
        for file in table_files(path, pattern, self.revision):
            for number, (where, row) in enumerate(rows_of(file), 1):
                prompt = self._prompt(row, where, f"{Path(file).stem}:{number}")
                if prompt is None:
                    continue
                if normalised(prompt.text) in seen:
                    self.dropped["repeated question"] += 1
                    continue
                seen.add(normalised(prompt.text))
                prompts.append(prompt)
        return prompts

    def _prompt(self, row: Any, where: str, name: str) -> Prompt | None:
        question = text_of(field_of(row, self.prompt_field, "prompt_field", where))
        answer = self._final(text_of(field_of(row, self.answer_field, "answer_field", where)))
        for value, what in ((question, "no question"), (answer, "no answer")):
            if not value:
                self.dropped[what] += 1
                return None
        solution = text_of(row.get(self.solution_field)) if self.solution_field else ""
        return Prompt(name, question, answer, solution or None, final=answer, instruction=self.instruction)

    def _final(self, text: str) -> str:
        if self.answer_format == "hash":
            return text.rpartition("####")[2].strip().replace(",", "") if "####" in text else ""
        return (boxed(text) or "") if self.answer_format == "boxed" else text

    def report(self) -> str:
        """What was dropped, for a person; empty where nothing was."""
        return ", ".join(f"{count} x {what}" for what, count in sorted(self.dropped.items()))

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """1 if the final answer is the expected one."""
        return self.grade_many([(prompt, text)])[0]

    def grade_many(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Grade]:
        """Grades of many responses at once."""
        if self._verifier is None:
            math = self.verifier == "math"
            self._verifier = MathVerify(self.verifier_timeout_s, self.verifier_workers) if math else ExactMatch()
        return self._verifier.grade([(str(prompt.answer), text) for prompt, text in pairs])

    def close(self) -> None:
        """End the verifier's processes."""
        if self._verifier is not None:
            self._verifier.close()

    def canonical(self, prompt: Prompt, text: str) -> str:
        """The whole text, white space apart."""
        return normalised(text)


def text_of(value: Any) -> str:
    """A cell as text, trimmed; numbers as they are written, everything else as empty."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else ""
