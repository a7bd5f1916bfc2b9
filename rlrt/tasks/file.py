"""Problems from a table for training, and held-out problems from another table or a share of the same one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.seeds import permutation
from rlrt.tasks.rewards import Rewarded
from rlrt.tasks.table import Table
from rlrt.types import Prompt
from rlrt.verifiers.answers import normalised


@dataclass
class ProblemFile(Rewarded, Table):
    """A table of problems: JSONL, JSON, parquet or CSV. ``data.*``:"""

    heldout_path: str | None = key("table of problems for evaluation, like path; null: a share of these problems")
    heldout_files: str = key("pattern of files in heldout_path, like files")
    heldout_share: float = key("share of the problems held out for evaluation", above=0, most=0.9)
    heldout_prompts: int = key("maximum number of evaluation problems; 0: all", least=0)
    max_prompt_tokens: int = key("longer prompts are dropped, counted and reported", "tokens", least=1)
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
        unique = self.read(self.path, self.files, set(), "data.path")
        if len(unique) < 2:
            counts = f" ({self.report()})" if self.dropped else ""
            raise UserError(f"data.path: expected at least 2 questions in {self.path}, found {len(unique)}{counts}.")
        if self.heldout_path is not None:
            self.train = unique
            known = {normalised(p.text) for p in unique}
            heldout = self.read(self.heldout_path, self.heldout_files, known, "data.heldout_path")
            if not heldout:
                raise UserError(f"data.heldout_path: {self.heldout_path} has no question that is not trained on.")
            self.heldout = heldout
        else:
            order = permutation(len(unique), 0, "heldout")
            count = max(1, round(self.heldout_share * len(unique)))
            self.heldout = [unique[i] for i in sorted(order[:count])]
            self.train = [unique[i] for i in sorted(order[count:])]
        if self.heldout_prompts:
            self.heldout = self.heldout[: self.heldout_prompts]
