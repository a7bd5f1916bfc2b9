"""Bit-exact resume at seeded moments: each kind of kill for RLRT, one for every other method; ``make torture``: 20 for all."""

from __future__ import annotations

import pytest

from tests.helpers import METHODS
from tests.kills.lives import KINDS, torture, uninterrupted

pytestmark = pytest.mark.kills
CASES = [
    *(("rlrt", kind) for kind in range(len(KINDS))),
    *((method, at % len(KINDS)) for at, method in enumerate(METHODS) if method != "rlrt"),
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
