"""The loop."""

from __future__ import annotations

import pytest

from rlrt.training.loop import due, learning_rate
from tests.helpers import settings


def test_learning_rate_by_hand():
    assert schedule("constant", 2, 4) == [0.5, 1.0, 1.0, 1.0]
    assert schedule("linear", 0, 4) == [1.0, 0.75, 0.5, 0.25]
    assert schedule("linear", 2, 4) == [0.5, 1.0, 1.0, 0.5]
    assert schedule("cosine", 0, 2) == pytest.approx([1.0, 0.5])


def test_due():
    assert [due(s, 3) for s in (1, 2, 3, 6)] == [False, False, True, True]
    assert not due(3, 0)


def schedule(kind, warmup, steps):
    config = settings(
        f"train.lr_schedule={kind}", f"train.warmup_steps={warmup}", f"train.steps={steps}", "train.lr=1"
    ).train
    return [learning_rate(config, s) for s in range(1, steps + 1)]
