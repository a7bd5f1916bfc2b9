"""What preflight says of a vLLM server."""

from __future__ import annotations

import types

import pytest

from rlrt.preflight.server import check_server
from tests.helpers import settings

ONE, TWO = (types.SimpleNamespace(nodes=n) for n in (1, 2))


def said(launcher, kind, *words):
    return [(f.state, f.sentence) for f in check_server(settings("engine=vllm_server", *words), launcher, kind)]


def test_a_server_of_the_runs_own_is_announced_with_its_cards():
    ((state, sentence),) = said(ONE, "cuda", "engine.start=true", "engine.gpus=2")
    assert (state, "the last 2 GPUs of each run's first machine" in sentence) == ("ok", True)
    assert "the last 1 GPU of" in said(ONE, "cuda", "engine.start=true")[0][1]
    assert "on the CPU" in said(ONE, "cpu", "engine.start=true")[0][1]
    states = said(TWO, "cuda", "engine.start=true", "engine.gpus=2")
    assert states[1] == (
        "warning",
        "2 GPUs of every node but the first will be idle: SLURM gives all nodes as many processes",
    )


@pytest.mark.parametrize(("transfer", "state"), [("file", "problem"), ("auto", "warning")])
def test_files_for_another_machine_need_a_shared_folder(transfer, state, tmp_path):
    words = ("engine.url=http://192.0.2.1:8000", f"engine.transfer={transfer}")
    ((found, sentence),) = said(ONE, "cuda", *words)
    assert (found, "engine.transfer_dir" in sentence) == (state, True)
    assert said(ONE, "cuda", *words, f"engine.transfer_dir={tmp_path}") == []


def test_other_engines_have_none():
    assert check_server(settings("engine=hf"), ONE, "cuda") == []
