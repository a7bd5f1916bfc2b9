"""Runs as a person asks for them: found below folders, kept by their keys, sorted by a metric, in a table or as plain values.

Nothing is asked of SLURM and no lock is waited for, so thousands of runs take seconds: ``summary.json`` of every run is read,
``manifest.json`` of those that are shown or asked for a key, ``config.yaml`` where a key of it is asked for.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, nearest
from rlrt.keys import leaves
from rlrt.records.files import json_object, mapping, whole
from rlrt.records.jsonlines import JsonLines, is_number, numbers_of
from rlrt.records.killed import is_gone
from rlrt.records.printable import one_line
from rlrt.records.secrets import redacted
from rlrt.records.stored_config import stored_config
from rlrt.reporting.jobs import LAST_TIME_S

MISSING = object()
"""The value of what a run does not have; ``null`` is a value."""
PAPERS = ("manifest.json", "job.json", "summary.json")
"""A folder with one of these is a run's, or will be."""
DEPTH = 3
"""Levels of folders below ``outputs`` at which runs lie: ``sweeps/SWEEP/JOB``."""
PASSED_OVER = ("artifacts", "checkpoints")
"""Folders in which copies of a run's papers may lie: what MLflow was sent."""
OLD = re.compile(r".*\.old-\d+")
"""Names of earlier runs that ``resume=never`` put aside."""
END = 32_768
"""Bytes at the end of a record that are read for its last step."""
COLUMNS = ("name", "method", "model", "data", "state", "step", "avg@k", "reward", "when")
"""What is shown of a run."""
OTHERS = ("sweep", "identity", "steps", "error")
"""Further columns that are not keys of the config."""
CONFIGS = ("steps",)
"""Columns that are in the config alone."""
COMMON = ("method", "model", "data", "state")
"""Columns that stand below the table where all runs have one value."""
HEADINGS = {
    "greedy": "eval/greedy",
    "distinct": "eval/distinct_correct",
    "entropy": "eval/entropy",
    "length": "eval/length_mean",
}
"""Metrics by their headings in a report; avg@8 and pass@8 are read as such too."""


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        folder: where it lies.
        summary: its ``summary.json``; {} if it has not begun.
        manifest: its ``manifest.json``, or the sweep's ``job.json`` before it begins; {} if that was not read.
        config: dotted key -> value; None if it was not read.
        records: its last records, oldest first; [] for a run that finished.
    """

    folder: Path
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    records: Sequence[Mapping[str, Any]] = ()

    @property
    def state(self) -> str:
        """Its state in its summary; ``lost`` if it was running on this machine and its process is gone."""
        return "lost" if is_gone(self.folder, self.summary) else one_line(self.summary.get("state", "queued"), 40)

    @property
    def final(self) -> dict[str, float]:
        """Its final metrics that are finite numbers."""
        return {one_line(k, 200): v for k, v in mapping(self.summary.get("final")).items() if is_number(v)}

    @property
    def sweep(self) -> str:
        """The name of its sweep; empty for a single run."""
        return one_line(self.folder.parent.name, 300) if os.path.lexists(self.folder / "job.json") else ""


def folders_of(places: Sequence[Path]) -> list[Path]:
    """Return the folders of all runs in or below some places, each once.

    Raises:
        UserError: for a place that is no folder, and if no run is below any.
    """
    found: dict[tuple[int, int], Path] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: expected the folder of runs, or of one run, found none there.")
        for folder in [place] if is_run(place) else below(place, DEPTH):
            with contextlib.suppress(OSError):  # removed meanwhile
                known = os.stat(folder)
                found.setdefault((known.st_dev, known.st_ino), folder)
    if not found:
        raise UserError(f"expected runs in {', '.join(map(str, places))}, found none; give the folder that holds them.")
    return list(found.values())


def is_run(folder: Path) -> bool:
    """True if a run has begun in a folder, or a sweep has planned one there."""
    return any(os.path.lexists(folder / name) for name in PAPERS)


def below(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders of runs below a folder; what was put aside is passed over."""
    try:
        inner = [folder / name for name in sorted(os.listdir(folder)) if name not in PASSED_OVER]
    except OSError:
        return
    for path in sorted(filter(os.path.isdir, inner), key=os.path.islink):  # what a link leads to may lie beside it
        if OLD.fullmatch(path.name):
            continue
        if is_run(path) or not may_enter(path):
            yield path
        elif depth > 1:
            yield from below(path, depth - 1)


def newest_first(folders: Iterable[Path], warn: Callable[[str], None]) -> list[Run]:
    """Return the runs with their summaries alone, the one whose state changed last first; a damaged one is left out."""
    runs = []
    for folder in folders:
        if not may_enter(folder):
            warn(f"{folder} cannot be read (no right to enter it).")
            continue
        try:
            runs.append(Run(folder, json_object(folder / "summary.json")))
        except UserError as error:
            warn(str(error))
    return sorted(runs, key=changed, reverse=True)


def may_enter(folder: Path) -> bool:
    """True for a folder that this user may enter and read; what another one holds cannot be known."""
    return os.access(folder, os.R_OK | os.X_OK)


def read(run: Run, config: bool) -> Run:
    """Return a run with its manifest, and with its config if that is wanted, or if it has not finished (how many steps?).

    Raises:
        UserError: for a paper that cannot be read.
    """
    folder, over = run.folder, run.summary.get("state") == "finished"
    manifest = json_object(folder / "manifest.json") or json_object(folder / "job.json")
    plain: Mapping[str, Any] | None = None
    if config or not over:
        begun = os.path.lexists(folder / "config.yaml")
        plain = stored_config(folder) if begun else redacted(mapping(manifest.get("plain")))
    records = [] if over else [numbers_of(r) for r in JsonLines(folder / "metrics.jsonl").last(END)]
    return Run(folder, run.summary, manifest, None if plain is None else leaves(plain, keep_empty=True), records)


def changed(run: Run) -> float:
    """Return when a run's state changed last, in seconds since 1970; of one that has not begun, when it was planned."""
    then = run.summary.get("changed")
    if is_number(then):
        return max(0.0, min(float(then), LAST_TIME_S))
    try:
        return next((os.lstat(run.folder / n).st_mtime for n in PAPERS if os.path.lexists(run.folder / n)), 0.0)
    except OSError:
        return 0.0


def value(run: Run, name: str) -> Any:
    """Return what a run has under a name: a column, a choice (``method``), a key of its config, or a final metric; ``MISSING``
    if it has nothing."""
    name = metric_of(name)
    if name in OWN:
        return OWN[name](run)
    choices = mapping(run.manifest.get("choices"))
    if isinstance(choices.get(name), str):
        return choices[name]
    if run.config is not None and name in run.config:
        return run.config[name]
    return run.final.get(name, MISSING)


def metric_of(name: str) -> str:
    """Return the metric that a heading of a report means, or the name itself."""
    at = re.fullmatch(r"(avg|pass)@(\d{1,9})", name, re.ASCII)
    return f"eval/{at[1]}_at_{int(at[2])}" if at else HEADINGS.get(name, name)


def best_known(run: Run) -> tuple[int, float] | None:
    """Return the largest k of which a run has a final avg@k, and its value; None without one."""
    ks = ((re.fullmatch(r"eval/avg_at_(\d{1,9})", name, re.ASCII), v) for name, v in run.final.items())
    return max(((int(match[1]), v) for match, v in ks if match), default=None)


def step_of(run: Run) -> int:
    """Return the number of updates done."""
    return max([whole(run.summary.get("step")), *(whole(r.get("step")) for r in run.records[-1:])])


def reward_of(run: Run) -> Any:
    """Return the last mean reward."""
    last = next((r["reward/mean"] for r in reversed(run.records) if "reward/mean" in r), MISSING)
    return run.final.get("reward/mean", last)


OWN: Mapping[str, Callable[[Run], Any]] = {
    "name": lambda run: "/".join(filter(None, (run.sweep, one_line(run.folder.resolve().name, 300)))),
    "sweep": lambda run: run.sweep or MISSING,
    "state": lambda run: run.state,
    "step": step_of,
    "steps": lambda run: (run.config or {}).get("train.steps", MISSING),
    "avg@k": lambda run: MISSING if (best := best_known(run)) is None else best[1],
    "reward": reward_of,
    "when": changed,
    "identity": lambda run: one_line(run.manifest.get("identity", ""), 40) or MISSING,
    "error": lambda run: one_line(run.summary.get("error", "")) or MISSING,
}
"""Columns that are neither keys nor metrics."""


def needs_config(name: str) -> bool:
    """True if a name may be a key of the config, so that configs must be read for it."""
    name = metric_of(name)
    return name in CONFIGS or (name not in (*OWN, "method", "model", "data") and "/" not in name)


def same(stored: Any, asked: Any) -> bool:
    """True if two values of YAML are equal: 1 and 1.0 are, 1 and true are not, nor 1 and the text "1"."""
    if isinstance(stored, list) and isinstance(asked, list):
        return len(stored) == len(asked) and all(map(same, stored, asked))
    return isinstance(stored, bool) == isinstance(asked, bool) and bool(stored == asked)


def kept(
    runs: Iterable[Run], where: Sequence[tuple[str, Any]], most: int | None, config: bool, warn: Callable[[str], None]
) -> list[Run]:
    """Return the first runs that have every value asked for, read; those that cannot be read are left out.

    Args:
        runs: as ``newest_first`` gives them.
        where: names and values, as ``value`` has them.
        most: how many; None: all.
        config: whether the configs are needed.
        warn: called with the sentence about each run that cannot be read.

    Raises:
        UserError: for a name that none of the runs has.
    """
    had: set[str] = set()
    known: set[str] = set()

    def matching() -> Iterator[Run]:
        for summarised in runs:
            try:
                run = read(summarised, config)
            except UserError as error:
                warn(str(error))
                continue
            values = [(name, value(run, name), asked) for name, asked in where]
            had.update(name for name, stored, _ in values if stored is not MISSING)
            known.update(names_of(run) if where else ())
            if all(stored is not MISSING and same(stored, asked) for _, stored, asked in values):
                yield run

    chosen = list(itertools.islice(matching(), most))
    for name, _ in where:
        if not chosen and name not in had:
            raise unknown("--where", name, known)
    return chosen


def names_of(run: Run) -> set[str]:
    """Return every name under which a run has a value, so far as it was read."""
    return {*OWN, *map(str, mapping(run.manifest.get("choices"))), *(run.config or {}), *run.final}


def refuse_unknown(runs: Sequence[Run], names: Sequence[str], option: str) -> None:
    """Refuse a name under which no run has a value, where there are runs; a column that is empty is none of these.

    Raises:
        UserError: with the nearest name.
    """
    for name in names:
        if runs and metric_of(name) not in OWN and all(value(run, name) is MISSING for run in runs):
            raise unknown(option, name, set().union(*map(names_of, runs[:100])))


def unknown(option: str, name: str, known: set[str]) -> UserError:
    """Return the error for a name that no run has."""
    hint = nearest(name, {one_line(k, 100) for k in known} | {*COLUMNS, *OTHERS})
    return UserError(f"{option} {one_line(name, 100)}: none of these runs has such a key or final metric.{hint}")


def ordered(runs: Sequence[Run], by: str, descending: bool) -> list[Run]:
    """Return runs by a column, key or metric: numbers before texts; those that have no value come last either way."""
    having = [run for run in runs if value(run, by) is not MISSING]

    def place(run: Run) -> tuple[int, float, str]:
        found = value(run, by)
        return (0, float(found), "") if is_number(found) else (1, 0.0, str(found))

    lacking = [run for run in runs if value(run, by) is MISSING]
    return sorted(having, key=place, reverse=descending) + lacking


def cell(run: Run, name: str, now: datetime.datetime) -> str:
    """Return a value as a table shows it; ``-`` where a run has none."""
    found = value(run, name)
    if found is MISSING:
        return "-"
    if name == "when":
        then = datetime.datetime.fromtimestamp(found)
        return f"{then:%m-%d %H:%M}" if then.year == now.year else f"{then:%Y-%m-%d %H:%M}"
    if name == "step" and (planned := whole((run.config or {}).get("train.steps"))) and run.state != "finished":
        return f"{found}/{planned}"
    if isinstance(found, float) and (name in ("avg@k", "reward") or "/" in metric_of(name)):
        return f"{found:.3f}" if 1e-3 <= abs(found) < 1e4 or found == 0 else f"{found:.3g}"
    return written(found)


def written(found: Any) -> str:
    """Return a value of a config as YAML would have it on one line, texts as they are."""
    if isinstance(found, list):
        return "[" + ",".join(map(written, found)) + "]"
    if found is None or isinstance(found, bool):
        return {None: "null", True: "true", False: "false"}[found]
    return one_line(found, 200) if found != "" else "''"


def rows(runs: Sequence[Run], columns: Sequence[str], width: int, fold: bool) -> tuple[list[list[str]], list[str]]:
    """Return the table of runs, its heading first, and what all of them share, as ``name=value``.

    Args:
        columns: names, as ``value`` has them.
        width: characters of a line; names are shortened for it.
        fold: leave out columns of ``COMMON`` in which all runs have one value.
    """
    now = datetime.datetime.now()
    cells = {name: [cell(run, name, now) for run in runs] for name in columns}
    shared = [n for n in columns if fold and len(runs) > 1 and n in COMMON and len({*cells[n]}) == 1]
    shown = [n for n in columns if n not in shared]
    headings = {n: heading(n, runs) for n in shown}
    others = [max(len(headings[n]), *map(len, cells[n])) for n in shown if n != "name"]
    room = max(NARROWEST, width - sum(others) - 2 * len(others))
    if "name" in shown:
        cells["name"] = [fitted(run, room) for run in runs]
    table = [[headings[n] for n in shown], *([cells[n][i] for n in shown] for i in range(len(runs)))]
    return table, [f"{n}={cells[n][0]}" for n in shared]


NARROWEST = 26
"""Characters of a name that are always shown."""
LONGEST_SWEEP = 20
"""Characters of a sweep's name that is shown whole."""


def heading(name: str, runs: Sequence[Run]) -> str:
    """Return a column's heading; avg@k with its k where all runs have the same."""
    ks = {best[0] for run in runs if (best := best_known(run)) is not None}
    return f"avg@{ks.pop()}" if name == "avg@k" and len(ks) == 1 else one_line(name, 60)


def fitted(run: Run, room: int) -> str:
    """Return a run's name in so many characters: of a long name of its sweep the end, which tells it from others, of its own
    both ends."""
    sweep, own = run.sweep, one_line(run.folder.resolve().name, 300)
    sweep = sweep if len(sweep) <= LONGEST_SWEEP else f"..{sweep[-8:]}"
    left = room - len(sweep) - bool(sweep)
    if len(own) > left:
        own = f"{own[: max(0, left - 14)]}..{own[-12:]}"
    return f"{sweep}/{own}" if sweep else own


def plain(run: Run, columns: Sequence[str]) -> dict[str, Any]:
    """Return a run as plain values of JSON: its folder, the usual columns, its final metrics, and what else is asked for."""
    usual = {n: None if (v := value(run, n)) is MISSING else v for n in (*COLUMNS, "sweep", "identity")}
    usual["when"] = datetime.datetime.fromtimestamp(changed(run)).astimezone().isoformat(timespec="seconds")
    usual["k"] = None if (best := best_known(run)) is None else best[0]
    more = {n: None if (v := value(run, n)) is MISSING else v for n in columns if n not in usual}
    return {"folder": str(run.folder), **usual, "final": run.final, **({"columns": more} if more else {})}
