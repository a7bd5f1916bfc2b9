"""Several data sets as one: each source's problems with its own verifier, in shares of a step that weights may set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlrt.errors import UserError, nearest
from rlrt.keys import key
from rlrt.tasks.base import Task
from rlrt.tasks.cells import example_of
from rlrt.tasks.questions import near
from rlrt.tasks.table import Table
from rlrt.types import Grade, Prompt

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
RESERVED = ("mean",)
"""Names that metrics have already."""
SMALLEST_SHARE = 1e-6
"""Of a step's prompts: one prompt in a million."""
HELD_OUT = "training question that is nearly one that another source holds out"
REPEATED = "question that another source has too"


@dataclass
class Mixture(Task):
    """Several data sets as one. ``data.*``:"""

    sources: dict[str, Any] = key("data sets by name, each a section like data: +data@data.sources.NAME=gsm8k")
    weights: dict[str, float] | None = key(
        "shares of a step's prompts by name of the source; null: as many as each source has problems"
    )
    train: list[Prompt] = field(default_factory=list, init=False, repr=False)
    heldout: list[Prompt] = field(default_factory=list, init=False, repr=False)
    shares: dict[str, float] | None = field(default=None, init=False, repr=False)
    max_prompt_tokens: int | None = field(default=None, init=False, repr=False)
    _origin: dict[str, Prompt] = field(default_factory=dict, init=False, repr=False)

    SECTIONS = "sources"
    """The key whose entries are sections of the same kind as this class's own (``rlrt.config.load``)."""

    def __post_init__(self) -> None:
        """Refuse names of sources that metrics cannot have, and weights of other names."""
        if not self.sources:
            raise UserError(
                "data.sources: expected at least one data set, got none; add +data@data.sources.NAME=gsm8k."
            )
        for name in self.sources:
            if not NAME.fullmatch(name) or name in RESERVED:
                raise UserError(
                    f"data.sources: expected a name of letters, digits, - and _ (not {RESERVED[0]}), got {name!r}."
                )
        if self.weights is not None:
            for name, weight in self.weights.items():
                if name not in self.sources:
                    raise UserError(f"data.weights: there is no source {name!r}.{nearest(name, self.sources)}")
                if not 0 < weight < float("inf"):
                    raise UserError(f"data.weights: expected a number above 0 for {name}, got {weight:g}.")
            lacking = [name for name in self.sources if name not in self.weights]
            if lacking:
                raise UserError(f"data.weights: expected a weight for every source, got none for {lacking[0]}.")
            scale = 1.0 if sum(self.weights.values()) < float("inf") else max(self.weights.values())
            total = sum(weight / scale for weight in self.weights.values())
            self.shares = {name: self.weights[name] / scale / total for name in self.sources}
            share, least = min((share, name) for name, share in self.shares.items())
            if share < SMALLEST_SHARE:
                raise UserError(
                    f"data.weights: expected shares of at least {SMALLEST_SHARE:g}, got {share:.2g} for {least}, of which "
                    "no step would have a prompt; raise its weight or leave the source out."
                )

    def prompt_limit(self, prompt: Prompt) -> int | None:
        """The longest prompt that the prompt's source takes."""
        limit: int | None = self.sources[prompt.source].max_prompt_tokens
        return limit

    def refuses_control_tokens(self, prompt: Prompt) -> bool:
        """What the prompt's source says (``rlrt.tasks.base.Task``); a suite's prompt has none."""
        source = self.sources.get(prompt.source)
        return source is not None and bool(source.refuses_control_tokens(prompt))

    def check_installed(self) -> None:
        """Refuse what a source needs and this environment lacks."""
        for task in self.sources.values():
            task.check_installed()

    def prepare(self) -> None:
        """Read all sources. A training question that another source holds out is dropped, and one that two sources have stays
        in the first.

        Raises:
            UserError: for a source that cannot be read, or has nothing left to train on.
        """
        self.dropped, self.train, self.heldout, self._origin = Counter(), [], [], {}
        for name, task in self.sources.items():
            try:
                task.prepare()
            except UserError as error:
                raise UserError(re.sub(r"\bdata\.(?=\w)", f"data.sources.{name}.", str(error))) from None
        limits = [task.max_prompt_tokens for task in self.sources.values()]
        self.max_prompt_tokens = None if None in limits else max(limits)
        self._share_verifiers()
        known: dict[str, str] = {}
        for name, task in self.sources.items():
            self.heldout += self._taken(name, task.heldout, known, REPEATED)
        tested = dict(known)
        for name, task in self.sources.items():
            own = self._taken(name, task.train, known, REPEATED, tested)
            if not own:
                raise UserError(
                    f"data.sources.{name}: every training question is one of another source too ({self.report()}); leave the "
                    "source out."
                )
            self.train += own

    def _taken(
        self,
        name: str,
        prompts: Sequence[Prompt],
        known: dict[str, str],
        reason: str,
        tested: Mapping[str, str] | None = None,
    ) -> list[Prompt]:
        """Return a source's prompts under names of their own, without those that other sources have."""
        taken, own = [], {}
        for prompt in prompts:
            same = near(prompt.text)
            if same in known:
                why = HELD_OUT if tested is not None and same in tested else reason
                self.dropped[why] += 1
                self.remarks.setdefault(why, f"for example {example_of(prompt.text)} of {name}")
                continue
            own[same] = prompt.text
            made = replace(prompt, id=f"{name}/{prompt.id}", source=name)
            self._origin[made.id] = prompt
            taken.append(made)
        known.update(own)
        return taken

    def _share_verifiers(self) -> None:
        first: dict[Any, Table] = {}
        for task in self.sources.values():
            if isinstance(task, Table):
                same = (task.verifier, task.verifier_timeout_s, task.verifier_workers)
                task.share(first.setdefault(same, task))

    def report(self) -> str:
        """What each source dropped, and what was dropped between them."""
        reports = {name: task.report() for name, task in self.sources.items()} | {"between them": super().report()}
        return "; ".join(f"{name}: {text}" for name, text in reports.items() if text)

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """The verdict of the prompt's source."""
        return self.start_grading([(prompt, text)])()[0]

    def start_grading(self, pairs: Sequence[tuple[Prompt, str]]) -> Callable[[], list[Grade]]:
        """Start to grade in every source at once."""
        places: dict[str, list[int]] = {}
        for place, (prompt, _) in enumerate(pairs):
            places.setdefault(prompt.source, []).append(place)
        pending = {
            name: self.sources[name].start_grading([(self._origin[pairs[i][0].id], pairs[i][1]) for i in mine])
            for name, mine in places.items()
        }

        def wait() -> list[Grade]:
            grades = {i: grade for name, mine in places.items() for i, grade in zip(mine, pending[name](), strict=True)}
            return [grades[i] for i in range(len(pairs))]

        return wait

    def canonical(self, prompt: Prompt, text: str) -> str:
        """What the prompt's source says."""
        said: str = self.sources[prompt.source].canonical(self._origin[prompt.id], text)
        return said

    @property
    def families(self) -> bool:  # type: ignore[override]
        """True if every source tells kinds of solutions apart."""
        return all(task.families for task in self.sources.values())

    def family(self, prompt: Prompt, text: str) -> str:
        """What the prompt's source says."""
        said: str = self.sources[prompt.source].family(self._origin[prompt.id], text)
        return said

    def extracted(self, prompt: Prompt, text: str) -> str | None:
        """What the prompt's source says."""
        return self.sources[prompt.source].extracted(self._origin[prompt.id], text)

    def close(self) -> None:
        """End what the sources started."""
        for task in self.sources.values():
            task.close()
