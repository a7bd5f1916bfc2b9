"""A user's own problems from a JSONL file, graded by exact match of the final answer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.seeds import permutation
from rlrt.types import Grade, Prompt


def final_answer(text: str) -> str:
    r"""The content of the last ``\\boxed{...}`` (braces balanced), or else the last line; white space trimmed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        lines = text.strip().splitlines()
        return lines[-1].strip() if lines else ""
    depth, begin = 1, start + len("\\boxed{")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i].strip()
    return ""


def normalised(answer: str) -> str:
    """White space removed: the only liberty that exact match takes."""
    return re.sub(r"\s+", "", answer)


@dataclass
class JsonlFile:
    """One JSON object a line. ``data.*``:"""

    path: str = key("JSONL file")
    prompt_field: str = key("field of the question")
    answer_field: str = key("field of the final answer")
    solution_field: str = key("field of a worked solution; a line may lack it")
    heldout_share: float = key("share of the lines kept for evaluation", above=0, most=0.9)
    train: list[Prompt] = field(default_factory=list, init=False, repr=False)
    heldout: list[Prompt] = field(default_factory=list, init=False, repr=False)

    def prepare(self) -> None:
        """Read the file; repeated questions are kept once.

        Raises:
            UserError: for a file that is missing or has a broken line (named by its number), or too few questions.
        """
        file = Path(self.path)
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.path: {self.path!r} could not be read as a text file: {error}.") from None
        prompts: dict[str, Prompt] = {}
        for number, line in enumerate(lines, 1):
            if line.strip():
                prompt = self._parse(line, number)
                prompts.setdefault(prompt.text, prompt)
        if len(prompts) < 2:
            raise UserError(f"data.path: expected at least 2 questions in {self.path}, found {len(prompts)}.")
        unique = list(prompts.values())
        order = permutation(len(unique), 0, "heldout")
        held = max(1, round(self.heldout_share * len(unique)))
        self.heldout = [unique[i] for i in sorted(order[:held])]
        self.train = [unique[i] for i in sorted(order[held:])]

    def _parse(self, line: str, number: int) -> Prompt:
        where = f"data.path: line {number} of {self.path}"
        try:
            record: Any = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not valid JSON ({error}).") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected a JSON object, got {type(record).__name__}.")
        for name, config_key in ((self.prompt_field, "prompt_field"), (self.answer_field, "answer_field")):
            value = record.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                record[name] = str(value)
            elif not isinstance(value, str) or not value.strip():
                got = f"found fields {', '.join(map(str, record)) or 'none'}" if value is None else f"got {value!r}"
                raise UserError(f"{where}: expected text in field {name!r} (data.{config_key}), {got}.")
        solution = record.get(self.solution_field)
        return Prompt(
            id=f"{number}",
            text=record[self.prompt_field],
            answer=record[self.answer_field],
            solution=solution if isinstance(solution, str) and solution else None,
            final=record[self.answer_field],
        )

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """1 if the final answer equals the expected one, white space apart."""
        correct = normalised(final_answer(text)) == normalised(prompt.answer)
        return Grade(correct=correct, reward=float(correct))

    def canonical(self, prompt: Prompt, text: str) -> str:
        """The whole text, white space apart."""
        return normalised(text)
