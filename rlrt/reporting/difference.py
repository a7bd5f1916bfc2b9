"""What differs between two runs: config, code, libraries, contents, machine, final metrics, and the first step that does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.records.files import json_object, mapping
from rlrt.records.identity import is_neutral
from rlrt.records.jsonlines import NOT_FINITE, JsonLines, is_number
from rlrt.records.printable import one_line
from rlrt.reporting.runs import Run, read, written
from rlrt.reporting.terminal import table

TIMING = "time/"
"""How the names of metrics begin that no two runs have alike."""
ABSENT = "-"
UNKNOWN = "not recorded"
WIDEST = 60
"""Characters of a value in a table."""
MOST = 12
"""Metrics of the first step that differs, and names of metrics of one run alone, that are shown."""
DIGITS = 12
"""Characters of a digest that are shown."""


@dataclass(frozen=True)
class Side:
    """One of two runs that are compared: its folder, its papers, its config by dotted key, and its record by step."""

    folder: Path
    run: Run
    config: Mapping[str, Any]
    steps: Mapping[int, Mapping[str, Any]]


def side(folder: Path) -> Side:
    """Read a run.

    Raises:
        UserError: for a folder that holds none, or a paper or a record that cannot be read.
    """
    run = read(Run(folder, json_object(folder / "summary.json")), config=True)
    if not run.manifest and not run.summary:
        raise UserError(f"{folder}: expected a run (manifest.json), found none.")
    records = {record["step"]: record for record in JsonLines(folder / "metrics.jsonl").read()}
    return Side(folder, run, run.config or {}, records)


def difference(left: Side, right: Side) -> str:
    """Format all that differs between two runs."""
    lines = [f"left:  {told(left)}", f"right: {told(right)}", "", configs(left, right), "", made_of(left, right), ""]
    return "\n".join([*lines, finals(left, right), "", steps(left, right)])


def told(one: Side) -> str:
    """Return a run's folder, state and step on a line."""
    last = max(one.steps, default=0)
    return f"{one_line(one.folder, 300)} ({one.run.state}, step {last})"


def configs(left: Side, right: Side) -> str:
    """Format the keys of the configs that differ; a key that the identity ignores is marked."""
    differing = [
        key
        for key in {**left.config, **right.config}
        if json.dumps(left.config.get(key, ABSENT)) != json.dumps(right.config.get(key, ABSENT))
        or (key in left.config) != (key in right.config)
    ]
    if not differing:
        return f"config: equal ({len(left.config)} keys)"
    rows = [["config", "left", "right", ""]]
    contents = [mapping(part(one, "contents")) for one in (left, right)]
    for key in differing:
        mark = "not in the identity" if is_neutral(key) else ""
        if all(key in digests for digests in contents):
            mark = "the same content" if contents[0][key] == contents[1][key] else "other content"
        rows.append([key, *two(left.config.get(key, ABSENT), right.config.get(key, ABSENT)), mark])
    return table(rows, left=len(rows[0]))


def two(left: Any, right: Any) -> list[str]:
    """Return two values for a table; a text that looks like the other value is quoted."""
    texts = [written(v) for v in (left, right)]
    if texts[0] == texts[1]:
        texts = [json.dumps(v, ensure_ascii=False) for v in (left, right)]
    return [one_line(text, WIDEST) for text in texts]


def part(one: Side, name: str) -> Any:
    """Return what an identity was made of, by name; None for a run that was recorded before that was noted."""
    return mapping(one.run.manifest.get("ingredients")).get(name)


def made_of(left: Side, right: Side) -> str:
    """Format what differs in code, libraries, contents of models and data, and machine, and say what is equal."""
    rows, equal = [["", "left", "right"]], []
    for name, facts in FACTS.items():
        found = [{k: v for k, v in facts(one).items() if v is not None} for one in (left, right)]
        names = list(dict.fromkeys([*found[0], *found[1]]))
        differing = [n for n in names if found[0].get(n) != found[1].get(n)]
        if not names:
            rows.append([name, UNKNOWN, UNKNOWN])
        elif not differing:
            equal.append(name)
        for n in differing:
            cells = [one_line(f.get(n, UNKNOWN if not f else ABSENT), WIDEST) for f in found]
            rows.append([f"{name}: {one_line(n, 80)}", *cells])
    lines = [table(rows, left=3)] if len(rows) > 1 else []
    return "\n".join([*lines, *([f"equal: {', '.join(equal)}"] if equal else [])])


def code_of(one: Side) -> dict[str, Any]:
    """The code of a run: rlrt's digest, other sources' digests, and the state of the checkout."""
    manifest = one.run.manifest
    changes = manifest.get("git_diff")
    facts = {"rlrt": short(part(one, "code")), "git commit": short(manifest.get("git_commit"))}
    if isinstance(changes, str):
        digest = hashlib.sha256(changes.encode("utf-8", "replace")).hexdigest()
        facts["uncommitted changes"] = f"{len(changes.splitlines())} lines, {digest[:DIGITS]}" if changes else "none"
    return facts | {key: short(digest) for key, digest in mapping(part(one, "sources")).items()}


def machine_of(one: Side) -> dict[str, Any]:
    """Where a run was computed, and by which paths."""
    manifest = one.run.manifest
    paths = {k: v for k, v in mapping(manifest.get("paths")).items() if not isinstance(v, (dict, list))}
    hardware = {k: written(v) for k, v in mapping(manifest.get("hardware")).items()}
    return {"host": manifest.get("host"), **hardware, "processes": manifest.get("processes"), **paths}


FACTS = {
    "code": code_of,
    "library": lambda one: {
        **mapping(one.run.manifest.get("versions")),
        **mapping(part(one, "versions")),
        "python": one.run.manifest.get("python"),
    },
    "model or data": lambda one: {key: short(digest) for key, digest in mapping(part(one, "contents")).items()},
    "machine": machine_of,
}
"""What a run was made of, beside its config: each gives facts by name, None for one that is not recorded."""


def short(digest: Any) -> str | None:
    """Return the beginning of a digest; None for what is none."""
    return one_line(digest[:DIGITS]) if isinstance(digest, str) else None


def finals(left: Side, right: Side) -> str:
    """Format the final metrics side by side, with their differences."""
    ours, theirs = (mapping(one.run.summary.get("final")) for one in (left, right))
    names = [n for n in dict.fromkeys([*ours, *theirs]) if any(is_value(m.get(n)) for m in (ours, theirs))]
    if not names:
        return "final metrics: none yet"
    rows = [["final metric", "left", "right", "right - left"]]
    for name in names:
        before, after = ours.get(name), theirs.get(name)
        gap = f"{after - before:+.4f}" if is_number(before) and is_number(after) else ABSENT
        rows.append([one_line(name, WIDEST), number(before), number(after), gap])
    return table(rows)


def is_value(found: Any) -> bool:
    """True for what a record holds as a metric: a number, or the text of one that is not finite."""
    return is_number(found) or found in NOT_FINITE


def number(found: Any) -> str:
    """Return a metric for a table."""
    if not is_number(found):
        return one_line(found, 20) if found in NOT_FINITE else ABSENT
    return f"{found:.4f}" if 1e-3 <= abs(found) < 1e5 or found == 0 else f"{found:.4g}"


def steps(left: Side, right: Side) -> str:
    """Say up to which step the records of both are equal to the bit, and what differs first; times are left out."""
    both = sorted({*left.steps} & {*right.steps})
    if not both:
        return "records: no step that both have"
    lines, alone = [], [one_only(*pair) for pair in ((left, right), (right, left))]
    first = next((s for s in both if unequal(left.steps[s], right.steps[s])), None)
    if first is None:
        lines.append(f"records: equal to the bit up to step {both[-1]}, in all that both record")
    else:
        before = [s for s in both if s < first]
        begun = f"equal to the bit up to step {before[-1]}; " if before else ""
        names = unequal(left.steps[first], right.steps[first])
        lines.append(
            f"records: {begun}step {first} is the first that differs, in {len(names)} metric{'s' * (len(names) > 1)}"
        )
        rows = [["metric", "left", "right"]]
        rows += [
            [one_line(n, WIDEST), *(json.dumps(one.steps[first][n]) for one in (left, right))] for n in names[:MOST]
        ]
        lines += [table(rows), *([f"({len(names) - MOST} more)"] if len(names) > MOST else [])]
    for name, (metrics, more) in zip(("left", "right"), alone, strict=True):
        if metrics:
            shown = ", ".join(one_line(m, WIDEST) for m in metrics[:MOST])
            rest = f" and {len(metrics) - MOST} more" if len(metrics) > MOST else ""
            lines.append(f"only {name} records: {shown}{rest}")
        if more:
            lines.append(f"only {name} has steps: {len(more)}, {more[0]} to {more[-1]}")
    return "\n".join(lines)


def unequal(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a step that two records have both, and not to the bit alike."""
    names = [n for n in left if n in right and not n.startswith(TIMING)]
    return [n for n in names if json.dumps(left[n]) != json.dumps(right[n])]


def one_only(one: Side, other: Side) -> tuple[list[str], list[int]]:
    """Return the metrics that one run records and the other never does, times left out, and the steps that it alone has."""
    names, others = ({n for record in s.steps.values() for n in record} for s in (one, other))
    metrics = sorted(n for n in names - others if not n.startswith(TIMING))
    return metrics, sorted({*one.steps} - {*other.steps})
