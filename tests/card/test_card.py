"""Every method on a pretended card: operations never mix devices, the host seldom waits, attention takes the right kernels."""

from __future__ import annotations

import json
import select
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.helpers import METHODS

pytestmark = pytest.mark.card
LORA, KL = "method=rlrt model.lora=4", "method=grpo train.kl_coef=0.1"
CASES = [
    *(f"method={name}" for name in METHODS if name != "sft"),
    "method=sft train.rollouts_per_prompt=1",
    LORA,
    KL,
    "method=rlrt train.minibatches=2",
    "method=rlrt teacher.probe_prompts=4",
    "method=rlrt train.minibatches=2 teacher.weights=live",
    "method=sd teacher.weights=ema",
    "method=rlrt dtype=auto deterministic=true",
    "method=rlrt train.token_budget=150",
    "method=grpo plant=chunks",
]
WAITS_PER_TOKEN, WAITS_PER_PASS = 4, 16
"""Ceilings: waits of the host for the device in the engine for a decoded token, and elsewhere for a forward pass."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process that has loaded the guard and the package, and forks for every case (tests/card/__main__.py)."""
    errors = tmp_path_factory.mktemp("card") / "stderr"
    with (
        errors.open("w") as err,
        subprocess.Popen(
            [sys.executable, "-m", "tests.card"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True,
        ) as process,
    ):  # fmt: skip
        yield process, errors
        process.stdin.close()


@pytest.fixture
def outcome(server, tmp_path):
    """Runs a case to its end and returns what became of it."""
    process, errors = server

    def run(case):
        out = tmp_path / "outcome.json"
        process.stdin.write(json.dumps([str(out), case]) + "\n")
        process.stdin.flush()
        assert select.select([process.stdout], [], [], 300)[0], f"not over after 300 s: {case}"
        assert process.stdout.readline() == "0\n", errors.read_text()
        return json.loads(out.read_text())[case]

    return run


def waits(found, *folders):
    return sum(n for line, n in found["waits"].items() if line.split("/")[0] in folders)


@pytest.mark.parametrize("case", CASES)
def test_two_steps_and_a_checkpoint_between_them(outcome, case):
    found = outcome(case)
    assert "error" not in found, found
    assert found["steps"] == [0, 1, 2]
    assert found["finite"]
    assert found["operations"] > 1000
    assert waits(found, "engines") > 0  # the lines of the package are seen at all
    assert waits(found, "engines") <= WAITS_PER_TOKEN * found["tokens"]
    assert waits(found, "training", "model", "methods") <= WAITS_PER_PASS * found["passes"]
    assert set(found["kernels"]) == {"varlen flash"}  # no mask and no scores in memory in bfloat16


def test_what_lies_on_the_host_in_between_changes_no_number(outcome):
    """Moments during rollouts and scoring, and the inputs of layers until they are recomputed; a checkpoint in between."""
    words = "method=rlrt train.minibatches=2"
    plain = outcome(words)
    moved = outcome(f"{words} train.offload=optimiser model.offload_activations=true plant=small")
    assert "error" not in moved, moved
    assert moved["numbers"] == plain["numbers"]
    plainly, beside = ({line.split(":")[0] for line in found["to the host"]} for found in (plain, moved))
    assert plainly == {"execution/saver.py"}  # what a checkpoint is written from
    assert beside == {"execution/saver.py", "model/offload.py"}


def test_float32_is_said_to_keep_scores_in_memory(outcome):
    assert "plain, scores in memory" in outcome("method=grpo dtype=float32")["kernels"]


@pytest.mark.parametrize(("planted", "where"), [("index", "training/passes.py"), ("mask", "training/passes.py")])
def test_a_tensor_on_the_wrong_device_is_caught(outcome, planted, where):
    error = outcome(f"method=grpo plant={planted}")["error"]
    assert error.startswith("DeviceMix: ")
    assert f"in {where}" in error


def test_a_wait_for_every_token_is_caught(outcome):
    found = outcome("method=grpo plant=wait")
    assert waits(found, "training", "model", "methods") > WAITS_PER_PASS * found["passes"]
