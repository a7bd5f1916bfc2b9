"""Whether the teacher's context helps: hand-worked numbers, and teachers that help, do not help, and have no room."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from rlrt.distributed.world import ALONE
from rlrt.execution import probe
from rlrt.execution.build import prompt_builder
from rlrt.execution.execute import execute, prepared
from rlrt.execution.probe import ALARMS, ANSWERS, Verdicts, numbers, probed_context
from rlrt.methods.contexts import FromData, Reference, Sibling
from rlrt.methods.method import Credit
from rlrt.sampling.sampler import Sampler
from tests.helpers import ONE_STEP, rollout, settings

FOREIGN = "{prompt}\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question."
"""A template of words, which the embedded model has never seen."""
QUIET = ("tracking=none", "eval.samples_per_prompt=2", "eval.prompts=2", "train.eval_every=0")


@dataclass(frozen=True)
class Nothing(FromData):
    """A context without a text: the teacher sees what the student saw."""

    def text_of(self, prompt):
        return ""


@pytest.fixture(scope="module")
def world():
    """Settings, learner, sampler and the student's rollouts of 16 prompts of the embedded model."""
    made = settings("train.prompts_per_step=8", *QUIET)
    made, parts, learner = prepared(made, ALONE)
    sampler = Sampler(parts.engine, learner.policy, learner.builder, parts.task, made.seed)
    prompts = probe.prompts_for(made, parts.task)
    assert len(prompts) == 16
    return made, learner, sampler, probe.students(sampler, prompts, 8)


def measured(world, context, **changes):
    _, learner, sampler, rollouts = world
    verdicts = probe.measured(dataclasses.replace(learner, **changes), sampler, rollouts, context, lambda: None)
    return numbers(rollouts, verdicts, 16)


def rung(found):
    return [a for a in ALARMS if a.metric in found and a.rings(found[a.metric])]


def verdicts_of(right, gap, mask, too_long=0):
    has_B = torch.tensor([any(row) for row in mask])
    return Verdicts(has_B, too_long, torch.tensor(right, dtype=torch.float64), torch.tensor(gap), torch.tensor(mask))


def test_accuracy_and_gaps_by_hand():
    """Three of six rollouts have a teacher: right (.5 + .5 + 1) / 3 with it, (1 + 0 + 0) / 3 without. D: 2 and 4 nats on the
    two tokens of the correct one; 1 on one token and 4 on two tokens of the wrong ones."""
    nan = float("nan")
    rollouts = [rollout(p, g, correct) for p, g, correct in ((0, 0, True), (0, 1, False), (1, 0, True), (1, 1, False))]
    rollouts += [rollout(2, 0, False), rollout(2, 1, False)]
    gap = [[2.0, 4.0], [1.0, 9.0], [0.0, 0.0], [4.0, 4.0], [0.0, 0.0], [0.0, 0.0]]
    mask = [[True, True], [True, False], [False, False], [True, True], [False, False], [False, False]]
    found = numbers(rollouts, verdicts_of([0.5, 0.5, nan, 1.0, nan, nan], gap, mask, too_long=1), 3)
    assert found == pytest.approx(
        {
            "teacher/probe_prompts": 3.0,
            "teacher/probe_share": 3 / 6,
            "teacher/probe_too_long_share": 1 / 6,
            "teacher/probe_with": 2 / 3,
            "teacher/probe_without": 1 / 3,
            "teacher/probe_help": 1 / 3,
            "teacher/probe_gap_correct": 3.0,
            "teacher/probe_gap_wrong": 3.0,
            "teacher/probe_gap_difference": 0.0,
        }
    )  # and no interval over three prompts


@pytest.mark.parametrize(("right", "helps"), [(1.0, 1.0), (0.5, 0.0), (0.0, -1.0)])
def test_eight_prompts_give_an_interval_and_a_verdict(right, helps):
    """Each prompt: one rollout right, one wrong, and D alike on both. The teacher is right always, half the time, or never:
    by .5 more often, as often, by .5 less often, in every prompt, so the intervals have no width."""
    rollouts = [rollout(p, g, g == 0) for p in range(8) for g in range(2)]
    found = numbers(rollouts, verdicts_of([right] * 16, [[0.3]] * 16, [[True]] * 16), 8)
    for name in ("help", "help_low", "help_high"):
        assert found[f"teacher/probe_{name}"] == pytest.approx(right - 0.5)
    assert found["teacher/probe_gap_difference_high"] == pytest.approx(0.0, abs=1e-6)
    assert found["teacher/probe_helps"] == helps
    assert [a.sentence.split()[1] for a in rung(found)[:1]] == {1.0: [], 0.0: ["shows"], -1.0: ["teacher"]}[helps]


def test_a_lower_gap_on_correct_rollouts_shows_help_too():
    """D = -.2 on correct and +.1 on wrong rollouts of every prompt, and as many right with a context as without."""
    rollouts = [rollout(p, g, g == 0) for p in range(8) for g in range(2)]
    gap = [[-0.2 if r.grade.correct else 0.1] for r in rollouts]
    found = numbers(rollouts, verdicts_of([0.5] * 16, gap, [[True]] * 16), 8)
    assert found["teacher/probe_gap_difference_high"] == pytest.approx(-0.3)
    assert found["teacher/probe_helps"] == 1.0


def test_choosing_rollouts_by_their_siblings_favours_no_side(monkeypatch):
    """Every answer is right with probability .3, with a context or without: of groups of two, the rollouts with a correct
    sibling are right as often. (A mean over prompts with a context would be p / (2 - p) = .18 without.)"""
    monkeypatch.setattr(probe, "FEWEST", 10_000)  # an interval over 6,000 prompts takes seconds
    chance = random.Random(0)
    rollouts = [rollout(p, g, chance.random() < 0.3, text=str(g)) for p in range(6000) for g in range(2)]
    has = [text is not None for text in Sibling().texts(rollouts)]
    right = [float(chance.random() < 0.3) if h else float("nan") for h in has]
    found = numbers(rollouts, verdicts_of(right, [[0.0]] * 12000, [[h] for h in has]), 6000)
    assert found["teacher/probe_without"] == pytest.approx(0.3, abs=0.02)
    assert found["teacher/probe_with"] == pytest.approx(0.3, abs=0.02)


def test_a_context_that_helps(world):
    found = measured(world, Sibling())
    assert found["teacher/probe_share"] > 0.8
    assert found["teacher/probe_help_low"] > 0.2
    assert found["teacher/probe_gap_correct"] < found["teacher/probe_gap_wrong"]
    assert found["teacher/probe_helps"] == 1.0
    assert not rung(found)


def test_a_context_that_the_teacher_cannot_read(world):
    made, learner, _, _ = world
    foreign = dataclasses.replace(made, teacher=dataclasses.replace(made.teacher, template=FOREIGN))
    found = measured(world, Reference(), builder=prompt_builder(foreign, learner.policy.tokenizer))
    assert found["teacher/probe_share"] == 1.0
    assert found["teacher/probe_help_high"] < -0.1
    assert found["teacher/probe_gap_correct"] > 1.0
    assert "worse" in rung(found)[0].sentence


def test_a_context_without_a_text_neither_helps_nor_hurts(world):
    found = measured(world, Nothing())
    assert found["teacher/probe_gap_correct"] == found["teacher/probe_gap_wrong"] == 0.0
    assert found["teacher/probe_help_low"] < 0 < found["teacher/probe_help_high"]
    assert found["teacher/probe_helps"] == 0.0
    assert "nothing shows" in rung(found)[0].sentence


def test_a_context_that_has_no_room(world):
    found = measured(world, Reference(), max_context_tokens=5)
    assert found == {"teacher/probe_prompts": 16.0, "teacher/probe_share": 0.0, "teacher/probe_too_long_share": 1.0}
    assert (
        probe.sentence(found) == "teacher: 16 prompts, 0% of their rollouts have a context, 100% one that is too long"
    )


def test_each_prompt_of_the_teacher_is_asked_once_in_lots_that_fit(world, monkeypatch):
    """There may be ``max_rows`` rows of a student's prompt and a response at once, and fewer of the teacher's."""
    _, learner, sampler, rollouts = world
    engine, lots = sampler.engine, []
    sample = engine.sample

    def noted(prompts, seeds, sampling=None):
        lots.append([tuple(p) for p in prompts])
        assert {len(s) for s in seeds} == {ANSWERS}
        return sample(prompts, seeds, sampling)

    monkeypatch.setattr(engine, "sample", noted, raising=False)
    monkeypatch.setattr(engine, "max_rows", 16)
    probe.measured(learner, sampler, rollouts, Sibling(), lambda: None)
    asked = Counter(ids for lot in lots for ids in lot)
    assert set(asked.values()) == {1}
    assert 1 < max(map(len, lots)) < 16 // ANSWERS
    longest = max(map(len, asked)) + engine.max_new_tokens
    student = max(len(r.prompt_ids) for r in rollouts) + engine.max_new_tokens
    assert max(map(len, lots)) * ANSWERS * longest <= 16 * student
    lots.clear()
    monkeypatch.setattr(engine, "longest", lambda: longest - 1, raising=False)
    probe.measured(learner, sampler, rollouts, Sibling(), lambda: None)
    left = {ids for lot in lots for ids in lot}
    assert left == {ids for ids in asked if len(ids) + engine.max_new_tokens < longest}


class Contrast(Credit):
    needs_teacher = True

    def __init__(self, *names):
        self._names = names

    def contexts(self):
        return self._names


def test_the_context_that_is_asked_about_is_one_that_should_help():
    made = settings("method=rlcsd")
    method, teacher = made.method, made.teacher
    assert probed_context(method, teacher) == 0
    assert probed_context(settings("method=grpo").method, teacher) is None
    assert probed_context(dataclasses.replace(method, credit=Contrast("wrong:0", "correct")), teacher) == 1
    assert probed_context(dataclasses.replace(method, credit=Contrast("wrong:0", "wrong:1")), teacher) is None
    wrong = settings("method=rlrt", "teacher.context=wrong_sibling")
    assert probed_context(wrong.method, wrong.teacher) is None
    assert probed_context(wrong.method, teacher) == 0


def run(folder, *overrides, say=lambda line: None):
    made = settings(*ONE_STEP, "tracking=none", "train.rollouts_per_prompt=4", *overrides)
    execute(made, folder, say, lambda: False, progress=False)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_probe(records):
    names = ("time/", "teacher/probe_")
    return [{k: v for k, v in row.items() if not k.startswith(names)} for row in records]


def test_a_run_is_probed_once_and_otherwise_as_it_would_be(tmp_path, monkeypatch):
    said, calls = [], []
    students = probe.students
    monkeypatch.setattr(probe, "students", lambda *a: calls.append(a) or students(*a))
    probed = run(tmp_path / "probed", "train.steps=2", say=said.append)
    assert len(calls) == 1
    assert len(calls[0][1]) == 4  # the prompts of two steps, not 32
    assert "teacher/probe_share" in probed[0]
    assert probed[0]["time/probe_s"] > 0
    assert not any("probe" in name for row in probed[1:] for name in row)
    assert (
        len([line for line in said if re.match(r"teacher: 4 prompts, \d+% of their rollouts have a context", line)])
        == 1
    )
    silent = run(tmp_path / "silent", "train.steps=2", "teacher.probe_prompts=0")
    assert not any("probe" in name for row in silent for name in row)
    assert without_probe(probed) == silent_of_time(silent)
    assert not any("probe" in name for row in run(tmp_path / "grpo", "method=grpo") for name in row)
    assert len(calls) == 1


def silent_of_time(records):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in records]


def test_a_run_that_goes_on_does_not_ask_again_and_one_that_begins_anew_does(tmp_path, monkeypatch):
    calls = []
    students = probe.students
    monkeypatch.setattr(probe, "students", lambda *a: calls.append(a) or students(*a))
    stops = iter([True])
    made = settings(*ONE_STEP, "tracking=none", "train.rollouts_per_prompt=4", "train.steps=2")
    first = execute(made, tmp_path / "run", lambda line: None, lambda: next(stops, False), progress=False)
    assert (first["state"], first["step"], len(calls)) == ("interrupted", 1, 1)
    second = execute(made, tmp_path / "run", lambda line: None, lambda: False, progress=False)
    assert (second["state"], second["step"], len(calls)) == ("finished", 2, 1)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [sum("teacher/probe_share" in row for row in records), "teacher/probe_share" in records[0]] == [1, True]


def test_an_alarm_rings_at_the_start(tmp_path, caplog):
    words = ["train.prompts_per_step=4", "teacher.context=reference", f"teacher.template={json.dumps(FOREIGN)}"]
    row = run(tmp_path / "run", *words)[0]
    assert row["teacher/probe_helps"] == -1.0
    warnings = [r.getMessage() for r in caplog.records if "teacher/probe_helps" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("step 0: the teacher answers worse with its context than the student does without")
