r"""Exact values of numbers as people and models write them: ``1\,000``, ``1 1/2``, ``6.02e23``, ``0.\overline{3}``, ``three``.

Two numbers are equal if their values are, exactly; nothing is rounded, but for a decimal of six figures or more that is a
fraction correctly rounded. A number that needs calculation (``4 + 7``, ``2^{10}``) is none here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST_NUMBER = 400
"""Maximum length of a number in characters."""
ROUNDED = 6
"""Figures with which a decimal may stand for the fraction that it rounds."""

_INTEGER = r"(?:\d{1,3}(?:(?P<sep>,|\{,\}| |')\d{3})(?:(?P=sep)\d{3})*|\d+)"
_SIGN = r"(?P<sign>[-+]?) ?"
_POWER = (
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})"
    r"| ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?(?:\{ ?(?P<power>[-+]?\d{1,3}) ?\}|(?P<power2>-?\d{1,3})))"
)
_DECIMAL = re.compile(
    rf"{_SIGN}(?P<whole>{_INTEGER})?(?:\.(?P<places>\d*))?(?:{_POWER})?"
    r"(?: ?(?:\\text\{)?(?P<scale>thousand|million|billion|trillion)\}?)?"
)
_POWER_OF_TEN = re.compile(r"(?P<sign>[-+]?) ?10 ?\^ ?\{ ?(?P<power>[-+]?\d{1,3}) ?\}")
_REPEATING = re.compile(
    rf"{_SIGN}(?P<whole>\d*)\.(?P<fixed>\d*)"
    r"(?:\\(?:overline|bar|dot|overbar|widebar) ?(?:\{ ?(?P<period>\d+) ?\}|(?P<period2>\d))|\((?P<period3>\d+)\))"
)
_ELLIPSIS = re.compile(rf"{_SIGN}(?P<whole>\d*)\.(?P<places>\d+) ?\\ldots")
_PERIOD = re.compile(r"(?P<fixed>\d*?)(?:(?P<one>\d)(?P=one){2,}|(?P<more>\d{2,6})(?P=more){2,})")
_TERM = r"-?\d{1,30}(?:\.\d{1,30})?"
_FRACTION = re.compile(
    rf"{_SIGN}(?:(?P<units>{_INTEGER})(?: (?=\d)| ?(?=\\)))?"
    rf"(?:\\frac ?\{{ ?(?P<over>{_TERM}) ?\}} ?\{{ ?(?P<under>{_TERM}) ?\}}"
    rf"|(?P<over2>(?:\d{{1,3}}(?:,\d{{3}})+|\d+)) ?/ ?(?P<under2>(?:\d{{1,3}}(?:,\d{{3}})+|\d+)))"
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ONES = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen
    """.split()  # noqa: SIM905
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = (
    {word: i for i, word in enumerate(_ONES)}
    | {word: 10 * i for i, word in enumerate(_TENS, 2)}
    | {
        f"{ten}{sep}{one}": 10 * i + j
        for i, ten in enumerate(_TENS, 2)
        for j, one in enumerate(_ONES[:10])
        for sep in "- "
        if j
    }
    | {"one hundred": 100, "hundred": 100, "one thousand": 1000}
)
"""Numbers in words."""
_PARTS = "half third fourth fifth sixth seventh eighth ninth tenth".split()  # noqa: SIM905
PARTS = (
    {"half": Fraction(1, 2)}
    | {f"{one}{sep}{part}": Fraction(1, i) for i, part in enumerate(_PARTS, 2) for one in ("a", "one") for sep in "- "}
    | {
        f"{_ONES[n]}{sep}{part}s": Fraction(n, i)
        for i, part in enumerate(_PARTS[1:], 3)
        for n in range(2, 10)
        for sep in "- "
    }
)
PARTS |= {word.replace("fourth", "quarter"): value for word, value in PARTS.items()}
"""Fractions in words."""


@dataclass(frozen=True)
class Number:
    """A number's exact value.

    Attributes:
        value: it.
        figures: the number of significant figures of a decimal; 0 for whole numbers, fractions and repeating decimals.
        last: the value of a one in the last place of a decimal.
    """

    value: Fraction
    figures: int = 0
    last: Fraction = Fraction(1)

    def equals(self, other: Number) -> bool:
        """True for equal values, and for a decimal of at least ``ROUNDED`` figures that is the other, a fraction, rounded."""
        if self.value == other.value:
            return True
        if bool(self.figures) == bool(other.figures):
            return False
        decimal, exact = (self, other) if self.figures else (other, self)
        rounded = 2 * abs(exact.value - decimal.value) <= decimal.last
        return decimal.figures >= ROUNDED and exact.value.denominator != 1 and rounded


def number_of(text: str) -> Number | None:
    """Return the number that an undressed text is; None for anything else."""
    if len(text) > LONGEST_NUMBER or not text:
        return None
    word = text.removeprefix("\\text{").removesuffix("}").lower()
    if word in WORDS:
        return Number(Fraction(WORDS[word]))
    if word in PARTS:
        return Number(PARTS[word])
    if below := re.fullmatch(r"(?:minus|negative) (?P<rest>[a-z\d].*)", word):
        number = number_of(below["rest"]) if not re.match("minus|negative", below["rest"]) else None
        return None if number is None else Number(-number.value, number.figures, number.last)
    if not re.search(r"\d", text):
        return None
    return decimal_of(text) or fraction_of(text) or repeating_of(text)


def decimal_of(text: str) -> Number | None:
    """Return a whole or decimal number, with separators, an exponent or a scale (``1.5 million``)."""
    ten = _POWER_OF_TEN.fullmatch(text)
    if ten is not None:
        return Number(signed(Fraction(10) ** int(ten["power"]), ten["sign"]))
    match = _DECIMAL.fullmatch(text)
    if match is None or not (match["whole"] or match["places"]):
        return None
    whole, places = re.sub(r"\D", "", match["whole"] or ""), match["places"] or ""
    if match["sep"] and (match["whole"] or "").startswith("0"):
        return None
    value = Fraction(int(whole + places or "0"), 10 ** len(places))
    power = match["exponent"] or match["power"] or match["power2"]
    scale = Fraction(10) ** int(power or 0) * _SCALES.get(match["scale"] or "", 1)
    figures = len((whole + places).lstrip("0")) if places else 0
    return Number(signed(value * scale, match["sign"]), figures, scale / 10 ** len(places))


def fraction_of(text: str) -> Number | None:
    """Return a fraction, or a mixed number whose fraction is below 1."""
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    over = Fraction((match["over"] or match["over2"]).replace(",", ""))
    under = Fraction((match["under"] or match["under2"]).replace(",", ""))
    if under == 0:
        return None
    value = over / under
    if match["units"] is not None:
        units = int(re.sub(r"\D", "", match["units"]))
        if not units or not 0 < value < 1 or under < 0 or value.denominator == 1:
            return None
        value += units
    return Number(signed(value, match["sign"]))


def repeating_of(text: str) -> Number | None:
    r"""Return a decimal whose last digits repeat: ``0.\overline{3}``, ``0.(3)``, ``0.1666...``."""
    match = _REPEATING.fullmatch(text)
    if match is not None:
        fixed, period = match["fixed"], match["period"] or match["period2"] or match["period3"]
    else:
        match = _ELLIPSIS.fullmatch(text)
        parts = _PERIOD.fullmatch(match["places"]) if match is not None else None
        if match is None or parts is None:
            return None
        fixed, period = parts["fixed"], parts["one"] or parts["more"]
    scale = 10 ** len(fixed)
    value = Fraction(int((match["whole"] or "0") + fixed), scale) + Fraction(
        int(period), (10 ** len(period) - 1) * scale
    )
    return Number(signed(value, match["sign"]))


def signed(value: Fraction, sign: str) -> Fraction:
    """Return a value with its sign."""
    return -value if sign == "-" else value
