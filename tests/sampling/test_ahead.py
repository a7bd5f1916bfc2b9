"""The schedule of ``train.sample_ahead``, proved by the run's own loop around an engine and an update that wait for each other.

Nothing here is a matter of speed. Where two things must happen at once, both wait at one barrier, which neither passes alone;
where one must wait for another, the other is let go only once the first has begun to wait. A schedule that is wrong ends by the
time limit of a barrier or an event.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.ahead import Clockwork, clockwork, settings_of, updating
from rlrt.errors import Interrupted, UserError
from rlrt.execution.execute import execute
from rlrt.sampling.source import Source
from rlrt.training.loop import train
from tests.engines.copying import CopyingEngine
from tests.execution.test_resume import numbers
from tests.helpers import settings
from tests.sampling.test_source import COPYING, SMALL

LIMIT_S = 30.0


def in_thread() -> bool:
    return threading.current_thread() is not threading.main_thread()


def trained(run, update=lambda step: None):
    """Run to the end, however it ends; the thread must be gone then."""
    try:
        with updating(run, update):
            return train(run)
    finally:
        run.source.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("rlrt-ahead")]


def both_at_once(ahead: bool, limit: float):
    """Sampling beside an update, and the update, wait for each other at a barrier; returns how often they met."""
    barrier, met = threading.Barrier(2, timeout=limit), []
    samplings = iter(range(1, 100))

    def on_sample(training):
        if training and next(samplings) > 1:  # the first step's rollouts come before any update
            barrier.wait()
            met.append("sampling")

    def update(step):
        if step < 4:  # beside the last update nothing is sampled
            barrier.wait()
            met.append("update")

    run, records = clockwork(settings_of(ahead, "train.steps=4"), Clockwork(on_sample=on_sample))
    assert trained(run, update) == 4
    assert [r["step"] for r in records] == [0, 1, 2, 3, 4]
    return sorted(met)


def test_the_next_rollouts_are_sampled_while_the_update_runs():
    assert both_at_once(True, LIMIT_S) == ["sampling"] * 3 + ["update"] * 3


def test_without_the_key_they_never_meet():
    with pytest.raises(threading.BrokenBarrierError):
        both_at_once(False, 0.05)


@pytest.mark.parametrize("minibatches", [1, 3])
def test_rollouts_are_by_the_weights_from_before_the_update_and_the_record_says_how_old(minibatches):
    loads, versions = [], {}
    engine = Clockwork(on_load=lambda version: loads.append((version, in_thread())))
    run, records = clockwork(
        settings_of(True, "train.steps=4", f"train.minibatches={minibatches}"), engine,
        keep_samples=lambda step, rollouts, result: versions.update({step: {r.generation.token_ids[0] for r in rollouts}}),
    )  # fmt: skip
    trained(run)
    m = minibatches
    assert versions == {1: {0}, 2: {0}, 3: {m}, 4: {2 * m}}  # step n + 1: after n - 1 updates
    assert [r["rollout/staleness"] for r in records[1:]] == [0, m, m, m]
    # the evaluation's weights and the first step's; then one hand-over before each update; and the last evaluation's
    assert loads == [(0, False), (m, False), (2 * m, False), (4 * m, False)]


def test_seconds_of_waiting_and_sampling_are_recorded():
    run, records = clockwork(settings_of(True, "train.steps=3"), Clockwork())
    trained(run)
    for row in records[2:]:
        assert 0 <= row["time/wait_s"] <= row["time/rollout_s"] <= row["time/step_s"]
        assert row["time/wait_share"] == row["time/wait_s"] / row["time/step_s"]
        assert row["time/sampling_s"] >= row["time/grading_s"] >= 0
        assert row["time/sync_s"] >= 0
    assert "time/wait_s" not in records[1]  # nothing had been sampled ahead of the first step
    run, records = clockwork(settings_of(False, "train.steps=2"), Clockwork())
    trained(run)
    assert not {"time/wait_s", "time/wait_share", "time/sampling_s"} & records[2].keys()
    assert records[2]["time/sync_s"] >= 0


class Gate(Source):
    """Lets the sampling go on only once somebody waits for it, and notes who."""

    def open(self, who):
        self.sampler.engine.notes.append(who)
        self.sampler.engine.go.set()

    def take(self, step):
        self.open(f"take {step}")
        return super().take(step)

    def settled(self):
        self.open("evaluation waits")
        super().settled()

    def state(self):
        self.open("checkpoint waits")
        return super().state()


@dataclass
class Gated(Clockwork):
    """In the thread, samples only once the gate is open, and then gives whoever does not wait the time to show it."""

    go: threading.Event = field(default_factory=threading.Event)
    impatient: threading.Event = field(default_factory=threading.Event)
    notes: list[str] = field(default_factory=list)

    def note(self, what):
        """Something that must not happen while the thread samples."""
        self.notes.append(what)
        self.impatient.set()

    def sample(self, prompts, seeds, sampling=None):
        if in_thread():
            self.notes.append("sampling begins")
            assert self.go.wait(LIMIT_S), "nobody waited for the rollouts"
            self.impatient.clear()
            self.impatient.wait(0.2)  # where all is right nothing comes, and the wait changes nothing
            self.notes.append("sampling ends")
        elif sampling is not None and sampling.temperature:
            self.note("evaluation samples")
        yield from super().sample(prompts, seeds, sampling)


def test_an_evaluation_and_a_checkpoint_wait_for_the_sampling():
    engine = Gated()
    begun = threading.Event()
    sample = engine.sample

    def noticed(*arguments):
        if in_thread():
            begun.set()
        return sample(*arguments)

    def saved(step, state):
        engine.note(f"saved {step}, {0 if state is None else len(state['rollouts'])} ahead")

    engine.sample = noticed
    run, _ = clockwork(
        settings_of(True, "train.steps=3", "train.eval_every=2"), engine, source=Gate,
        save=lambda step: saved(step, None if step == 3 else run.source.state()),
        save_due=lambda step, metrics: step == 1,
    )  # fmt: skip

    def update(step):
        if step < 3:
            assert begun.wait(LIMIT_S)
            begun.clear()
            engine.go.clear()
        engine.note(f"update {step}")

    # the gate is shut before each sampling in the thread begins to wait for it: take opens it, the update shuts it
    begin = run.source.begin

    def shut_and_begin(step):
        engine.go.clear()
        begin(step)

    run.source.begin = shut_and_begin
    trained(run, update)
    assert engine.notes == [
        "evaluation waits", "evaluation samples",  # before the first step nothing is sampled ahead
        "take 1", "sampling begins", "update 1", "checkpoint waits", "sampling ends", "saved 1, 8 ahead",
        "take 2", "sampling begins", "update 2", "evaluation waits", "sampling ends", "evaluation samples",
        "take 3", "update 3", "evaluation waits", "evaluation samples", "saved 3, 0 ahead",
    ]  # fmt: skip


class Broken(Exception):
    """Of the engine."""


def failing_at(count, error):
    """An engine whose ``count``-th sampling in the thread raises."""
    calls = iter(range(1, 100))

    def on_sample(training):
        if in_thread() and next(calls) == count:
            raise error

    return Clockwork(on_sample=on_sample)


@pytest.mark.parametrize("error", [Broken("it is gone"), UserError("engine.url: it is gone"), MemoryError()])
@pytest.mark.parametrize(
    ("words", "save_due", "recorded", "saved"),
    [
        ((), False, [0, 1, 2], []),  # the rollouts of step 3 are wanted at step 3
        ((), True, [0, 1, 2], [1]),  # or by the checkpoint of step 2, which holds them
        (("train.eval_every=2",), False, [0, 1], []),  # or by the evaluation of step 2, which wants the engine
    ],
)
def test_a_failure_of_the_engine_is_raised_by_whoever_waits_first(error, words, save_due, recorded, saved):
    kept = []
    run, records = clockwork(
        settings_of(True, *words), failing_at(2, error),
        save=lambda step: kept.append((run.source.state(), step)), save_due=lambda step, metrics: save_due,
    )  # fmt: skip
    with pytest.raises(type(error)):
        trained(run)
    assert [r["step"] for r in records] == recorded
    assert [step for _, step in kept] == saved


def test_a_failure_of_the_hand_over_is_raised_at_once():
    def refuse(version):
        if version:
            raise UserError("engine.url: the update of the weights failed")

    run, records = clockwork(settings_of(True), Clockwork(on_load=refuse))
    with pytest.raises(UserError, match="the update of the weights failed"):
        trained(run)
    assert [r["step"] for r in records] == [0, 1]


@dataclass
class Endless(CopyingEngine):
    """In the thread, waits after its first response until it is asked to end; the test's limit ends it otherwise."""

    def sample(self, *arguments, **more):
        responses = super().sample(*arguments, **more)
        if in_thread():
            BEGUN.set()
            never = threading.Event()
            yield next(responses)
            for _ in range(int(LIMIT_S / 0.01)):
                if self.asked_to_end():
                    return
                never.wait(0.01)
            GIVEN.append("too many")
        yield from responses


BEGUN = threading.Event()
GIVEN: list[str] = []


def test_a_run_whose_update_fails_does_not_wait_for_the_rollouts_ahead(tmp_path, monkeypatch):
    """The whole run, as a command starts it: its error is the update's, and the engine is told that it is over."""
    BEGUN.clear()
    GIVEN.clear()

    def learn(*_):
        assert BEGUN.wait(LIMIT_S)
        raise Broken("in the update")

    monkeypatch.setattr("rlrt.training.loop.learn", learn)
    words = ("engine._target_=tests.sampling.test_ahead.Endless", *COPYING[1:], "train.sample_ahead=true")
    made = settings(*SMALL, "train.steps=3", *words)
    with pytest.raises(Broken, match="in the update"):
        execute(made, tmp_path, lambda line: None, lambda: False, progress=False)
    assert GIVEN == []
    assert json.loads((tmp_path / "summary.json").read_text())["state"] == "failed"


def test_the_engine_is_not_released_while_it_samples(tmp_path, monkeypatch):
    """An engine of one's own may release memory whatever its keys say."""
    released = []
    monkeypatch.setattr(CopyingEngine, "release", lambda self: released.append(1))
    for ahead in ("false", "true"):
        execute(
            settings(*SMALL, *COPYING, "train.steps=1", f"train.sample_ahead={ahead}"), tmp_path / ahead,
            lambda line: None, lambda: False, progress=False,
        )  # fmt: skip
    assert len(released) == 2  # without sample_ahead: for the probe of the teacher, and for the update


def test_a_stop_saves_what_is_sampled_ahead_and_an_end_within_a_step_saves_nothing_that_could_not_be_repeated():
    kept: list[Any] = []
    save = lambda step: kept.append((step, run.source.state()))  # noqa: E731
    asked = iter([False, True])
    run, _ = clockwork(settings_of(True), Clockwork(), save=save, stop_requested=lambda: next(asked))
    assert trained(run) == 2
    assert [(step, state["staleness"], len(state["rollouts"])) for step, state in kept] == [(2, 2, 8)]

    kept.clear()
    engine = failing_at(2, Interrupted())  # as the sampler ends where the clock says that the step's end comes too late
    run, records = clockwork(settings_of(True), engine, save=save)
    assert trained(run) == 2
    assert [r["step"] for r in records] == [0, 1, 2]
    assert kept == []


def test_rollouts_sampled_ahead_are_used_again_after_a_kill():
    """The life after a kill has the rollouts of the checkpoint, samples none of them again, and the record of a run that was
    not killed."""
    words = ("train.steps=5", "train.minibatches=3")
    trace: dict[int, Any] = {}
    samplings = []

    def life(**more):
        engine = Clockwork(on_sample=lambda training: samplings.append(training))
        run, records = clockwork(
            settings_of(True, *words), engine,
            keep_samples=lambda step, rollouts, result: trace.update({step: [plain_of(r) for r in rollouts]}), **more,
        )  # fmt: skip
        return run, records

    run, whole = life()
    trained(run)
    expected = dict(trace)
    states = {}
    run, _ = life(
        save=lambda step: states.update({step: json.dumps(run.source.state())}), save_due=lambda step, m: step == 2
    )

    def killed(step):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(run, killed)
    assert list(states) == [2]
    trace.clear(), samplings.clear()
    run, again = life(position=2, pending=json.loads(states[2]))
    assert trained(run) == 5
    assert {step: rows for step, rows in expected.items() if step > 2} == trace
    assert samplings.count(True) == 2  # of steps 4 and 5
    assert [r["rollout/staleness"] for r in again] == [r["rollout/staleness"] for r in whole[3:]] == [3, 3, 3]


def plain_of(rollout):
    return rollout.seed, rollout.generation.token_ids, rollout.text, rollout.prompt.id


DIE = threading.Event()


@dataclass
class Mortal(CopyingEngine):
    """Where ``DIE`` is set, ends its process by SIGKILL in the thread, in the middle of the third sampling ahead."""

    ahead: int = field(default=0, init=False)

    def sample(self, *arguments, **more):
        self.ahead += in_thread()
        for n, one in enumerate(super().sample(*arguments, **more)):
            if DIE.is_set() and self.ahead == 3 and n == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield one


def test_a_run_killed_while_it_samples_ahead_ends_as_one_that_was_not(tmp_path):
    """The embedded model, two mini-batches; the kernel's SIGKILL in a forked process, then the same command."""
    words = (
        *SMALL, "train.steps=5", "train.sample_ahead=true", "train.save_every=2", "train.minibatches=2", "train.lr=1e-3",
        "engine._target_=tests.sampling.test_ahead.Mortal", *COPYING[1:],
    )  # fmt: skip

    def lived(folder):
        return execute(settings(*words), folder, lambda line: None, lambda: False, progress=False)

    pid = os.fork()
    if pid == 0:
        DIE.set()
        lived(tmp_path / "cut")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert numbers(tmp_path / "cut")[-1]["step"] in (2, 3)
    assert lived(tmp_path / "whole")["state"] == lived(tmp_path / "cut")["state"] == "finished"
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
