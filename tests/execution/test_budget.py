"""``train.token_budget=auto``: the largest micro-batch that fits."""

from __future__ import annotations

import logging

import pytest

from rlrt.config.schema import LARGEST_BUDGET
from rlrt.errors import UserError
from rlrt.execution.memory import budget
from rlrt.execution.memory.estimate import Layout, Lengths, estimate
from rlrt.execution.memory.free import SHARING, resident, share_of_device
from rlrt.execution.memory.sizes import sizes_of
from rlrt.model.load import load
from tests.forked import forked
from tests.helpers import ONE_STEP, settings

LENGTHS, LAYOUT = Lengths(prompt=20, context=60), Layout("cpu")
LEAST = 60 + 48
"""The longest sequence: a teacher's prompt of 60 tokens and a response of 48."""


@pytest.fixture(scope="module")
def model():
    return load("embedded", None, "sdpa")[0]


def peak(model, tokens):
    made = settings(f"train.token_budget={tokens}", "train.prompts_per_step=64")
    return estimate(sizes_of(model.config), made, LENGTHS, LAYOUT).peak


def chosen(model, free):
    made = settings("train.token_budget=auto", "train.prompts_per_step=64")
    found, needed = budget.fitting(sizes_of(model.config), made, LENGTHS, LAYOUT, free)
    return found.train.token_budget, needed


@pytest.mark.parametrize("tokens", [LARGEST_BUDGET, 8192, 1024])
def test_the_largest_budget_is_taken_whose_estimate_fits(model, tokens):
    """With room for exactly this budget it is taken, with a byte less its half is; 90 % of what is free are room."""
    room = peak(model, tokens)
    assert chosen(model, -(-room * 10 // 9)) == (tokens, room)
    assert chosen(model, room)[0] < tokens


def test_at_least_one_sequence_is_taken_where_nothing_fits(model):
    assert chosen(model, 1) == (LEAST, peak(model, LEAST))


@pytest.mark.parametrize(
    ("free", "whole", "earlier", "tokens", "words"),
    [
        (10**12, 10**12, 0, 16384, "train.token_budget=auto is 16384 tokens: an estimated"),
        (10**12, 10**12, 512, 512, "which this run settled when it began, is 512 tokens: an estimated"),
        (1, 10**12, 9999, 9999, "which this run settled when it began, is 9999 tokens, and the run may need"),
        (1, 1, 9999, LEAST, "more than this device has; from here on its numbers differ in rounding"),
        (1, 1, 0, LEAST, "train.token_budget=auto is 108 tokens, and the run may need"),
        (10**12, 10**12, 20000, 16384, "train.token_budget=auto is 16384 tokens: an estimated"),
        (10**12, 10**12, -7, 16384, "train.token_budget=auto is 16384 tokens: an estimated"),
    ],
)
def test_a_run_that_goes_on_keeps_its_budget_whatever_is_free(
    model, free, whole, earlier, tokens, words, monkeypatch, caplog
):
    """Other micro-batches would round otherwise. Only what the device can never hold, and what no run notes, is not kept."""
    monkeypatch.setattr(budget, "share_of_device", lambda device: free)
    monkeypatch.setattr(budget, "whole_device", lambda device: whole)
    monkeypatch.setattr(budget, "lengths_of", lambda *arguments: (LENGTHS, ""))
    with caplog.at_level(logging.INFO, "rlrt"):
        came = budget.settled(settings("train.token_budget=auto"), model, [], None, 512, 1, earlier)
    assert came == tokens
    assert words in caplog.text


def test_other_texts_are_refused():
    with pytest.raises(UserError, match=r"train\.token_budget: expected a whole number or auto, got 'all'"):
        settings("train.token_budget=all")


def test_the_jobs_of_a_sweep_share_what_is_free(model, monkeypatch):
    """Each of 4 jobs may take a quarter; what this process holds already counts as free for it."""
    device = next(model.parameters()).device
    monkeypatch.setattr("rlrt.execution.memory.free.ram", lambda: (10**10, 10**11))
    monkeypatch.setattr("rlrt.execution.memory.free.resident", lambda: 2 * 10**9)
    assert share_of_device(device) == 12 * 10**9
    monkeypatch.setenv(SHARING, "4")
    assert share_of_device(device) == 3 * 10**9


def test_a_process_knows_what_it_holds():
    before = resident()
    held = bytearray(b"x" * 50_000_000)
    assert resident() - before > len(held) / 2


def test_a_run_notes_the_budget_that_it_took(tmp_path):
    """Manifest and log name the number; the config keeps what was typed."""
    more = [*ONE_STEP, "train.rollouts_per_prompt=2", "tracking=none", "teacher.probe_prompts=0"]
    done = forked("run", ["train.token_budget=auto", *more, "hydra.run.dir=auto"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"token_budget": 16384' in (tmp_path / "auto" / "manifest.json").read_text()
    assert "train.token_budget=auto is 16384 tokens: an estimated" in (tmp_path / "auto" / "log.txt").read_text()
    assert "token_budget: auto" in (tmp_path / "auto" / "config.yaml").read_text()
