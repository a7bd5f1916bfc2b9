"""Models, prompts and tasks side by side: a table, and a self-contained page with samples to read."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlrt.records.printable import one_line
from rlrt.reporting.page import document
from rlrt.reporting.tables import Table
from rlrt.reporting.token_view import text_of

WIDEST = 32
"""Characters of a value in the table; the page shows it whole above the cell's samples."""
RIGHT = 0.05
"""Smallest avg@k of a model with room to learn: what is never right cannot be reinforced."""
SPREAD = 2.0
"""Times avg@k that pass@k is at least then: of the samples of a prompt some are right, and most are not yet."""
OWN = "heldout"
"""Suite of a data set's own held-out problems, which needs no name."""
NOTES = (
    "avg@k: share of right samples; pass@k: share of problems with a right one among k; 95 %: interval over problems. mixed: "
    "share of problems with right and wrong samples, which alone teach a method that compares the samples of a prompt. cut: "
    "share of samples that met engine.max_new_tokens; they count as wrong unless engine.grade_truncated. errors: share that "
    "the verifier could not judge. tokens: mean length."
)


@dataclass
class Cell:
    """One combination of model, prompt and task.

    Attributes:
        values: what was typed for it and not for all others, by key.
        samples: k.
        folder: of its evaluation.
        results: the figures of every suite, as ``rlrt.evaluate`` has them; empty before it was measured.
        texts: samples to read.
        error: why it could not be measured.
        crashed: by an error that is not the user's.
    """

    values: Mapping[str, str]
    samples: int
    folder: str
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    texts: Sequence[Mapping[str, Any]] = ()
    error: str = ""
    crashed: bool = False


def has_room(cell: Cell, figures: Mapping[str, Any]) -> bool:
    """True if a model has room to learn on a suite: avg@k of ``RIGHT`` or more, pass@k at least ``SPREAD`` times as large."""
    average, best = figures[f"avg_at_{cell.samples}"][0], figures["pass_at"][cell.samples][0]
    return bool(average >= RIGHT and best >= SPREAD * average)


def table_of(cells: Sequence[Cell]) -> Table:
    """Return a row for every suite of every cell; a cell without results has its reason instead."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.values))
    suites = {name for cell in cells for name in cell.results}
    named = ["suite"] if suites - {OWN} else []
    ks = {cell.samples for cell in cells}
    k = f"@{ks.pop()}" if len(ks) == 1 else "@k"
    figures = ["problems", "greedy", f"avg{k}", "95 %", f"pass{k}", "95 %", "mixed", "tokens", "cut", "errors", "room"]
    rows = []
    for number, cell in enumerate(cells, 1):
        begin = [str(number), *(clipped(cell.values.get(key, "")) for key in keys)]
        if not cell.results:
            rows.append([*begin, *["-"] * len(named), "failed" if cell.error else "-", *["-"] * (len(figures) - 1)])
        rows += [[*begin, *[name] * len(named), *figures_of(cell, measured)] for name, measured in cell.results.items()]
    return Table(["cell", *keys, *named, *figures], rows)


def clipped(value: str) -> str:
    """Return a value on one line, without its middle where it is long: paths differ at their ends, and prompts at either."""
    line = one_line(value)
    return line if len(line) <= WIDEST else f"{line[: WIDEST // 2]}...{line[-WIDEST // 2 :]}"


def figures_of(cell: Cell, m: Mapping[str, Any]) -> list[str]:
    """Format the figures of one suite."""
    texts = [str(m["problems"]), f"{m['greedy'][0]:.3f}"]
    for value, low, high in (m[f"avg_at_{cell.samples}"], m["pass_at"][cell.samples]):
        texts += [f"{value:.3f}", f"{low:.3f}-{high:.3f}"]
    shares = (m["mixed_share"], m["truncated_share"], m["verifier_error_share"])
    mixed, cut, errors = (f"{share:.3f}" for share in shares)
    return [*texts, mixed, f"{m['length_mean']:.0f}", cut, errors, "yes" if has_room(cell, m) else "no"]


def verdict(cells: Sequence[Cell]) -> str:
    """Say where there is room to learn, or what to try where there is none."""
    numbers = [n for n, cell in enumerate(cells, 1) if any(has_room(cell, m) for m in cell.results.values())]
    rule = f"avg@k of {RIGHT:g} or more, and pass@k at least {SPREAD:g} times that"
    if numbers:
        return f"room to learn ({rule}): cell {', '.join(map(str, numbers))}"
    measured = [m for cell in cells for m in cell.results.values()]
    if not measured:
        return "no cell was measured"
    cut = [m for m in measured if m["truncated_share"] > 0.5]
    remedy = (
        "samples are cut: raise engine.max_new_tokens, or set model.stop_tokens"
        if len(cut) == len(measured)
        else "try worked examples before the question (model.examples) or another model.prompt_template, and an easier or a "
        "harder task"
    )
    return f"no cell has room to learn ({rule}); {remedy}"


def verdict_of(text: Mapping[str, Any]) -> str:
    """Say in words how a stored sample was judged."""
    word = "verifier failed" if text.get("error") else "right" if text.get("correct") else "wrong"
    return f"{word}, cut off" if text.get("truncated") else word


def page(title: str, command: str, cells: Sequence[Cell]) -> str:
    """Build the self-contained page: the table, and the samples of every cell; all text is escaped."""
    parts = [f"<h1>{html.escape(one_line(title))}</h1>", f"<pre class='command'>{text_of(command)}</pre>"]
    parts += [
        table_of(cells).html(),
        f"<p>{html.escape(verdict(cells))}</p>",
        f"<p class='note'>{html.escape(NOTES)}</p>",
    ]
    parts += [cell_html(number, cell) for number, cell in enumerate(cells, 1)]
    return document(one_line(title), "".join(parts))


def cell_html(number: int, cell: Cell) -> str:
    """Format one cell: what was typed for it, and its samples, prompt by prompt."""
    typed = "\n".join(f"{key}={value}" for key, value in cell.values.items())
    parts = [f"<h2>Cell {number}</h2>", f"<pre>{text_of(typed)}</pre>" if typed else ""]
    if cell.error:
        parts.append(f"<p class='bad'>{text_of(cell.error)}</p>")
    problems: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for text in cell.texts:
        problems.setdefault((str(text.get("suite")), str(text.get("prompt_id"))), []).append(text)
    parts += [problem_html(texts) for texts in problems.values()]
    return "".join([*parts, f"<p class='note'>every problem: {text_of(cell.folder)}</p>"])


def problem_html(texts: Sequence[Mapping[str, Any]]) -> str:
    """Format the samples of one problem: the prompt as it was sent, the expected answer, the responses and their verdicts."""
    expected = texts[0].get("expected")
    told = "" if expected is None else f"<p class='note'>expected: <code>{text_of(expected)}</code></p>"
    sent = f"<p class='note'>prompt:</p><div class='text sent'>{text_of(texts[0].get('prompt'))}</div>{told}"
    return f"<div class='rollout'>{sent}{''.join(map(response_html, texts))}</div>"


def response_html(text: Mapping[str, Any]) -> str:
    """Format one response, its verdict and its length."""
    look, response = "note" if text.get("correct") else "note bad", str(text.get("response"))
    shown = text_of(response) if response.strip() else "<em>no text</em>"
    return f"<p class='{look}'>{verdict_of(text)}; tokens: {text_of(text.get('length'))}</p><div class='text'>{shown}</div>"
