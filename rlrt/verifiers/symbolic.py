r"""Equality of two expressions by math-verify, with a check of its verdict by numbers.

math-verify 0.9 rounds to six places and takes some wrong answers for right (``1/2004!`` for ``1/2006!``), and it takes
``\sqrt{1/n}`` for another expression than ``\frac{1}{\sqrt{n}}``. So both sides are computed at points: what differs there is
not equal, and what has the same values at all of them, and the same points without a real value, is equal.
"""

from __future__ import annotations

import logging
from typing import Any

from rlrt.verifiers.literals import readable

POINTS = ("0.3717", "1.6180", "-0.7713", "2.7391", "-3.1133", "5.3371", "-1.9273", "0.0913", "11.4713", "-7.2091")
"""Where expressions with variables are compared."""
FEWEST_POINTS = 4
"""Points with real values on both sides that are enough to tell."""
DIGITS = 50
EXACT, ROUNDED = 1e-30, 1e-5
"""Relative difference of two values that are equal; the larger one where a side has a decimal number."""


def equal_expressions(expected: str, given: str) -> bool:
    """True if two expressions in LaTeX are equal. Runs in a worker process, which may be killed.

    Raises:
        ValueError: for an expected expression that cannot be read.
        Exception: whatever math-verify or sympy raise.
    """
    from math_verify import verify

    gold = parsed(expected)
    if gold is None:
        raise ValueError(f"the expected answer {expected!r} cannot be read")
    answer = parsed(given)
    if answer is None:
        return False
    agree = agreed(gold, answer)
    if agree is not None:
        return agree
    return bool(verify(gold, answer, timeout_seconds=None))


def parsed(text: str) -> Any:
    """Return an expression as sympy has it; None for what is none."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # at each call it warns that it has no time limit of its own
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
        )
    )
    found = parse(f"${readable(text)}$", [config], fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


def agreed(gold: Any, answer: Any) -> bool | None:
    """Return whether two expressions have the same values; None where numbers do not tell."""
    from sympy import Expr, Float, I, Integer, Rational

    if not isinstance(gold, Expr) or not isinstance(answer, Expr):
        return None
    gold, answer = (side.subs({s: I for s in side.free_symbols if s.name == "i"}) for side in (gold, answer))
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    rounded = bool(gold.atoms(Float) | answer.atoms(Float))
    whole = gold.has(I) or answer.has(I)
    limit = ROUNDED if rounded else EXACT
    equal = 0
    for k in range(len(POINTS) if names else 1):
        values = {name: Rational(POINTS[(k + 3 * i) % len(POINTS)]) + Integer(i) / 7 for i, name in enumerate(names)}
        try:
            a, b = (value_at(side, values, whole) for side in (gold, answer))
        except Exception:  # sympy raises many kinds
            return None
        if a is not None and b is not None:
            if abs(a - b) > limit * max(abs(a), abs(b)):
                return False
            equal += 1
        elif (a is None) != (b is None):
            return False
    enough = equal >= (FEWEST_POINTS if names else 1)
    return True if enough and not rounded else None


def value_at(side: Any, values: dict[Any, Any], whole: bool) -> Any:
    """Return the value of an expression at a point; None if it has none there, or none that is real, unless ``whole``."""
    value = side.subs(values).doit().evalf(DIGITS)
    if not value.is_number:
        raise ValueError("no number")
    real, imaginary = value.as_real_imag()
    if not (real.is_finite and imaginary.is_finite):
        return None
    if whole:
        return value
    return None if abs(imaginary) > 1e-20 * max(1, abs(real)) else real
