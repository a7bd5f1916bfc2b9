"""Bit-exact resume at seeded moments: each kind of kill for RLRT, one for three other methods.

``make torture`` has 20 kills for every method, and tests/execution/test_resume.py interrupts each of them once.
"""

from __future__ import annotations

import pytest

from tests.kills.lives import KINDS, torture, uninterrupted

pytestmark = pytest.mark.kills
CASES = [
    *(("rlrt", kind) for kind in range(len(KINDS))),
    ("antisd", 0),  # it has a state of its own, and so has the next
    ("entropy", 1),
    ("sd", 2),
]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """The uninterrupted runs, made when first asked for."""
    known: dict[str, dict] = {}

    def whole(method):
        if method not in known:
            known[method] = uninterrupted(method, tmp_path_factory.mktemp("whole") / method)
        return known[method]

    return whole


@pytest.mark.parametrize(("method", "number"), CASES)
def test_killed_and_resumed_to_the_bit(tmp_path, wholes, method, number):
    told = torture(method, number, tmp_path / "run", wholes(method))  # raises where the ends differ
    print(told)
    assert "SIG" in told
