"""The final answer inside a cell's text: all of it, after the last ####, in the last box, or a number without its unit."""

from __future__ import annotations

import re
from fractions import Fraction

from rlrt.tasks.cells import NotUnderstood
from rlrt.verifiers.answers import boxed
from rlrt.verifiers.literals import LONGEST_NUMBER, NUMBER, written
from rlrt.verifiers.units import scales

FORMATS = ("plain", "hash", "boxed", "number")
THOUSANDS = re.compile(r"[-+−]?\\?\$?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?:\\?%)?")
"""A number whose commas separate thousands; those of ``(1,2)`` do not."""
_CURRENCY = re.compile(r"([-+−]?)\s*(?:\\?\$|[€£¥₹])\s*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?(?:\^?\{?[23]\}?|[²³])?")
_CHANGES = frozenset(
    """
    k m mn b bn million millions billion billions trillion trillions thousand thousands hundred hundreds dozen dozens score
    half halves third thirds quarter quarters fifth fifths tenth tenths pi plus minus times over squared cubed factorial mod
    and or to by x e i n y z if when where not more less least most than between am pm st nd rd th
    """.split()  # noqa: SIM905
)
"""Words that make a number another one, or leave open which it is."""
_SYMBOLS = frozenset("m g l L s h t N J W V A C F".split())  # noqa: SIM905
"""Units of one letter, by their own capitals."""


def final_of(text: str, answer_format: str) -> str:
    """Return the final answer of a cell's text; empty where the place for it is empty.

    Raises:
        NotUnderstood: if the text has no such place.
    """
    if not text or answer_format == "plain":
        return text
    if answer_format == "hash":
        return after_hashes(text)
    if answer_format == "boxed":
        inside = boxed(text)
        if inside is None:
            raise NotUnderstood("text without a box")
        return re.sub(r"\A\$([^$]*)\$\Z", r"\1", inside).strip()
    return number_of(text)


def after_hashes(text: str) -> str:
    """Return what stands after the last ####, on its line; thousands without their commas.

    Raises:
        NotUnderstood: for a text without ####.
    """
    if "####" not in text:
        raise NotUnderstood("text without ####")
    answer = text.rpartition("####")[2].strip().split("\n", 1)[0].strip()
    return answer.replace(",", "") if THOUSANDS.fullmatch(answer) else answer


def number_of(text: str) -> str:
    r"""Return the one number of a text, without its unit: 9 of ``9 (apples)``, 18.90 of ``\$18.90``, 145 of ``145.0``.

    Raises:
        NotUnderstood: for several numbers, none, or words that make it another number (``3 million``).
    """
    bare = re.sub(r"\\(?:text|mathrm|textbf|mbox) ?\{([^{}]*)\}", r" \1", text.strip())
    bare = re.sub(r"\^ ?\{? ?\\circ ?\}?|\\degree", "°", bare)
    bare = re.sub(r"\\[ ,;!](?!\d)|~", " ", bare).strip()
    if len(bare) > 1 and bare.startswith("$") and bare.endswith("$"):
        bare = bare[1:-1].strip()
    bare = _CURRENCY.sub(r"\1", bare, count=1) if _CURRENCY.match(bare) else bare
    match = NUMBER.match(bare) if len(bare) <= LONGEST_NUMBER else None
    if match is None or not is_unit(bare[match.end() :]):
        raise NotUnderstood("text that is not one number with a unit")
    value = written(match) or ratio(match[0])
    if value is None:
        raise NotUnderstood("text that is not one number with a unit")
    whole, point, decimals = value.partition(".")
    return whole if point and decimals.strip("0") == "" else value


def ratio(text: str) -> str | None:
    """Return a fraction that is not in lowest terms as one that is, or as a whole number; None for anything else."""
    match = re.fullmatch(r"([-−]?\d+)/(\d+)", text.replace(" ", ""))
    if match is None or int(match[2]) == 0:
        return None
    value = Fraction(int(match[1].replace("−", "-")), int(match[2]))
    if value.denominator == 1:
        return str(value.numerator)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def is_unit(rest: str) -> bool:
    """True if what follows a number is nothing, or a unit: signs, words, or a remark in parentheses."""
    touching = bool(rest) and not rest[0].isspace()
    rest = re.sub(r"\A\s*(?:°[CF]?|\\?%|\\?\$|[€£¥₹¢])", " ", rest).strip()
    rest = re.sub(r"\A\(([^()]*)\)", r"\1", rest).strip(" .")
    if not rest:
        return True
    words = re.split(r"[\s/·*-]+|\\cdot|\bper\b", re.sub(r"[(),]", " ", rest).strip())
    words = [word for word in words if word]
    if touching and len(words[0]) == 1 and words[0] not in _SYMBOLS:
        return False
    return all(
        _WORD.fullmatch(w) and (w in _SYMBOLS or not (w.lower() in _CHANGES or scales(w.lower()))) for w in words
    )
