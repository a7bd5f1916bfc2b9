"""What an answer is: a number, a choice, words, a list, a tuple, a set, an interval, a matrix, or an expression.

``form_of`` reads an answer once; ``rlrt.verifiers.equality`` compares two forms. A form that is not known is an expression,
which math-verify compares.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace

from rlrt.verifiers.dress import FUNCTIONS, closes, split_top, undressed
from rlrt.verifiers.numerals import Number, number_of
from rlrt.verifiers.units import is_product, peeled

DEEPEST = 6
"""Brackets within brackets that are taken apart; what is deeper is one expression."""
LONGEST_LIST = 40
"""Members of the longest list that is compared member by member."""
REMEMBERED = 20_000
"""Answers whose form is cached: the expected ones come again and again."""


@dataclass(frozen=True)
class Form:
    """An answer, read.

    Attributes:
        text: it, undressed; two forms of one text are equal.
        kind: ``number``, ``words``, ``choice``, ``expression``, ``matrix`` and other environments, ``row``, ``union``,
            ``list``, ``set``, or the two brackets of a tuple or interval: ``()``, ``[]``, ``(]``, ``[)``, ``<>``.
        number: the value of a ``number``.
        words: of ``words``: in lower case, without punctuation.
        label: of ``choice``: its letter. ``members`` then has what stands behind it, or nothing.
        members: of everything that has parts.
        unit: of a value with a unit.
        name: of a value that is given to a name: ``x = 5``, ``x > 2``.
        value: of a number or expression: its text without unit and name.
    """

    text: str
    kind: str
    value: str = ""
    number: Number | None = None
    words: tuple[str, ...] = ()
    label: str = ""
    members: tuple[Form, ...] = ()
    unit: str = ""
    name: str = ""


_SEPARATOR = re.compile(
    r" ?[,;] ?(?:\\text\{ ?(?:and|or) ?\}|(?:and|or)\b(?! ?\\))? ?| ?\\text\{ ?(?:and|or) ?\} ?| (?:and|or) | ?\\(?:lor|vee) "
)
_UNION = re.compile(r" ?\\cup ?| (?:or|and) | ?\\text\{ ?or ?\} ?| ?\\(?:lor|vee) ?| ?, ?(?:or )?")
_RELATION = re.compile(r" ?(?:\\(?:le|ge)(?![A-Za-z])|[<>]) ?")
_ANY_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|approx|equiv|in|sim|to|mid|Rightarrow|implies)(?![A-Za-z])")
_NAME = (
    r"[A-Z]{2,3}(?![A-Za-z])|[A-Za-z](?:_\{?\w+\}?)?"
    r"|\\(?:theta|alpha|beta|gamma|lambda|mu|phi|omega|rho|sigma|angle [A-Z]+|text\{[A-Za-z ]+\})"
)
_ASSIGNED = re.compile(
    rf"(?P<name>(?:{_NAME})(?: ?\((?:{_NAME}|-?\d+|, ?)+\))?|\((?:{_NAME})(?:, ?(?:{_NAME}))+\)) ?= ?"
    r"(?:(?:(?! or | and |\\text|\\lor)[^=,;])+=)*(?P<value>[^=]+)"
)
"""A value with a name, also at the end of a chain of equations: ``A = \\pi r^2 = 9\\pi``."""
_ASSIGNED_BACK = re.compile(r"(?P<value>-?[\d./]+) ?= ?(?P<name>[a-z])")
_MEMBER = re.compile(rf"(?P<name>{_NAME}) ?\\in ?(?P<value>.+)")
_BUILDER = re.compile(
    rf"\\\{{ ?(?P<name>{_NAME})(?: ?\\in ?\\mathbb\{{R\}})? ?(?:\\mid|\||:|\\colon) ?(?P<inside>.+)\\\}}"
)
_CHOICE = re.compile(
    r"(?:\\text\{ ?)?(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer) ?)?"
    r"(?:\((?P<a>[A-Ja-j])\)|\((?P<b>[A-J])\}\)|(?P<c>[A-J])[.):](?=[ }]|\Z)) ?\}? ?"
    r"(?:\. |: |\\ )?(?P<rest>.*)",
    re.DOTALL,
)
_LETTER = re.compile(r"(?:\\text\{ ?)?(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer) )?(?P<a>[A-Z])(?: ?\})?")
_SMALL_LETTER = re.compile(r"\\text\{ ?(?P<a>[a-j]) ?\}")
_MATRIX = re.compile(
    r"\\begin ?\{(?P<kind>[pbvBV]?matrix|smallmatrix|array)\}(?:\{[lcr|]+\})?(?P<inside>.*)\\end ?\{(?P=kind)\}",
    re.DOTALL,
)
_TIGHT = re.compile(r"(?<![\d.])(\d{1,3}(?:,\d{3})+)(?![\d])")
_TOKENS = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d+(?:[.,:/]\d+)*|[^\s\w]")
_DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{2,4}")
_COMMAND = re.compile(r"\\text\{[^{}]*\}|\\[A-Za-z]+")
_SUB = re.compile(r"_\{[A-Za-z0-9]+\}")
_RUN = re.compile(r"[^\W\d_]{2,}")
_ALIASES = {
    ("does", "not", "exist"): ("dne",),
    ("no", "solutions"): ("no", "solution"),
    ("all", "reals"): ("all", "real", "numbers"),
}
_REAL = re.compile(r"\\mathbb\{R\}|(?:\\text\{ ?)?all real(?:s| numbers)(?: ?\})?", re.IGNORECASE)
_DROPPED = frozenset(["and", ",", ".", ";", '"', "'", "!"])


@functools.lru_cache(REMEMBERED)
def form_of(answer: str) -> Form:
    """Return what an answer is."""
    return read(undressed(answer), 0)


def read(text: str, depth: int) -> Form:
    """Return what an undressed text is."""
    number = number_of(text)
    if number is not None:
        return Form(text, "number", text, number)
    if not text or depth > DEEPEST:
        return Form(text, "expression", text)
    for reader in (as_choice, as_relation, as_matrix, as_brackets, as_unit, as_list, as_words):
        form = reader(text, depth)
        if form is not None:
            return form
    return Form(text, "expression", text)


def as_choice(text: str, depth: int) -> Form | None:
    """Read the letter of a choice, with or without the text behind it: ``C``, ``(C)``, ``(C) 5``."""
    letter = _LETTER.fullmatch(text) or _SMALL_LETTER.fullmatch(text)
    if letter is not None:
        return Form(text, "choice", label=letter["a"])
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    label, rest = match["a"] or match["b"] or match["c"], match["rest"].strip()
    if re.match(r"[\^_+*/=<>,;!(\[|-]|\\(?:cdot|times|cup|le|ge|ne|in|text\{ ?(?:or|and))", rest) or re.match(
        r"(?:or|and)\b|(?:is|was) (?:not|wrong|incorrect|false)\b|is(?:n't|n’t)|wrong\b|incorrect\b", rest
    ):
        return None
    if re.search(r"\([A-J]\)|(?<![A-Za-z])[B-J][.):](?: |\Z)", rest) or (label.islower() and rest):
        return None
    return Form(text, "choice", label=label.upper(), members=(read(rest, depth + 1),) if rest else ())


def as_relation(text: str, depth: int) -> Form | None:
    r"""Read ``x = 5`` as 5 with a name, and ``1 < x < 3``, ``x > 2`` and ``x \in (1, 3)`` as intervals with a name."""
    builder = _BUILDER.fullmatch(text) or _BUILDER.fullmatch(f"\\{{{text}\\}}")  # also without its braces
    if builder is not None:
        inside = read(builder["inside"].strip(), depth + 1)
        return replace(inside, text=text) if inside.name == builder["name"] else None
    member = _MEMBER.fullmatch(text)
    if member is not None:
        return replace(read(member["value"].strip(), depth + 1), text=text, name=member["name"])
    for pattern in (_ASSIGNED, _ASSIGNED_BACK):
        match = pattern.fullmatch(text)
        if (
            match is not None
            and "\\pm" not in text
            and not _ANY_RELATION.search(match["value"])
            and len(split_top(match["value"], _SEPARATOR)) == 1
        ):
            value = read(match["value"].strip(), depth + 1)
            return replace(value, text=text, name=re.sub(r"\s", "", match["name"])) if not value.name else None
    parts = split_top(text, _RELATION)
    if len(parts) not in (2, 3) or not all(parts) or any(_ANY_RELATION.search(p) for p in parts) or "," in text:
        return None
    signs = [m[0].strip() for m in _RELATION.finditer(text)]
    return None if len(signs) != len(parts) - 1 else interval_of(text, parts, signs, depth)


def interval_of(text: str, parts: list[str], signs: list[str], depth: int) -> Form | None:
    """Return the interval of a name between bounds."""
    absolute = re.fullmatch(rf"\|(?P<name>{_NAME})\|", parts[0])
    if absolute is not None and len(parts) == 2 and signs[0] in ("<", "\\le") and number_of(parts[1]) is not None:
        parts, signs = [f"-{parts[1]}", absolute["name"], parts[1]], [signs[0]] * 2
    if len(parts) == 2 and re.fullmatch(_NAME, parts[1]) and not re.fullmatch(_NAME, parts[0]):
        parts, signs = parts[::-1], [{"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}[signs[0]]]
    if len(parts) == 2 and re.fullmatch(_NAME, parts[0]):
        low, high = (parts[1], "\\infty") if signs[0] in (">", "\\ge") else ("-\\infty", parts[1])
        closed = signs[0] in ("\\le", "\\ge")
        left, right = closed and high == "\\infty", closed and high != "\\infty"
        name = parts[0]
    elif len(parts) == 3 and re.fullmatch(_NAME, parts[1]):
        if {*signs} <= {">", "\\ge"}:
            parts, signs = parts[::-1], [{">": "<", "\\ge": "\\le"}[s] for s in signs[::-1]]
        if not {*signs} <= {"<", "\\le"}:
            return None
        low, name, high = parts
        left, right = signs[0] == "\\le", signs[1] == "\\le"
    else:
        return None
    kind = ("[" if left else "(") + ("]" if right else ")")
    return Form(text, kind, members=(read(low, depth + 1), read(high, depth + 1)), name=name)


def as_matrix(text: str, depth: int) -> Form | None:
    """Read a matrix by its entries."""
    framed = re.fullmatch(r"[(\[] ?(\\begin ?\{(?:array|matrix|smallmatrix)\}.*) ?[)\]]", text, re.DOTALL)
    match = _MATRIX.fullmatch(framed[1].strip() if framed is not None else text)
    if match is None or "\\begin" in match["inside"]:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", match["inside"].strip().removesuffix("\\\\"))]
    kind = "matrix" if match["kind"][0] in "pbBs" or framed is not None else match["kind"]
    members = tuple(
        Form(" & ".join(row), "row", members=tuple(read(cell.strip(), depth + 1) for cell in row)) for row in rows
    )
    return Form(text, kind, members=members)


def as_brackets(text: str, depth: int) -> Form | None:
    """Read a tuple, an interval, a set, or something in brackets that need not be there."""
    opener = next((o for o in ("\\{", "\\langle", "(", "[") if text.startswith(o)), None)
    if opener is None:
        return None
    if opener == "\\langle":
        if not text.endswith("\\rangle"):
            return None
        inside, kind = text[len(opener) : -len("\\rangle")].strip(), "<>"
    else:
        end = closes(text, 0)
        if end != len(text) - 1:
            return None
        inside = text[len(opener) : -2 if opener == "\\{" else -1].strip()
        kind = "set" if opener == "\\{" else opener + text[-1]
        if (opener == "\\{") != text.endswith("\\}"):
            return None
    parts = split_top(inside, re.compile(r" ?[,;] ?"))
    if kind in ("()", "set") and ", " in inside and _TIGHT.search(inside):
        parts = split_top(_TIGHT.sub(lambda m: m[0].replace(",", ""), inside), re.compile(r" ?[,;] ?"))
    if len(parts) == 1 and kind == "()":
        return replace(read(inside, depth + 1), text=text) if not _RUN.fullmatch(inside) else None
    if len(parts) == 1 and kind == "[]" and number_of(inside) is None:
        return None
    if (not all(parts) and inside) or len(parts) > LONGEST_LIST:
        return None
    members = tuple(read(part, depth + 1) for part in parts) if inside else ()
    members = tuple(m for member in members for m in both_signs(member, depth)) if kind == "set" else members
    return Form(text, kind, members=members)


def as_unit(text: str, depth: int) -> Form | None:
    """Read a value and its unit."""
    value, unit = peeled(text)
    if value == text:
        return None
    form = read(value, depth + 1)
    if form.kind in ("words", "choice", "list") or form.unit or form.name:
        return None
    return replace(form, text=text, unit=unit)


def as_list(text: str, depth: int) -> Form | None:
    r"""Read ``1, 2``, ``1 and 2``, ``x = 1 or x = 2`` and ``\pm 2`` as lists, intervals between ``\cup`` as their union."""
    if re.fullmatch(_REAL, text):
        ends = (read("-\\infty", depth), read("\\infty", depth))
        return Form(text, "()", members=ends)
    parts = split_top(text, _UNION)
    if 1 < len(parts) <= LONGEST_LIST and all(parts):
        members = [read(part, depth + 1) for part in parts]
        one_name = len({m.name for m in members}) == 1
        if (
            one_name
            and all(m.kind in ("()", "[]", "(]", "[)", "set") for m in members)
            and ("\\cup" in text or members[0].name)
            and not (members[0].name and re.search(r" and |\\text\{ ?and ?\}", text))
        ):
            return Form(text, "union", members=tuple(replace(m, name="") for m in members), name=members[0].name)
    assigned = re.fullmatch(rf"(?P<name>{_NAME}) ?= ?(?P<value>[^=]+)", text)
    name, inside = (assigned["name"], assigned["value"].strip()) if assigned is not None else ("", text)
    parts = split_top(_TIGHT.sub(lambda m: m[0].replace(",", ""), inside) if ", " in inside else inside, _SEPARATOR)
    if len(parts) == 1 and "\\pm" not in inside:
        return None
    if not all(parts) or len(parts) > LONGEST_LIST:
        return None
    members = [m for part in parts for m in both_signs(read(part, depth + 1), depth)]
    if len(members) == 1 or any(m.kind in ("words", "choice") and not m.text.startswith("\\text{") for m in members):
        choices = len(members) > 1 and all(m.kind == "choice" and not m.members for m in members)
        return Form(text, "list", members=tuple(members)) if choices else None
    if len({m.unit for m in members}) > 1 and all(m.unit for m in members):
        return None  # one quantity in two units: 2 hours and 30 minutes
    names = {m.name for m in members}
    if not name and len(names) == 1:
        name, members = members[0].name, [replace(m, name="") for m in members]
    return Form(text, "list", members=tuple(members), name=name)


def both_signs(form: Form, depth: int) -> list[Form]:
    r"""Return the two values of an expression with one ``\pm``; the form itself without."""
    if form.value.count("\\pm") != 1 or form.kind not in ("expression", "number") or depth > DEEPEST:
        return [form]
    plus, minus = (re.sub(r"\\pm ?", sign, form.value) for sign in ("+", "-"))
    both = [read(text.strip().removeprefix("+"), depth + 1) for text in (plus, minus)]
    return [replace(form_, unit=form.unit, name=form.name or form_.name) for form_ in both]


def as_words(text: str, depth: int) -> Form | None:
    """Read an answer that has words, or is a date; letters that are a product of variables are no word."""
    if not has_words(text) and not _DATE.fullmatch(text):
        return None
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    plain = re.sub(r"\\(?=[A-Za-z])", "", plain)
    tokens = tuple(t.casefold() for t in _TOKENS.findall(plain) if t.casefold() not in _DROPPED)
    return Form(text, "words", words=_ALIASES.get(tokens, tokens))


def has_words(text: str) -> bool:
    """True if a text has a word: letters that are neither a command, nor a function, nor a product of variables."""
    if re.search(r"\\text\{[^{}]*[^\W\d_]", text):
        return True
    return any(
        not is_product(run) and run not in FUNCTIONS for run in _RUN.findall(_SUB.sub(" ", _COMMAND.sub(" ", text)))
    )
