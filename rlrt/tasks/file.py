"""Problems from a table for training, and held-out problems from another table or a share of the same one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.seeds import permutation
from rlrt.tasks.cells import example_of
from rlrt.tasks.questions import KEYS, plain
from rlrt.tasks.rewards import Rewarded
from rlrt.tasks.table import REPEATED, Table
from rlrt.types import Prompt

TRAINED_ON = "evaluation question that is nearly one that is trained on"
EVALUATED = "training question that is nearly one that is held out"
"""Reasons to drop a problem."""


@dataclass
class ProblemFile(Rewarded, Table):
    """A table of problems: JSONL, JSON, parquet or CSV. ``data.*``:"""

    heldout_path: str | None = key("table of problems for evaluation, like path; null: a share of these problems")
    heldout_files: str = key("pattern of files in heldout_path, like files")
    heldout_share: float = key("share of the problems held out for evaluation", above=0, most=0.9)
    heldout_prompts: int = key("maximum number of evaluation problems; 0: all", least=0)
    duplicates: str = key(
        "which questions of training and evaluation are one, so that one of the two is dropped: near (capitals, white space "
        "around and punctuation at the end apart) or equal (runs of white space apart)",
        choices=tuple(KEYS),
    )
    max_prompt_tokens: int = key("longer prompts are dropped, counted and reported", "tokens", least=1)
    special_tokens: str = key(
        "a problem whose text spells a control token of the model (<|im_end|>): escape encodes it as plain text, refuse ends "
        "the run before it begins",
        choices=("escape", "refuse"),
    )
    train: list[Prompt] = field(default_factory=list, init=False, repr=False)
    heldout: list[Prompt] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a verifier or a reward that cannot be imported, before any table is read."""
        super().__post_init__()
        self.find_rewards()
        self.keeps_rows = bool(self.rewards)

    def prepare(self) -> None:
        """Read the tables.

        Raises:
            UserError: for a table that is missing or broken, a missing column, or too few questions.
        """
        self.dropped = Counter()
        unique = self.read(self.path, self.files, "data.path")
        if len(unique) < 2:
            counts = f" ({self.report()})" if self.dropped else ""
            raise UserError(f"data.path: expected at least 2 questions in {self.path}, found {len(unique)}{counts}.")
        if self.heldout_path is not None:
            heldout = self.read(self.heldout_path, self.heldout_files, "data.heldout_path")
            self.train, self.heldout = unique, self._without(heldout, unique, TRAINED_ON)
            if not self.heldout:
                counts = f" ({self.report()})" if self.dropped else ""
                raise UserError(
                    f"data.heldout_path: {self.heldout_path} has no question that is not trained on{counts}."
                )
        else:
            order = permutation(len(unique), 0, "heldout")
            count = max(1, round(self.heldout_share * len(unique)))
            self.heldout = [unique[i] for i in sorted(order[:count])]
            self.train = self._without([unique[i] for i in sorted(order[count:])], self.heldout, EVALUATED)
            if not self.train:
                raise UserError(
                    f"data.path: every question of {self.path} is nearly one that is held out ({self.report()}); give "
                    "different questions, or set data.duplicates=equal."
                )
        if self.heldout_prompts:
            self.heldout = self.heldout[: self.heldout_prompts]

    def _without(self, prompts: Sequence[Prompt], known: Sequence[Prompt], reason: str) -> list[Prompt]:
        """Return the prompts whose question is none of the known ones; the others are counted, the nearly equal ones with an
        example."""
        same = KEYS[self.duplicates]
        questions = {same(p.text): p.text for p in reversed(known)}
        kept = []
        for prompt in prompts:
            other = questions.get(same(prompt.text))
            if other is None:
                kept.append(prompt)
            elif plain(other) == plain(prompt.text):
                self.dropped[REPEATED] += 1
            else:
                self.dropped[reason] += 1
                self.remarks.setdefault(reason, f"for example {example_of(prompt.text)} and {example_of(other)}")
        return kept
