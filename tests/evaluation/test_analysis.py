"""The paper's analyses: divergences and overlaps by hand, interventions that are functions of their seeds, the command."""

from __future__ import annotations

import csv
import math
import subprocess
import sys

import pytest
import torch

from rlrt.evaluation.analysis import PLACES, by_difficulty, intervene, jensen_shannon, places, shift, top_overlap
from rlrt.evaluation.asymmetry import CONTEXTS
from rlrt.execution.build import build_learner, suites_of
from rlrt.execution.execute import execute
from rlrt.execution.parts import parts_of
from rlrt.model.load import load
from rlrt.training.batch import student_rows
from rlrt.types import Generation, Grade, Prompt, Rollout
from tests.forked import forked
from tests.helpers import settings

ANSWERS = ("reference", "answer")


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_jensen_shannon_by_hand_and_its_bounds():
    p, q = logs([0.5, 0.5], [1.0 - 1e-12, 1e-12], [0.2, 0.8]), logs([0.5, 0.5], [1e-12, 1.0 - 1e-12], [0.6, 0.4])
    middle = (0.4, 0.6)
    by_hand = sum(a * math.log(a / m) for a, m in zip((0.2, 0.8), middle, strict=True))
    by_hand += sum(b * math.log(b / m) for b, m in zip((0.6, 0.4), middle, strict=True))
    assert jensen_shannon(p, q).tolist() == pytest.approx([0.0, math.log(2), by_hand / 2], abs=1e-7)
    assert torch.allclose(jensen_shannon(p, q), jensen_shannon(q, p))


def test_top_overlap_by_hand():
    p, q = logs([0.4, 0.3, 0.2, 0.1]), logs([0.3, 0.1, 0.2, 0.4])
    # top-1: {0} and {3}; top-2: {0, 1} and {3, 0}; top-3: {0, 1, 2} and {3, 0, 2}; top-4: all
    assert top_overlap(p, q, 4).tolist() == [pytest.approx([0.0, 0.5, 2 / 3, 1.0])]


def test_difficulty_is_the_papers():
    def group(n, correct):
        one = Generation([1], torch.zeros(1), torch.zeros(1), False)
        return [Rollout(Prompt(f"p{n}", "q", None), n, g, 0, [0], one, "x", Grade(g < correct, 0.0)) for g in range(8)]

    rollouts = [r for n in range(9) for r in group(n, n)]
    hard, easy = by_difficulty(rollouts, 8)
    assert [p.id for p in hard] == ["p0", "p1", "p2"]
    assert [p.id for p in easy] == ["p5", "p6", "p7"]


def test_places():
    asymmetry = torch.tensor([0.3, 0.1, 0.9, 0.2])
    assert places(asymmetry, 7) == {"argmax": 2, "random": 3, "argmin": 1}


@pytest.fixture(scope="module")
def world():
    made = settings("method=rlrt", "eval.prompts=48")
    parts = parts_of(made)
    parts.task.prepare()
    learner = build_learner(made)
    (suite,) = suites_of(made, parts, learner.policy, learner.builder)
    return learner, suite


def test_a_model_has_not_moved_from_itself_and_has_from_another(world):
    learner, suite = world
    rows = student_rows(suite.sampler(suite.prompts[:8], 4, ("x",)))
    model = learner.policy.model
    same = shift(model, model, rows, 1.0, 4096)
    assert float(same.js_N.max()) < 1e-6
    assert len(same.js_N) == sum(len(r.response_ids) for r in rows)
    assert same.overlap_MK.shape == (0, 20)
    other, _ = load("embedded", None, "sdpa")
    with torch.no_grad():
        for weights in other.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    moved = shift(model, other, rows, 1.0, 4096)
    assert float(moved.js_N.max()) <= math.log(2) + 1e-6
    assert len(moved.promoted_M) == len(moved.overlap_MK) == int((moved.js_N > 0.1).sum()) > 0
    assert torch.allclose(shift(model, other, rows, 1.0, 200).js_N.sort().values, moved.js_N.sort().values, atol=1e-5)


def test_interventions_turn_some_verdicts_and_are_functions_of_their_seeds(world):
    _, suite = world
    hard, easy = by_difficulty(suite.sampler(suite.prompts, 8, ("difficulty",)), 8)
    assert hard
    assert easy
    one = intervene(suite.sampler, hard, 8, True, [], 16384)
    assert one == intervene(suite.sampler, hard, 8, True, [], 2000)
    assert list(one) == list(PLACES)
    assert all(0 < turned < tried for turned, tried in one.values())
    assert len({tried for _, tried in one.values()}) == 1
    put_in = intervene(suite.sampler, easy, 8, False, [5, 6, 7], 16384)
    assert put_in != intervene(suite.sampler, easy, 8, False, [], 16384)


def test_the_command_on_two_runs(tmp_path):
    small = ("train.steps=1", "train.prompts_per_step=4", "train.eval_every=0", "train.save_every=1", "eval.prompts=24",
             "tracking=none")  # fmt: skip
    for name in ("grpo", "rlrt"):
        execute(
            settings(f"method={name}", *small), tmp_path / "s" / name, lambda line: None, lambda: False, progress=False
        )
    done = subprocess.run(
        [sys.executable, "-m", "rlrt.analyze", "s", "eval.prompts=32"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("grpo", "rlrt"):
        rows = list(csv.DictReader((tmp_path / "s" / name / "analysis" / "intervention.csv").read_text().splitlines()))
        assert {int(r["step"]) for r in rows} == {0, 1}
        assert {r["place"] for r in rows} == set(PLACES)
        moved = list(csv.DictReader((tmp_path / "s" / name / "analysis" / "shift.csv").read_text().splitlines()))
        shares = [float(r["share_of_positions"]) for r in moved]
        assert shares == sorted(shares, reverse=True)
        passes = list(csv.DictReader((tmp_path / "s" / name / "analysis" / "pass_at_k.csv").read_text().splitlines()))
        assert {r["policy"] for r in passes} == {"start", "last"}
        carried = list(csv.DictReader((tmp_path / "s" / name / "analysis" / "asymmetry.csv").read_text().splitlines()))
        assert {r["policy"] for r in carried} == {"start", "last"}
        assert {r["context"] for r in carried} == {*CONTEXTS} - {"hint"}  # countdown has no hints
        related = (tmp_path / "s" / name / "analysis" / "asymmetry_correlation.csv").read_text().splitlines()
        # countdown's questions state the answer, so the teacher is shown the solution instead
        same = [
            float(r["correlation"]) for r in csv.DictReader(related) if (r["context"], r["other_context"]) == ANSWERS
        ]
        assert same == pytest.approx([1.0] * 4)
    first = (tmp_path / "s" / "grpo" / "analysis" / "intervention.csv").read_text().splitlines()[1:7]
    assert (
        first == (tmp_path / "s" / "rlrt" / "analysis" / "intervention.csv").read_text().splitlines()[1:7]
    )  # one start
    names = {p.name for p in (tmp_path / "s" / "analysis").iterdir()}
    assert {
        "analysis_shift.svg",
        "analysis_asymmetry.svg",
        "analysis_wrong_to_right.png",
        "analysis_pass_at_k.svg",
    } <= names
    report = forked("report", ["s"], tmp_path)
    assert report.returncode == 0
    assert "<h2>Analyses</h2>" in (tmp_path / "s" / "report.html").read_text()


def test_a_run_without_a_checkpoint_is_one_sentence(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "r" / "manifest.json").write_text("{}")
    done = forked("analyze", ["r"], tmp_path)
    assert done.returncode == 2
    assert "expected a checkpoint, found none" in done.stderr
