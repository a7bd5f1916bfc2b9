"""An HTML page of rollouts with every token coloured by a stored value, such as its weight or its advantage.

Text written by a model cannot run: the page has no script, a content security policy forbids scripts and requests, and every
text is escaped. Radio buttons and CSS select the value that colours the tokens.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from rlrt.records.files import mapping, whole
from rlrt.records.jsonlines import is_number
from rlrt.records.printable import one_line

VALUES = (
    ("gap", 0.0, "D = log P_student - log P_teacher, nats; warm: self-driven, cold: as the teacher would"),
    ("weight", 1.0, "token advantage / rollout advantage; warm: above 1, cold: below"),
    ("advantage", 0.0, "token advantage; warm: reinforced, cold: discouraged"),
    ("entropy", 0.0, "entropy of the policy, nats"),
)
"""Values that can colour the tokens: (name, value shown as white, legend)."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"
MOST_TOKENS = 20_000
"""Tokens of a rollout that a page shows."""
LONGEST_TEXT = 200_000
"""Characters of a text that a page shows."""
LISTED = 12
"""At most this many self-driven tokens are listed."""
LARGEST_VALUE = 1e30
"""A value of a token is smaller in size; a larger one is shown as none."""
WARM, COLD = (213, 94, 0), (0, 114, 178)
VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "\0": "␀"}
STYLE = """
.group{border:1px solid #ccc;border-radius:6px;padding:.6rem;margin:.8rem 0;background:#fff;color:#111}
.rollout{border-top:1px solid #ddd;margin-top:.6rem;padding-top:.4rem}
.group .tokens{font-family:ui-monospace,monospace;font-size:.86rem;line-height:1.9;overflow-wrap:anywhere;white-space:pre-wrap}
.group .tokens span{border-radius:3px;padding:1px 0;border:1px solid #ccc;border-left-color:#888}
.group .text{white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,monospace;font-size:.8rem;
background:#f6f6f6;padding:.4rem;margin:.3rem 0}
.group p{margin:.2rem 0;font-size:.85rem}
h1{font-size:1.3rem;overflow-wrap:anywhere}.cards input{margin-right:.2rem}
.cards label{margin-right:.5rem;white-space:nowrap;font-size:.85rem}
.cards .legend{display:none;font-size:.8rem;color:#444}
.group table{font-size:.8rem;border-collapse:collapse}.group td,.group th{padding:1px 8px;text-align:right}
"""


def number(value: Any) -> float | None:
    """Return a stored value as a number, or None if it is missing or not finite (NaN is stored as text)."""
    return float(value) if is_number(value) and abs(value) < LARGEST_VALUE else None


def colour(value: float | None, largest: float) -> str:
    """Return the colour of a value: white at 0, warm above, cold below; grey for None."""
    if value is None:
        return "#eeeeee"
    share = min(1.0, abs(value) / largest) if largest > 0 else 0.0
    end = WARM if value > 0 else COLD
    return "#" + "".join(f"{round(255 + (c - 255) * 0.75 * share):02x}" for c in end)


def visible(piece: str) -> str:
    """Return a token's text with visible white space and control characters, escaped.

    A space beside other characters stays one: a line breaks there, and the token's border shows it. ``·``: a token without a
    text of its own, such as the rest of a character that the token before shows whole.
    """
    shown = VISIBLE if not piece.strip(" ") else {c: mark for c, mark in VISIBLE.items() if c != " "}
    text = "".join(shown.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in piece)
    return html.escape(text or "·")


def values_of(row: Mapping[str, Any], name: str) -> list[float | None]:
    """Return a stored per-token value of a rollout; [] if it was not stored."""
    values = mapping(row.get("tokens")).get(name)
    return [number(v) for v in values[:MOST_TOKENS]] if isinstance(values, list) else []


def pieces_of(row: Mapping[str, Any]) -> list[str]:
    """Return a rollout's tokens as texts, or as their ids if they were stored without texts."""
    pieces, ids = row.get("pieces"), row.get("token_ids")
    if isinstance(pieces, list) and pieces:
        return [str(p)[:LONGEST_TEXT] for p in pieces[:MOST_TOKENS]]
    return [one_line(f"[{i}]", 40) for i in ids[:MOST_TOKENS]] if isinstance(ids, list) else []


def text_of(value: Any) -> str:
    """Return a stored text for a page, escaped."""
    return html.escape(str(value)[:LONGEST_TEXT].replace("\0", "␀").encode("utf-8", "replace").decode())


def stored_values(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, str, float]]:
    """Return the values that some rollout has: (name, value shown as white, legend, largest distance from white), so that one
    colour is one value on all of them."""
    found = []
    for name, white, text in VALUES:
        values = [abs(v - white) for row in rows for v in values_of(row, name) if v is not None]
        if values:
            found.append((name, white, text, max(values)))
    return found


def cards(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Format stored rollouts: a card for each group, and one choice of the value that colours them all, on one scale.

    Args:
        rows: lines of ``samples.jsonl``.
        key: unique name on the page, for the radio buttons.
    """
    stored = stored_values(rows)
    first = next((name for name, _, _, scale in stored if scale > 0), stored[0][0] if stored else "")
    radios, legends, rules = [], [], []
    for name, white, text, scale in stored:
        mark = f"{key}-{name}"
        checked = " checked" if name == first else ""
        radios.append(f'<input type="radio" name="{key}" id="{mark}"{checked}><label for="{mark}">{name}</label>')
        legends.append(
            f'<p class="legend l-{name}">{html.escape(text)}; darkest: {white:g} ± {scale:.3g}, grey: none</p>'
        )
        rules.append(
            f"#{mark}:checked~.group .tokens span{{background:var(--{name})}}#{mark}:checked~.l-{name}{{display:block}}"
        )
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((whole(row.get("step")), str(row.get("prompt_id", row.get("prompt")))), []).append(row)
    body = "".join(
        f'<div class="group">{question(group[0])}{"".join(rollout_html(row, stored) for row in group)}</div>'
        for group in groups.values()
    )
    return f'<div class="cards"><style>{"".join(rules)}</style>{"".join(radios)}{"".join(legends)}{body}</div>'


def rollout_html(row: Mapping[str, Any], stored: Sequence[tuple[str, float, str, float]]) -> str:
    """Format one stored rollout.

    Args:
        row: a line of ``samples.jsonl``.
        stored: ``stored_values`` of all rollouts beside it.
    """
    pieces = pieces_of(row)
    columns = [(name, white, scale, values_of(row, name)) for name, white, _, scale in stored]
    spans = []
    for t, piece in enumerate(pieces):
        marks = [(n, white, scale, values[t] if t < len(values) else None) for n, white, scale, values in columns]
        style = ";".join(f"--{n}:{colour(None if v is None else v - white, scale)}" for n, white, scale, v in marks)
        title = ", ".join(f"{n} {v:.3g}" for n, _, _, v in marks if v is not None)
        line_break = "<br>" if piece.endswith("\n") else ""
        spans.append(f'<span style="{style}" title="{html.escape(title)}">{visible(piece)}</span>{line_break}')
    return (
        f'<div class="rollout">{heading(row)}<div class="tokens">{"".join(spans)}</div>'
        f"{self_driven(row, pieces)}{context(row)}</div>"
    )


def question(row: Mapping[str, Any]) -> str:
    """Format what the rollouts of a group share: the problem, the expected answer, the prompt as it was sent."""
    title = f"<strong>step {whole(row.get('step'))}</strong>"
    parts = [f'{title}<div class="text">{text_of(row.get("prompt", ""))}</div>']
    if isinstance(row.get("expected"), str):
        parts.append(f"<p>expected: <code>{text_of(row['expected'])}</code></p>")
    if isinstance(row.get("asked"), str):
        asked = text_of(row["asked"])
        parts.append(f'<details><summary>the prompt as it was sent</summary><div class="text">{asked}</div></details>')
    return "".join(parts)


def heading(row: Mapping[str, Any]) -> str:
    """Format a rollout's sample, verdict, reward, and the answer that was read in it."""
    verdict = "correct" if row.get("correct") else "truncated" if row.get("truncated") else "wrong"
    reward = number(row.get("reward"))
    scored = "-" if reward is None else f"{reward:.3g}"
    title = f"<strong>sample {whole(row.get('sample'))}: {verdict}, reward {scored}</strong>"
    read = row.get("extracted")
    if not isinstance(read, str):
        return title
    if not read.strip():
        return f"{title}; no answer was found in it"
    same = read.strip() == str(row.get("response", "")).strip()
    return f"{title}; read: " + ("the whole response" if same else f"<code>{text_of(read)}</code>")


def context(row: Mapping[str, Any]) -> str:
    """Format the teacher context of a rollout."""
    teacher_context = row.get("context")
    if not isinstance(teacher_context, str):
        return '<p class="none">no teacher</p>'
    text = text_of(teacher_context)
    return f'<details><summary>the teacher was shown</summary><div class="text">{text}</div></details>'


def self_driven(row: Mapping[str, Any], pieces: Sequence[str]) -> str:
    """List the tokens with the largest D, where the student is most at odds with the teacher."""
    gaps = [(v, t) for t, v in enumerate(values_of(row, "gap")) if v is not None and v > 0 and t < len(pieces)]
    if not gaps:
        return ""
    best = sorted(gaps, key=lambda g: (-g[0], g[1]))[:LISTED]
    cells = "".join(f"<tr><td>{t}</td><td>{visible(pieces[t])}</td><td>{v:.3f}</td></tr>" for v, t in best)
    return (
        "<details><summary>most self-driven tokens</summary><table><tr><th>position</th><th>token</th><th>D, nats</th></tr>"
        f"{cells}</table></details>"
    )


def page(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Build a self-contained page of rollouts."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>body{{font-family:system-ui,sans-serif;margin:1rem auto;max-width:70rem;"
        f"padding:0 .6rem}}{STYLE}</style></head><body><h1>{html.escape(title)}</h1>{cards(rows, 'r')}</body></html>\n"
    )
