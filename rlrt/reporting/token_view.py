"""An HTML page of rollouts with every token coloured by a stored value, such as its weight or its advantage.

Text written by a model cannot run: the page has no script, a content security policy forbids scripts and requests, and every
text is escaped. Radio buttons and CSS select the value that colours the tokens, and a box puts what the teacher was shown
beside them. Real text is long: a token has a class for each value's level, not colours of its own, and a browser lays out only
those blocks of tokens that are seen (it finds words in all of them).
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Container, Mapping, Sequence
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
MOST_TOKENS = 40_000
"""Tokens of a rollout that a page shows."""
MOST_ON_PAGE = 200_000
"""Tokens of a page; the rollouts after these are shown without theirs."""
LEVELS = 16
"""Shades of a colour."""
BLOCK = 400
"""Tokens that a browser lays out together, or up to the next line break after them."""
STRETCH = 24
"""Tokens of the most self-driven stretch; a response has one if it is four times as long."""
LONGEST_TEXT = 200_000
"""Characters of a text that a page shows."""
LISTED = 12
"""At most this many self-driven tokens are listed."""
LARGEST_VALUE = 1e30
"""A value of a token is smaller in size; a larger one is shown as none."""
WARM, COLD = (213, 94, 0), (0, 114, 178)
LETTERS = "abcd"
"""A letter for each of ``VALUES`` that is stored, for the classes of its shades."""
VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "\0": "␀"}
STYLE = """
.group{border:1px solid #ccc;border-radius:6px;padding:.6rem;margin:.8rem 0;background:#fff;color:#111}
.rollout{border-top:1px solid #ddd;margin-top:.6rem;padding-top:.4rem}
.group .tokens{font-family:ui-monospace,monospace;font-size:.86rem;line-height:1.9;overflow-wrap:anywhere;white-space:pre-wrap}
.group .tokens{overflow-x:clip}.group .tokens i{font-style:normal;border-radius:3px;padding:1px 0;border-left:1px solid #999}
.group .tokens i.peak{border-bottom:3px solid #111}.group .tokens i:target{outline:3px solid #000}
.block{content-visibility:auto;contain-intrinsic-size:auto 40rem}
.beside .shown{display:none}
.cards>.both:checked~.group .beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:.6rem}
.cards>.both:checked~.group .shown{display:block}
.group .text{white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,monospace;font-size:.8rem;
background:#f6f6f6;padding:.4rem;margin:.3rem 0}
.group p{margin:.2rem 0;font-size:.85rem}
h1{font-size:1.3rem;overflow-wrap:anywhere}.cards>input{margin-right:.2rem}
.cards label{margin-right:.5rem;white-space:nowrap;font-size:.85rem}
.cards .legend{display:none;font-size:.8rem;color:#444}
.group table{font-size:.8rem;border-collapse:collapse}.group td,.group th{padding:1px 8px;text-align:right}
"""


def number(value: Any) -> float | None:
    """Return a stored value as a number, or None if it is missing or not finite (NaN is stored as text)."""
    return float(value) if is_number(value) and abs(value) < LARGEST_VALUE else None


def level(value: float | None, largest: float) -> int | None:
    """Return the shade of a value, from -LEVELS to LEVELS; 0, which is white, only for values near 0; None for None."""
    if value is None:
        return None
    return round(LEVELS * max(-1.0, min(1.0, value / largest))) if largest > 0 else 0


def colour(shade: int | None) -> str:
    """Return the colour of a shade: white at 0, warm above, cold below; grey for None."""
    if shade is None:
        return "#eeeeee"
    end = WARM if shade > 0 else COLD
    return "#" + "".join(f"{round(255 + (c - 255) * 0.75 * abs(shade) / LEVELS):02x}" for c in end)


def mark_of(letter: str, shade: int | None) -> str:
    """Return the class of tokens of a shade, for the value that ``letter`` stands for."""
    return f"{letter}x" if shade is None else f"{letter}{shade + LEVELS}"


def visible(piece: str) -> str:
    """Return a token's text with visible white space and control characters, escaped.

    A space beside other characters stays one: a line breaks there, and the token's border shows it. ``·``: a token without a
    text of its own, such as the rest of a character that the token before shows whole.
    """
    shown = VISIBLE if not piece.strip(" ") else {c: mark for c, mark in VISIBLE.items() if c != " "}
    text = "".join(shown.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in piece)
    return html.escape(text or "·").replace("⏎", "⏎<br>")


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
        key: unique name on the page, for the choices and the jumps.
    """
    stored = stored_values(rows)
    first = next((name for name, _, _, scale in stored if scale > 0), stored[0][0] if stored else "")
    choices, legends, rules = [], [], []
    for letter, (name, white, text, scale) in zip(LETTERS, stored, strict=False):
        mark = f"{key}-{name}"
        checked = " checked" if name == first else ""
        choices.append(f'<input type="radio" name="{key}" id="{mark}"{checked}><label for="{mark}">{name}</label>')
        legends.append(
            f'<p class="legend l-{name}">{html.escape(text)}; darkest: {white:g} ± {scale:.3g}, grey: none</p>'
        )
        rules.append(f"#{mark}:checked~.l-{name}{{display:block}}")
        rules += [
            f"#{mark}:checked~.group .{mark_of(letter, shade)}{{background:{colour(shade)}}}"
            for shade in (None, *range(-LEVELS, LEVELS + 1))
        ]
    if any(isinstance(row.get("context"), str) for row in rows):
        choices.append(f'<input type="checkbox" class="both" id="{key}-both">')
        choices.append(f'<label for="{key}-both">beside what the teacher was shown</label>')
    groups: dict[tuple[int, str], list[str]] = {}
    left = MOST_ON_PAGE
    for number_of_row, row in enumerate(rows):
        pieces = pieces_of(row)
        left -= len(pieces)
        where = (whole(row.get("step")), str(row.get("prompt_id", row.get("prompt"))))
        rollout = rollout_html(row, pieces if left >= 0 else None, stored, f"{key}-{number_of_row}")
        groups.setdefault(where, [question(row)]).append(rollout)
    body = "".join(f'<div class="group">{"".join(parts)}</div>' for parts in groups.values())
    return f'<div class="cards"><style>{"".join(rules)}</style>{"".join(choices)}{"".join(legends)}{body}</div>'


def rollout_html(
    row: Mapping[str, Any], pieces: Sequence[str] | None, stored: Sequence[tuple[str, float, str, float]], key: str
) -> str:
    """Format one stored rollout.

    Args:
        row: a line of ``samples.jsonl``.
        pieces: its tokens' texts; None: there is no room for them on the page.
        stored: ``stored_values`` of all rollouts beside it.
        key: unique name on the page.
    """
    if pieces is None:
        text = f'<div class="text">{text_of(row.get("response", ""))}</div>'
        note = '<p class="none">The page is full; the tokens are in samples.jsonl.</p>'
        return f'<div class="rollout">{heading(row)}{note}{text}{context(row)}</div>'
    gaps = [(v, t) for t, v in enumerate(values_of(row, "gap")) if v is not None and v > 0 and t < len(pieces)]
    best = sorted(gaps, key=lambda g: (-g[0], g[1]))[:LISTED]
    begin, end = stretch(values_of(row, "gap")[: len(pieces)])
    spans = tokens_html(row, pieces, stored, key, {t for _, t in best} | set(range(begin, end)[:1]), range(begin, end))
    shown = row.get("context")
    aside = f'<div class="text shown">{text_of(shown)}</div>' if isinstance(shown, str) else ""
    listed = self_driven(best, pieces, key)
    jump = f"tokens {begin} to {end - 1}: <a href='#{key}-{begin}'>the most self-driven stretch</a>"
    return (
        f'<div class="rollout">{heading(row)}{f"<p>{jump}</p>" if end > begin else ""}'
        f'<div class="beside"><div class="tokens">{spans}</div>{aside}</div>{listed}{context(row)}</div>'
    )


def tokens_html(
    row: Mapping[str, Any],
    pieces: Sequence[str],
    stored: Sequence[tuple[str, float, str, float]],
    key: str,
    targets: Container[int],
    peak: Container[int],
) -> str:
    """Format tokens, in blocks; ``targets`` can be jumped to, and ``peak`` is underlined."""
    columns = [
        (letter, name, white, scale, values_of(row, name))
        for letter, (name, white, _, scale) in zip(LETTERS, stored, strict=False)
    ]
    blocks: list[list[str]] = [[]]
    for t, piece in enumerate(pieces):
        values = [(letter, n, white, scale, v[t] if t < len(v) else None) for letter, n, white, scale, v in columns]
        classes = [mark_of(a, level(None if v is None else v - white, scale)) for a, _, white, scale, v in values]
        if t in peak:
            classes.append("peak")
        title = ", ".join(f"{n} {v:.3g}" for _, n, _, _, v in values if v is not None)
        target = f' id="{key}-{t}"' if t in targets else ""
        if len(blocks[-1]) >= BLOCK and (len(blocks[-1]) >= 2 * BLOCK or pieces[t - 1].endswith("\n")):
            blocks.append([])
        blocks[-1].append(
            f'<i class="{" ".join(classes)}"{target} title="{t}: {html.escape(title)}">{visible(piece)}</i>'
        )
    if len(blocks) == 1:
        return "".join(blocks[0])
    return "".join(f'<div class="block">{"".join(block)}</div>' for block in blocks)


def stretch(gaps: Sequence[float | None]) -> tuple[int, int]:
    """Return where the ``STRETCH`` neighbouring tokens with the largest sum of D begin and end; (0, 0) for a short response, or
    without a positive sum. A token without D counts as 0."""
    values = [gap or 0.0 for gap in gaps]
    if len(values) < 4 * STRETCH:
        return 0, 0
    sums = [0.0, *itertools.accumulate(values)]
    best, begin = max((sums[t + STRETCH] - sums[t], -t) for t in range(len(values) - STRETCH + 1))
    return (-begin, -begin + STRETCH) if best > 0 else (0, 0)


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


def self_driven(best: Sequence[tuple[float, int]], pieces: Sequence[str], key: str) -> str:
    """List the tokens with the largest D, where the student is most at odds with the teacher; each leads to its place."""
    if not best:
        return ""
    cells = "".join(
        f"<tr><td><a href='#{key}-{t}'>{t}</a></td><td>{visible(pieces[t])}</td><td>{v:.3f}</td></tr>" for v, t in best
    )
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
