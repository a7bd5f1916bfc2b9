r"""A plain number at the end of a text: the only answer that counts without a box.

An unfinished calculation must not count, neither for its value (``4 + 7`` for 11) nor for its last number (``4 + 7`` for 7): a
policy would learn not to calculate. So the text must end with a number that needs no calculation, after a phrase that is known
to introduce an answer. Phrases that this file does not know introduce no answer.
"""

from __future__ import annotations

import math
import re

LONGEST_NUMBER = 400
"""Maximum length of a number in characters."""
DEEPEST = 4
"""Maximum number of nested delimiters around a number."""

_WHOLE = r"(?:[1-9][0-9]{0,2}(?:(?:,\\!|,|\{,\}|\\,)[0-9]{3})+|0|[1-9][0-9]*)"
_FRACTION = (
    r"(?P<over>[1-9][0-9]*)/(?P<under>[1-9][0-9]*)"
    r"|\\[dt]?frac ?(?:\{ ?(?P<over2>[-−]?[0-9]+) ?\}|(?P<over3>[0-9])) ?(?:\{ ?(?P<under2>[0-9]+) ?\}|(?P<under3>[0-9]))"
)
_POWER = r" ?(?:\\times|\\cdot|×|·) ?10\^(?:\{ ?(?P<power>[-−]?[0-9]{1,3}) ?\}|(?P<power2>[-−]?[0-9]{1,3}))"
_NUMBER = (
    rf"(?P<sign>[-−+] ?)?(?:(?:(?P<units>{_WHOLE})(?: |(?=\\)))?(?:{_FRACTION})"
    rf"|(?P<digits>{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})|{_POWER})?)"
)
NUMBER = re.compile(_NUMBER)
LAST_NUMBER = re.compile(_NUMBER + r"\Z")
_MISREAD = re.compile(
    rf"(?<![\w.,/^])(?<!\^\{{)(?:(?P<units>{_WHOLE})(?: +|(?=\\))(?:{_FRACTION})"
    rf"|(?P<digits>{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)[eE](?P<exponent>[-+]?[0-9]{{1,3}}))"
    r"(?P<sign>)(?P<power>(?!))?(?P<power2>(?!))?(?![\w.,/^]*\w)"
)
"""A mixed number, or a number with an exponent, inside other text."""

_CLOSERS = {"$$": "$$", "$": "$", "\\)": "\\(", "\\]": "\\[", "**": "**", "*": "*", "`": "`"}
"""Closing delimiters that may follow a number, each with the opening delimiter that must then precede it."""
_ATTACHED = ("**", "*", "`")
"""Markdown delimiters, which touch the text that they enclose."""

_RELATION = re.compile(
    r"(?:(?<![<>!≠~+\-−*/^%=|×])(?<![<>!] )(?<!\\not)={1,2}|≈|⇒|⟹|\\(?:approx|Rightarrow|implies))\Z"
)
"""Signs after which a number is the value of the expression before the sign."""
_STATEMENT = re.compile(r"(?<=[.!?;。！？])\s+|[。！？]|\n")
_LETTERS = r"[^\W\d_]"
_WORDS = re.compile(rf"{_LETTERS}+(?:['’]{_LETTERS}+)*|%")
_LABEL = re.compile(
    r"\W*(?:(?:so|therefore|thus|hence|the|my|final|correct|numerical)\W+)*"
    r"(?:(?:answer|ans|a|result|solution|total|sum|value|difference|product|quotient|in total|altogether|finally|final|so"
    r"|therefore|thus|hence)\W*|答案\W*|结果\W*)",
    re.IGNORECASE,
)
"""A statement that does nothing but announce an answer."""
_LEADS = frozenset(
    """
    is are was were be been equals equal gets get got gives give gave has have had makes make made leaves left needs need costs
    cost pays pay paid spends spent earns earned yields yield obtains obtain obtained found sold totals totaling remain remains
    contains answer it's that's there's
    """.split()  # noqa: SIM905
)
"""Words after which a number is the value of something."""
_SO = ("so", "therefore", "thus", "hence")
_LED_TO = re.compile(
    r"\b(?:(?:equals?|comes?|amounts?|adds? up|rounds?|rounded|simplifies|reduces|evaluates|works out) to"
    r"|(?:a|in|the) total of)\Z",
    re.IGNORECASE,
)
_CHINESE = re.compile(r"(?:是|为|等于|得|有)\Z")
_ADVERBS = frozenset(
    """
    only just exactly about approximately roughly around nearly now then also therefore thus indeed
    """.split()  # noqa: SIM905
)
_DOUBT = frozenset(
    """
    not never no cannot than least most if unless half twice double triple thrice percent % times plus minus or until till
    """.split()  # noqa: SIM905
)
"""Words of a statement that make its last number a bound, a part of something, or a rejected answer."""
_CONDITION = _DOUBT | frozenset(
    """
    when where whether while at for from to let suppose assume with given set take put base as substitute
    plug setting
    """.split()  # noqa: SIM905
)
"""Words of a statement whose equation may be a condition: ``x + 4 where x = 7``."""
_PARTS = re.compile(
    r"[,;]| [/&] |\\(?:lor|q?quad)\b|\\text ?\{[^{}]*\}|\\[()\[\]]|\$|\*\*|∨|或|\b(?:and|or|oder|et|y|und)\b"
)
_EQUATION = re.compile(rf"\W*?({_LETTERS})(?:_\{{?\w+\}}?)? ?= ?(?P<value>[^=]*)")
_RULE = re.compile(r"(?:\A|\n)(?:[-=_*—] ?){3,}\Z")


def last_number(text: str) -> str | None:
    r"""Return the plain number at a text's end, as LaTeX that math-verify reads as one value; None if there is none.

    ``4 + 7 = 11`` ends with a plain number, ``4 + 7`` does not.
    """
    spaced = re.sub(r" ?\n ?", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()
    body, closers = undressed(re.sub(r"\\(?:mathbf|textbf|boldsymbol) ?\{([^{}]*)\}(?=[\s.$*\\)\]]*\Z)", r"\1", spaced))
    match = LAST_NUMBER.search(body, max(0, len(body) - LONGEST_NUMBER))
    if match is None:
        return None
    before = opened(body[: match.start()], closers)
    if before is None or not introduced(before, match["sign"] or "") or half_open(before):
        return None
    return written(match)


def readable(answer: str) -> str:
    r"""Return an answer with ``1 1/2`` as ``\frac{3}{2}`` and ``6.02e23`` as a power of ten, which math-verify misreads."""
    if len(answer) > LONGEST_NUMBER:
        return answer
    return _MISREAD.sub(lambda m: written(m) or m[0], answer)


def plain_decimal(answer: str) -> str | None:
    """Return a whole or decimal number's digits without separators and with a plain minus; None for anything else."""
    match = NUMBER.fullmatch(answer) if len(answer) <= LONGEST_NUMBER else None
    if match is None or match["digits"] is None or "10^" in answer or match["exponent"] is not None:
        return None
    return written(match)


def written(match: re.Match[str]) -> str | None:
    r"""Return a number as LaTeX of one value; None if it needs calculation: ``22/2``, ``5 22/7``, ``15 \times 10^3``."""
    sign = "-" if (match["sign"] or "").strip() in ("-", "−") else ""
    if match["digits"] is None:
        return written_fraction(match, sign)
    digits = re.sub(r"[^0-9.]", "", match["digits"])
    digits = f"0{digits}" if digits.startswith(".") else digits
    power = match["power"] or match["power2"]
    if power is not None and not re.match(r"[1-9](\.|\Z)", digits):
        return None
    exponent = power or match["exponent"]
    return f"{sign}{digits}" + ("" if exponent is None else f" \\times 10^{{{int(exponent.replace('−', '-'))}}}")


def written_fraction(match: re.Match[str], sign: str) -> str | None:
    """Return a fraction in lowest terms, or a mixed number as one fraction; None for any other fraction."""
    over = int((match["over"] or match["over2"] or match["over3"]).replace("−", "-"))
    under = int(match["under"] or match["under2"] or match["under3"])
    if under < 2 or math.gcd(over, under) != 1 or (over < 0 and match["sign"]):
        return None
    if match["units"] is not None:
        units = int(re.sub(r"[^0-9]", "", match["units"]))
        if not units or not 0 < over < under:
            return None
        over += units * under
    return f"{sign if over >= 0 else '-'}\\frac{{{abs(over)}}}{{{under}}}"


def undressed(text: str) -> tuple[str, list[str]]:
    """Remove the ending that may follow a number (one full stop or comma, closing delimiters); return text and delimiters."""
    closers: list[str] = []
    stopped = False
    while len(closers) < DEEPEST:
        if not stopped and text.endswith((".", ",", ";", "。")):
            text, stopped = text[:-1].rstrip(), True
            continue
        shorter = re.sub(r"(?:\\\\|\\end ?\{[a-z]+\*?\})\Z", "", text).rstrip()
        if shorter != text:  # the end of an aligned equation
            text = shorter
            continue
        closer = next((c for c in _CLOSERS if text.endswith(c)), None)
        if closer is None:
            break
        closers.append(closer)
        text = text[: -len(closer)]
        text = text if closer in _ATTACHED else text.rstrip()
    return text, closers


def opened(before: str, closers: list[str]) -> str | None:
    """Remove opening delimiters and a currency sign before a number; None if a delimiter in ``closers`` was never opened."""
    before = before.removesuffix("\\$")
    for closer in reversed(closers):
        opener = _CLOSERS[closer]
        near = before if opener in _ATTACHED else before.rstrip()
        if near.endswith(opener):
            before = near[: -len(opener)]
        elif not opened_before(before, opener, closer):
            return None
    if "$" not in closers and before.endswith(("$", "€", "£", "¥", "₹")):
        return before[:-1]
    return before


def opened_before(before: str, opener: str, closer: str) -> bool:
    """True if a delimiter that encloses more than the number was opened: ``**Answer: 11**``, ``$x = 11$``."""
    if opener == "**":
        return re.search(r"(?:^|\s)\*\*(?=\S)(?:(?!\*\*).)*\Z", before.rpartition("\n")[2]) is not None
    if opener in _ATTACHED:
        return False
    if opener == closer:
        return opener in before.rpartition("\n\n")[2]
    return before.rfind(opener) > before.rfind(closer)


def introduced(before: str, sign: str) -> bool:
    """True if the text before a number (``sign``: the number's sign) announces it as the answer; False for unknown phrases."""
    head = before.rstrip()
    own_line = "\n" in before[len(head) :]
    detached = sign.endswith(" ")  # "- 7": a sign after an equals sign only, else perhaps a bullet
    head = undecorated(head[-LONGEST_NUMBER:])
    if not head:
        return not detached
    if _RELATION.search(head[-20:]):
        return is_no_condition(head)
    if detached:
        return False
    if own_line:
        return ends_statement(head)
    return re.search(r"(?:^|\n)#{4,}\Z", head) is not None or leads(head, own_line=False)


def undecorated(head: str) -> str:
    """Remove from a text's end what may stand between an announcement and a number: opening delimiters, rules of dashes."""
    while True:
        shorter = _RULE.sub("", head).rstrip()
        shorter = re.sub(r"(?:\*\*|\$|\\[(\[,;:! ]|\\q?quad|`|~)\s*\Z", "", shorter).rstrip()
        if shorter == head:
            return head
        head = shorter


def leads(head: str, own_line: bool) -> bool:
    """True if a text's last statement announces a number: ``Answer:``, ``so he pays``, ``it adds up to``; before a number on
    its own line a heading counts too."""
    statement = _STATEMENT.split(head)[-1].strip()
    if _LABEL.fullmatch(statement):
        return own_line or statement.endswith((":", "：", ",")) or statement.lower() in _SO
    statement = statement.rstrip(" :：*")
    if _CHINESE.search(statement):
        return True
    words = [w.lower() for w in _WORDS.findall(statement[-80:])]
    if words and all(w in _ADVERBS for w in words) and re.fullmatch(r"[^\W\d]+(?: [^\W\d]+)*", statement):
        return True
    while words and words[-1] in _ADVERBS:
        words.pop()
    last = words[-1] if words and re.search(rf"{_LETTERS}\Z", statement) else ""
    if doubtful(words, _DOUBT):
        return False
    return last in _LEADS or _LED_TO.search(statement) is not None


def doubtful(words: list[str], doubt: frozenset[str]) -> bool:
    """True if one of a statement's last words means that the number is not its value."""
    return any(w in doubt or w.endswith(("n't", "n’t")) for w in words[-10:])


def ends_statement(head: str) -> bool:
    """True if a number on its own line may follow a text: after a whole sentence, or after an announcement."""
    bare = re.sub(r"(?:\s|\$|\*\*|\\[)\]])+\Z", "", head)
    if re.search(r"(?<![.…])[.!?。！？]\Z", bare):
        return re.search(rf"{_LETTERS}{{2,}}[^\n]*\Z|[0-9]\.\Z", bare) is not None
    return leads(bare, own_line=True)


def is_no_condition(head: str) -> bool:
    """True if the equation at a text's end gives a value, unlike ``x + 4 where x =`` and the second of ``x = 4, x =``."""
    if head.endswith("&=") and "\\begin" not in head:
        return False
    *earlier, line = [part for part in head.split("\n") if part.strip(" -*•$\\()[]")] or [head]
    statement = _STATEMENT.split(line)[-1]
    if doubtful([w.lower() for w in re.findall(rf"(?<!\\){_WORDS.pattern}", statement)], _CONDITION):
        return False
    *parts, last = _PARTS.split(statement)
    variable = _EQUATION.fullmatch(last)
    if variable is None or variable["value"].strip():
        return True
    above = [earlier[-1].strip(" -*•$\\()[]")] if earlier else []
    return not any(is_of(variable[1], part) for part in parts) and not any(
        (equation := _EQUATION.fullmatch(part)) and equation[1] == variable[1] and is_number(equation["value"])
        for part in above
    )


def is_of(variable: str, part: str) -> bool:
    """True if a part of a statement gives a variable a number already, or is an expression in the variable."""
    equation = _EQUATION.fullmatch(part)
    if equation is not None and equation[1] == variable:
        return is_number(equation["value"])
    return (
        "=" not in part
        and re.search(rf"(?<![^\W\d_]){variable}(?![^\W\d_])", part) is not None
        and bool(re.search(r"[0-9+*/^]", part))
    )


def is_number(text: str) -> bool:
    """True if a text is a number and nothing else."""
    return NUMBER.fullmatch(text.strip(" $.,")) is not None


def half_open(before: str) -> bool:
    """True if a brace of the last paragraph or a bracket of the last line was opened and never closed."""
    paragraph = re.sub(r"\\[()\[\]{}]", "", before.rpartition("\n\n")[2])
    line = paragraph.rpartition("\n")[2]
    brackets = sum(line.count(c) for c in "([") - sum(line.count(c) for c in ")]")
    return brackets > 0 or paragraph.count("{") > paragraph.count("}")
