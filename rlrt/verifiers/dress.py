r"""The dress of an answer: ways to write one thing that mean the same, brought to one spelling.

``√3``, ``\sqrt 3`` and ``$\sqrt{3}$`` become ``\sqrt{3}``. What is left is LaTeX without math delimiters, without spacing and
font commands, and without the full stop of the sentence. Words stay inside ``\text{...}`` or as they are. Nothing here decides
whether two answers are equal.
"""

from __future__ import annotations

import re

LONGEST = 2_000
"""Characters of the longest answer that is brought to one spelling; a longer one is compared as it is."""
DOLLAR = "\ue000"
"""Stands for a dollar sign that is money, not a math delimiter."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₋₊", "0123456789-+")
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "λ": "lambda", "μ": "mu", "π": "pi",
    "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "ω": "omega", "Δ": "Delta", "Ω": "Omega", "Σ": "Sigma",
}  # fmt: skip
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‒": "-", "―": "-", "﹣": "-", "‐": "-", "‑": "-", "×": " \\times ", "✕": " \\times ",
    "·": " \\cdot ", "⋅": " \\cdot ", "∙": " \\cdot ", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "∞": " \\infty ",
    "≤": " \\le ", "⩽": " \\le ", "≥": " \\ge ", "⩾": " \\ge ", "≠": " \\ne ", "≈": " \\approx ", "±": " \\pm ",
    "∪": " \\cup ", "∩": " \\cap ", "∅": " \\emptyset ", "∈": " \\in ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}",
    "°": "^{\\circ}", "º": "^{\\circ}", "“": '"', "”": '"', "„": '"', "’": "'", "‘": "'", "′": "'", "⟨": "\\langle ",
    "⟩": "\\rangle ", "∶": ":", "、": ",", "。": ".", "…": "\\ldots ", "\u200b": "", "\u2060": "", "\ufeff": "",
    "\u200e": "", "½": " \\frac{1}{2}", "⅓": " \\frac{1}{3}", "⅔": " \\frac{2}{3}", "¼": " \\frac{1}{4}",
    "¾": " \\frac{3}{4}", "⅕": " \\frac{1}{5}", "⅖": " \\frac{2}{5}", "⅗": " \\frac{3}{5}", "⅘": " \\frac{4}{5}",
    "⅙": " \\frac{1}{6}", "⅚": " \\frac{5}{6}", "⅛": " \\frac{1}{8}", "⅜": " \\frac{3}{8}", "⅝": " \\frac{5}{8}",
    "⅞": " \\frac{7}{8}",
}  # fmt: skip
_CHARACTERS = str.maketrans(
    {chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)}
    | {sign: f"\\{name} " for sign, name in _GREEK.items()}
    | _SIGNS
)
_ROOT = re.compile(r"√ ?(?:(\d+(?:\.\d+)?|[a-zA-Z])|\(([^()]*)\)|(?=\{))")
_UNWRAPPED = re.compile(
    r"\\(?:mathbf|mathit|boldsymbol|bm|pmb|mathnormal|displaystyle|bold|ensuremath|boxed|fbox|framebox|bf|it) ?\{([^{}]*)\}"
)
_IN_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|sc|sl)?|mathrm|mathsf|mathtt|mbox|hbox|emph|underline|operatorname\*?) ?"
    r"\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_REMOVED = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?"
    r"|\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it|normalsize|large|Large|small)(?![a-zA-Z])\s*"
)
_SPACES = re.compile(
    r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z])|thinspace(?![a-zA-Z])|enspace(?![a-zA-Z])|hspace\*?\{[^{}]*\})|~|\s+"
)
_RENAMED = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:leqslant|leq|le)(?![a-zA-Z])|<="), r" \\le "),
    (re.compile(r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|>="), r" \\ge "),
    (re.compile(r"\\(?:neq|ne)(?![a-zA-Z])|!="), r" \\ne "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\lbrack(?![a-zA-Z])"), "["),
    (re.compile(r"\\rbrack(?![a-zA-Z])"), "]"),
    (re.compile(r"\\(?:varnothing|O)(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\\(?:degree|circ)(?![a-zA-Z])(?<!\^\\circ)(?<!\^\{\\circ)(?<!\^ \\circ)"), r"^{\\circ}"),
    (re.compile(r"\^ ?\\circ(?![a-zA-Z])"), r"^{\\circ}"),
    (re.compile(r"\\(?:Reals|R)(?![a-zA-Z])"), r"\\mathbb{R}"),
    (re.compile(r"\\(?:ast)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\(?:dots|cdots|ldots|dotsc)(?![a-zA-Z])|\.{3,}"), r"\\ldots "),
    (re.compile(r"\\[Cc]olor ?\{[^{}]*\}"), ""),
    (re.compile(r"\\textcolor ?\{[^{}]*\}"), ""),
    (re.compile(r"\*\*(?=[\w({\\-])(?<=[\w)}]\*\*)"), "^"),
    (re.compile(r"(?<=\d)\{,\}(?=\d)"), ","),
    (re.compile(r"\\\\ ?\[ ?-?[\d.]+ ?(?:pt|em|ex|mm|cm|in)\]"), r"\\\\"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\#"), "#"),
    (re.compile(r"\\(?:&|_)(?=\s)"), " "),
)
FUNCTIONS = tuple(
    """
    arcsin arccos arctan arcsec arccsc arccot sinh cosh tanh sin cos tan sec csc cot ln log exp lim max min gcd lcm det
    """.split()  # noqa: SIM905
)
"""Names of functions that are mathematics also without a backslash."""
_BARE = re.compile(rf"(?<![A-Za-z\\])(?P<name>pi|sqrt|(?:{'|'.join(FUNCTIONS)})(?=[ _^]?[\w(\\{{]))(?![A-Za-z])")
_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:infinity|Infinity|inf|oo)(?![A-Za-z])")
_TEXT = re.compile(r"(\\text\{[^{}]*\})")
_LABEL = re.compile(
    r"\A(?:\\text\{)?\W{0,2}(?:the )?(?:final |correct )?(?:(?:answer|ans\.?|result)(?: is)? ?[:=]|answer is)"
    r" ?(?:\} ?)?",
    re.IGNORECASE,
)
_PAIRS = (("**", "**"), ("__", "__"), ("*", "*"), ("`", "`"), ('"', '"'), ("'", "'"), ("``", "''"))


def undressed(answer: str) -> str:
    """Return an answer in the one spelling; longer answers than ``LONGEST`` only lose white space at the ends."""
    if len(answer) > LONGEST:
        return answer.strip()
    text = without_delimiters(re.sub(r"(?<=,)\\! *(?=\d{3})|\\!", "", answer).replace("\\$", DOLLAR))
    text = _ROOT.sub(lambda m: f"\\sqrt{{{m[1] or m[2]}}}" if m[1] or m[2] else "\\sqrt", text)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉₋₊]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = text.translate(_CHARACTERS)
    for pattern, spelling in _RENAMED:
        text = pattern.sub(spelling, text)
    text = _REMOVED.sub("", text)
    text = unwrapped(text)
    text = _SPACES.sub(" ", text)
    text = in_text(text)
    text = rooted("".join(part if part.startswith("\\text{") else named(part) for part in _TEXT.split(text)))
    text = re.sub(r"\b([aApP])\. ?([mM])\b\.?", r"\1\2", text)
    text = re.sub(r"(?<=:\d\d) ?([aApP][mM])\b", lambda m: f" {m[1].lower()}", text)
    return bare(re.sub(r" +", " ", text).strip())


def without_delimiters(text: str) -> str:
    r"""Remove ``$``, ``\(``, ``\[`` and an alignment's frame; a ``$`` that is money becomes ``DOLLAR``."""
    text = re.sub(r"(?<!\\)\\[()]", " ", text)
    text = re.sub(r"(?<!\\)\\[\[\]]", " ", text)
    text = re.sub(r"\\(?:begin|end) ?\{(?:align|aligned|equation|gather|gathered)\*?\}|&(?==)", " ", text)
    count = text.count("$")
    if not count:
        return text
    if count % 2 == 0 and not re.search(r"(?:\A|[\s,(])\$\s?\d[^$]*[\s,(-]\$\s?\d", text):
        return text.replace("$", " ")
    return re.sub(r"\$(?=[\s-]?[\d.])", DOLLAR, text).replace("$", " ")


def unwrapped(text: str) -> str:
    """Remove font commands and inner boxes around mathematics."""
    for _ in range(4):
        shorter = _UNWRAPPED.sub(r"{\1}", text)
        if shorter == text:
            break
        text = shorter
    return text


def in_text(text: str) -> str:
    r"""Write all text commands as ``\text{...}``; a number, a sign or a constant in one is mathematics and loses it."""

    def one(match: re.Match[str]) -> str:
        inside = match[1].strip()
        if not re.search(r"[^\W\d_]", inside) or "\\" in inside or re.match(r"[\d.,$%\ue000-]+", inside):
            return f" {inside} "
        if re.fullmatch(r"[A-Z](?:(?:, ?| and | or )[A-Z])+", inside):
            return inside
        if inside in ("e", "i", "d", *FUNCTIONS) and "mathrm" in match[0] + "operatorname":
            return inside if len(inside) == 1 else f"\\{inside} "
        return f"\\text{{{inside}}}"

    for _ in range(3):
        changed = _IN_TEXT.sub(one, text)
        if changed == text:
            break
        text = changed
    return text


def named(text: str) -> str:
    """Put the backslash before functions and constants that were written without it."""
    return _INFINITY.sub(r"\\infty ", _BARE.sub(r"\\\g<name> ", text))


def rooted(text: str) -> str:
    r"""Write ``\sqrt (x)`` and ``\sqrt 3`` as ``\sqrt{x}`` and ``\sqrt{3}``, ``\frac12`` as ``\frac{1}{2}``."""
    text = re.sub(r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt ?(\d|[a-zA-Z])(?!\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt (\d+)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac ?(\d) ?(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac ?(\{[^{}]*\}) ?(\d)(?!\d)", r"\\frac\1{\2}", text)
    return re.sub(r"\\frac ?(\d) ?(\{)", r"\\frac{\1}\2", text)


def bare(text: str) -> str:
    """Remove a label (``Answer:``), marks around the whole, and the sentence's full stop."""
    for _ in range(6):
        before = text
        text = _LABEL.sub("", text, count=1).strip() if _LABEL.match(text) else text
        text = re.sub(r"(?:(?<!\\ldots)(?<!\.)\.|[,;:]|\\\\)\Z", "", text).strip()
        for opener, closer in _PAIRS:
            if len(text) > len(opener) + len(closer) and text.startswith(opener) and text.endswith(closer):
                inside = text[len(opener) : -len(closer)]
                text = text if opener in inside else inside.strip()
        text = re.sub(r"\A(?:=|\\approx) ?", "", text)
        if text.startswith("{") and closes(text, 0) == len(text) - 1:
            text = text[1:-1].strip()
        if text == before:
            break
    return text


def closes(text: str, start: int) -> int:
    """Return the place of the bracket that closes the one at ``start``; -1 if none does. Any closing kind counts."""
    depth, i = 0, start
    while i < len(text):
        if text[i] == "\\" and i + 1 < len(text):
            i += 1
            if text[i] in "{}":
                depth += 1 if text[i] == "{" else -1
        elif text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
        if depth == 0 and i > start:
            return i
        i += 1
    return -1


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split a text at a separator outside all brackets and braces."""
    parts, depth, begin, i = [], 0, 0, 0
    while i < len(text):
        match = separator.match(text, i) if depth == 0 else None
        if match is not None and match.end() > i:
            parts.append(text[begin:i].strip())
            begin = i = match.end()
            continue
        step = 2 if text[i] == "\\" and text[i + 1 : i + 2] in ("{", "}") else 1
        sign = text[i + step - 1]
        depth += 1 if sign in "([{" else -1 if sign in ")]}" else 0
        if depth < 0:
            return [text]
        i += step
    return [*parts, text[begin:].strip()] if depth == 0 else [text]
