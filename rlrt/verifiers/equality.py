"""Whether two answers are equal, form by form. When in doubt they are not.

Numbers, words, choices and what is made of them are compared here; two expressions are left to ``symbolic``, which may take
long and is asked only where it can decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rlrt.verifiers.forms import Form, form_of
from rlrt.verifiers.numerals import Number
from rlrt.verifiers.units import PERCENT, is_product, same_unit

Symbolic = Callable[[str, str], bool]
"""(expected expression, given expression) -> True if they are equal."""

_TUPLES = ("()", "<>")
_UNREADABLE = re.compile(r"\\ldots|\\[pb]?mod(?![a-z])|\d ?['\"]|\\approx|_ ?\{? ?\\text|\d ?_ ?\{? ?[A-Za-z]")
"""What math-verify drops or misreads: such an expression is equal to the same text alone."""
_NAMED_ALIKE = re.compile(r"y|[fgh]\([a-z]\)")


class Undecided(Exception):
    """Only mathematics can tell, and it was not asked."""


def equal_answers(expected: str, given: str, symbolic: Symbolic) -> bool:
    """True if a given answer equals the expected one.

    Raises:
        Whatever ``symbolic`` raises.
    """
    return same(form_of(expected), form_of(given), symbolic)


def same(expected: Form, given: Form, symbolic: Symbolic) -> bool:
    """True if two forms are equal."""
    if tight(expected.text) == tight(given.text):
        return bool(expected.text)
    if "choice" in (expected.kind, given.kind):
        return same_choice(expected, given, symbolic)
    if not same_name(expected.name, given.name):
        return False
    if expected.unit != given.unit:
        if PERCENT in (expected.unit, given.unit):
            return same_share(expected, given, symbolic)
        if not same_unit(expected.unit, given.unit):
            return False
    return same_value(expected, given, symbolic)


def same_value(expected: Form, given: Form, symbolic: Symbolic) -> bool:
    """True if two forms are equal, whatever their names and units."""
    kinds = {expected.kind, given.kind}
    if expected.number is not None and given.number is not None:
        return expected.number.equals(given.number)
    if kinds == {"words"}:
        return expected.words == given.words
    if kinds <= {"number", "expression"}:
        return same_expression(expected, given, symbolic)
    if named_apart(expected) != named_apart(given):
        return same_in_order(expected, given, symbolic)
    if kinds in ({"set"}, {"list"}, {"set", "list"}, {"union"}):
        return same_members(expected.members, given.members, symbolic)
    if expected.kind == given.kind or kinds <= {*_TUPLES, "list"}:
        if "list" in kinds and (given.name or expected.name):
            return False
        return len(expected.members) == len(given.members) and all(
            same(e, g, symbolic) for e, g in zip(expected.members, given.members, strict=True)
        )
    if kinds <= {"set", "number", "expression"}:
        return same_single(expected, given, symbolic)
    return False


def named_apart(form: Form) -> bool:
    """True for a list of values of different names: ``x = 2, y = 3``, not ``x_1 = 2, x_2 = 3``, which are roots."""
    names = [m.name.partition("_")[0] for m in form.members] if form.kind == "list" else []
    return len(names) > 1 and all(names) and len(set(names)) == len(names)


def same_in_order(expected: Form, given: Form, symbolic: Symbolic) -> bool:
    """True if values of different names are those of a collection without names, in order: that of the names in a tuple."""
    named, other = (expected, given) if named_apart(expected) else (given, expected)
    if other.kind not in (*_TUPLES, "list", "set") or other.name or any(m.name for m in other.members):
        return False
    members = sorted(named.members, key=lambda m: m.name) if other.kind in _TUPLES else named.members
    pairs = list(zip(members, other.members, strict=False))
    return len(members) == len(other.members) and all(
        same(*((m, o) if named is expected else (o, m)), symbolic) for m, o in pairs
    )


def same_expression(expected: Form, given: Form, symbolic: Symbolic) -> bool:
    """True if two expressions are equal; letters alone are equal in the same case only, and in another order as a product."""
    if expected.value == given.value:
        return bool(expected.value)
    if not expected.value or not given.value or _UNREADABLE.search(f"{expected.value} | {given.value}"):
        return False
    letters = [f.value for f in (expected, given) if re.fullmatch(r"[A-Za-z]+", f.value)]
    if len(letters) == 2:
        return is_product(letters[0]) and is_product(letters[1]) and sorted(letters[0]) == sorted(letters[1])
    relations = [
        sorted(re.findall(r"[=<>]|\\(?:le|ge|ne|approx|equiv)(?![A-Za-z])|:", f.value)) for f in (expected, given)
    ]
    if ":" in relations[0] + relations[1] or len(relations[0]) != len(relations[1]):
        return False
    if based(expected.value) != based(given.value):
        return False
    return symbolic(*(latex_of(f.number) if f.number is not None else f.value for f in (expected, given)))


def latex_of(number: Number) -> str:
    """Return a number as LaTeX: a decimal of few figures as a decimal, which may be rounded, and all else exactly."""
    over, under = number.value.numerator, number.value.denominator
    if number.figures and number.last.numerator == 1 and number.last.denominator <= 10**30:
        places = len(str(number.last.denominator)) - 1
        digits = str(abs(int(number.value * 10**places))).zfill(places + 1)
        return f"{'-' if over < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return str(over) if under == 1 else f"{'-' if over < 0 else ''}\\frac{{{abs(over)}}}{{{under}}}"


def based(text: str) -> str:
    """Return the base of a number in another base (``101_2``), else an empty text."""
    match = re.fullmatch(r"[\dA-F.]+ ?_ ?(?:\{ ?(\d+|\\text\{\w+\}) ?\}|(\d))", text)
    return "" if match is None else text.replace(" ", "").replace("{", "").replace("}", "")


def same_members(expected: Sequence[Form], given: Sequence[Form], symbolic: Symbolic) -> bool:
    """True if two collections have the same members in any order."""
    if len(expected) != len(given):
        return False
    left, undecided = list(given), False
    for member in expected:
        for i, other in enumerate(left):
            try:
                found = same(member, other, symbolic)
            except Undecided:
                undecided, found = True, False
            if found:
                del left[i]
                break
        else:
            if not undecided:
                return False
    if undecided and left:
        raise Undecided
    return not left


def same_single(expected: Form, given: Form, symbolic: Symbolic) -> bool:
    """True if one answer is a set with one member, and the other is that member."""
    sets = [f for f in (expected, given) if f.kind == "set"]
    if len(sets) == 2 or len(sets[0].members) != 1:
        return empty(expected) and empty(given)
    e, g = (f.members[0] if f.kind == "set" else f for f in (expected, given))
    return same(e, g, symbolic)


def empty(form: Form) -> bool:
    r"""True for the empty set: ``\emptyset`` or ``\{\}``."""
    return form.text.strip() == "\\emptyset" or (form.kind == "set" and not form.members)


def same_choice(expected: Form, given: Form, symbolic: Symbolic) -> bool:
    """True if the letters agree, and the texts behind them where both have one; without a letter the text counts."""
    if expected.kind == given.kind:
        if expected.label.upper() != given.label.upper():
            return False
        if expected.label != given.label and not (dressed(expected) or dressed(given)):
            return False
        both = bool(expected.members and given.members)
        return not both or same(expected.members[0], given.members[0], symbolic)
    choice, other = (expected, given) if expected.kind == "choice" else (given, expected)
    if not choice.members:
        letter = other.kind == "expression" and re.fullmatch(r"[A-Za-z]", other.text) is not None
        return letter and dressed(choice) and other.text.upper() == choice.label.upper()
    pair = (choice.members[0], other) if choice is expected else (other, choice.members[0])
    return same(*pair, symbolic)


def dressed(form: Form) -> bool:
    """True if a letter is written as a choice is: ``(C)``, ``C.``, not ``C``."""
    return len(form.text) > 1


def same_name(expected: str, given: str) -> bool:
    """True if two values were given to the same name, or one of them to none."""
    if not expected or not given or expected == given:
        return True
    return all(_NAMED_ALIKE.fullmatch(name) for name in (expected, given))


def same_share(expected: Form, given: Form, symbolic: Symbolic) -> bool:
    """True for a percentage and the same number without the sign, or the share that it is: ``25 %`` is 25, and 0.25.

    A bare number of at most 1 is a share: 0.5 is 50 %, not 0.5 %. A whole number above 1 is no share: 2 is 2 %, not 200 %.
    """
    percent, bare = (expected, given) if expected.unit == PERCENT else (given, expected)
    if bare.unit:
        return False
    if percent.number is None or bare.number is None:
        if percent.kind != "expression" and bare.kind != "expression":
            return False
        return same_value(expected, given, symbolic)
    value = abs(bare.number.value)
    if value > 1 and percent.number.equals(bare.number):
        return True
    return (value <= 1 or value.denominator != 1) and percent.number.value / 100 == bare.number.value


def tight(text: str) -> str:
    """Remove the white space that separates neither digits nor letters."""
    return re.sub(r" (?![A-Za-z0-9])|(?<![A-Za-z0-9]) ", "", text)
