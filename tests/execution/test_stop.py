"""Requests to end early: at a step's end, or inside a step whose end would come too late."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal

import pytest

from rlrt.execution.build import build_learner
from rlrt.execution.execute import execute
from rlrt.execution.stop import GRACE, Pace, StopFlag
from rlrt.paths import saved_steps
from tests.execution.test_resume import SMALL, numbers, same_end
from tests.helpers import settings
from tests.sampling.test_source import COPYING


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_is_a_request_and_only_ctrl_c_insists(number):
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.signal == number
        os.kill(os.getpid(), signal.SIGTERM)  # SLURM at the limit itself: no reason to tear a checkpoint
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) == before


def test_how_long_a_signal_leaves(monkeypatch):
    monkeypatch.setenv(GRACE, "120")
    for number, seconds in ((signal.SIGUSR2, 120), (signal.SIGTERM, 30), (signal.SIGINT, 30)):
        with StopFlag() as stop:
            assert stop.time_left() == math.inf
            os.kill(os.getpid(), number)
            assert seconds - 5 < stop.time_left() <= seconds


def test_the_end_of_a_step_is_too_late_by_the_length_of_the_last_one():
    now, left = [0.0], [math.inf]
    pace = Pace(lambda: left[0], lambda: now[0])
    now[0] = 100.0
    pace.boundary()  # a step of 100 s
    now[0] = 120.0
    pace.saved(20.0)  # a checkpoint takes 20 s, for which the loop stood still
    pace.resume()
    now[0] = 130.0  # 90 s of the next step are left; with its checkpoint and 5 s more 115
    assert not pace.too_late()
    left[0] = 116.0
    assert not pace.too_late()
    left[0] = 114.0
    assert pace.too_late()
    now[0], left[0] = 300.0, 26.0  # a step longer than the last one may take what is left, but for its checkpoint
    assert not pace.too_late()
    left[0] = 24.0
    assert pace.too_late()


def test_a_checkpoint_that_is_still_being_written_is_waited_for_before_the_next():
    now, left = [0.0], [60.0]
    pace = Pace(lambda: left[0], lambda: now[0])
    pace.saved(40.0)
    pace.boundary()  # a step of no time: 40 s for its checkpoint and 5 s more are enough
    assert not pace.too_late()
    pace.writing()
    now[0] = 10.0  # 30 s of the one before are left, then 40 s and 5 s
    left[0] = 76.0
    assert not pace.too_late()
    left[0] = 74.0
    assert pace.too_late()
    pace.saved(40.0)
    left[0] = 46.0
    assert not pace.too_late()


SHORT = ("train.save_every=0", "train.minibatches=2", "train.token_budget=400", "engine.max_new_tokens=100")


def cut(folder, number, *overrides):
    """Run until the run has asked ``number`` times how much time it has: from then on none."""
    asked = itertools.count(1)
    made = settings(*SMALL, *SHORT, *overrides)
    return execute(
        made, folder, lambda line: None, lambda: False, progress=False,
        time_left=lambda: 0.0 if next(asked) >= number else math.inf,
    )  # fmt: skip


def asked_in_all(folder, *overrides):
    asked = itertools.count()
    made = settings(*SMALL, *SHORT, *overrides)
    execute(
        made, folder, lambda line: None, lambda: False, progress=False,
        time_left=lambda: [math.inf, next(asked)][0],
    )  # fmt: skip
    return next(asked)


@pytest.mark.parametrize("method", ["sd", pytest.param("rlrt", marks=pytest.mark.long)])
def test_a_run_stopped_inside_any_step_goes_on_to_the_same_end(tmp_path, method):
    """The looks at the clock lie in evaluations, rollouts and updates; a stop at any of them loses only what lies after the
    newest boundary whose weights were still there."""
    words = [f"method={method}", *(["teacher.weights=ema"] if method == "sd" else [])]
    total = asked_in_all(tmp_path / "whole", *words)
    assert total > 40
    kept = set()
    for number in {2, *random.Random(0).sample(range(total // 5, total), 7)}:
        folder = tmp_path / str(number)
        summary = cut(folder, number, *words)
        assert summary["state"] == "interrupted"
        kept |= set(saved_steps(folder))
        assert (
            execute(settings(*SMALL, *SHORT, *words), folder, lambda line: None, lambda: False)["state"] == "finished"
        )
        same_end(tmp_path / "whole", folder)
    assert kept  # some stops came before an update, and saved the boundary before it


def test_rollouts_sampled_ahead_are_not_lost_by_a_stop_inside_a_step(tmp_path):
    words = ["method=rlrt", "train.sample_ahead=true", *COPYING]
    total = asked_in_all(tmp_path / "whole", *words)
    for number in (total // 3, total // 2, 3 * total // 4):
        folder = tmp_path / str(number)
        assert cut(folder, number, *words, "train.save_every=1")["state"] == "interrupted"
        made = settings(*SMALL, *SHORT, *words, "train.save_every=1")
        execute(made, folder, lambda line: None, lambda: False)
        assert numbers(tmp_path / "whole") == numbers(folder)


def test_an_engine_stops_within_its_batch():
    made = settings("engine.max_rows=4", "engine.max_new_tokens=300")
    made.data.prepare()
    learner = build_learner(made)
    engine = made.engine
    engine.load(learner.policy.model, [])  # nothing ends a response
    engine.asked_to_end = lambda: True
    prompts = [learner.builder.student(p) for p in made.data.train[:3]]
    assert list(engine.sample(prompts, [[1, 2], [3, 4], [5, 6]])) == []
