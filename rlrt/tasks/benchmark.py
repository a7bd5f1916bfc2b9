"""A published benchmark: problems for evaluation only, never for training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.tasks.table import Table
from rlrt.types import Prompt


@dataclass
class Benchmark(Table):
    """One suite of ``eval.suites``: all problems of a table. ``eval.suites.NAME.*``:"""

    problems: int | None = key(
        "number of problems, if it is known: a table with another number is refused; null: any number", least=1
    )
    name: str = field(default="", init=False)
    heldout: list[Prompt] = field(default_factory=list, init=False, repr=False)
    train: list[Prompt] = field(default_factory=list, init=False, repr=False)

    def prepare(self) -> None:
        """Read the table.

        Raises:
            UserError: for a table that is missing, broken or empty, or has another number of problems than expected.
        """
        self.dropped = Counter()
        where = f"eval.suites.{self.name}.path"
        self.heldout = self.read(self.path, self.files, where)
        if not self.heldout:
            raise UserError(f"{where}: expected questions in {self.path}, found none ({self.report() or 'no row'}).")
        if self.problems not in (None, len(self.heldout)):
            raise UserError(
                f"eval.suites.{self.name}.problems: expected {self.problems} questions in {self.path}, found "
                f"{len(self.heldout)} ({self.report() or 'nothing dropped'}); give the right table, or set it to null."
            )
