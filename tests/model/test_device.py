"""The device of a run, on a pretended card: which one, in which precision, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from rlrt.errors import UserError
from rlrt.execution.build import build_learner
from rlrt.model import device
from rlrt.model.device import (
    compute_dtype,
    cuda_problem,
    description,
    refuse_large_on_cpu,
    refuse_too_large,
    resolve_device,
)
from tests.forked import forked
from tests.helpers import ONE_STEP, settings

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def cards(monkeypatch):
    """Two cards that torch says it can use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")


def test_auto_is_a_card_for_each_rank_where_there_are_cards(cards):
    assert [resolve_device("auto", rank) for rank in range(3)] == [CARD, torch.device("cuda", 1), CARD]
    assert resolve_device("cpu") == CPU
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


def test_auto_is_the_cpu_where_there_is_none():
    assert resolve_device("auto") == CPU


def test_precision_follows_the_device():
    assert [compute_dtype("auto", d) for d in (CPU, CARD)] == [torch.float32, torch.bfloat16]
    assert [compute_dtype(name, CARD) for name in ("float32", "bfloat16")] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((8, 6), ["sm_80", "sm_90"], True),  # the same major version
        ((12, 0), ["sm_90", "compute_90"], True),  # compiled on the card
        ((6, 1), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
    ],
)
def test_a_card_that_torch_was_not_built_for_is_said(cards, monkeypatch, capability, built_for, fits):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    assert (cuda_problem() == "") == fits
    if not fits:
        assert f"compute capability {capability[0]}.{capability[1]}" in cuda_problem()
        with pytest.raises(UserError, match=r"^device: NVIDIA H100.* set device=cpu\.$"):
            device.check_cuda(CARD)


def test_a_driver_without_a_torch_that_can_use_it_is_said(monkeypatch):
    assert cuda_problem() == ""
    monkeypatch.setattr(device, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda_problem() == f"torch {torch.__version__} was built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def old_driver():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).\nPlease update")

    monkeypatch.setattr(torch.cuda, "init", old_driver)
    assert cuda_problem() == "The NVIDIA driver on your system is too old (found version 12040)."


def test_a_large_model_is_not_trained_on_a_cpu_by_accident():
    with pytest.raises(
        UserError, match=r"1,720 million weights .* the CPU \(this machine has no CUDA GPU\).*device=cpu"
    ):
        refuse_large_on_cpu("Qwen/Qwen3-1.7B", 1_720_000_000, "auto")
    refuse_large_on_cpu("Qwen/Qwen3-1.7B", 1_720_000_000, "cpu")
    refuse_large_on_cpu("small", 135_000_000, "auto")


def test_a_large_model_on_a_card_is_taken(cards):
    refuse_large_on_cpu("Qwen/Qwen3-1.7B", 1_720_000_000, "auto")


def test_the_size_is_known_before_weights_are_loaded(monkeypatch):
    monkeypatch.setattr(device, "LARGEST_ON_CPU", 100_000)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match="embedded has 0 million weights"):
        build_learner(settings("device=auto"))


def test_the_line_that_a_run_says(cards):
    learner = build_learner(settings())
    line = description(learner.policy.model, torch.float32, 1)
    assert (
        line == "device cpu (1 threads), float32, attention by torch's SDPA on packed rows, quick decoding, 1 process"
    )
    learner.policy.model.config._attn_implementation = "eager"
    assert "attention by eager on padded rows, plain decoding, 4 processes" in description(
        learner.policy.model, torch.bfloat16, 4
    )


def test_a_run_says_where_it_computes_on_the_terminal_and_in_its_log(tmp_path):
    done = forked("run", [*ONE_STEP, "tracking=none"], tmp_path)
    assert done.stdout.startswith("device cpu"), done.stdout
    (log,) = (tmp_path / "outputs" / "runs").glob("*/log.txt")
    assert "device cpu" in log.read_text()
    assert "attention by torch's SDPA on packed rows, quick decoding" in log.read_text()
    manifest = json.loads((log.parent / "manifest.json").read_text())
    assert {*manifest["ingredients"]} == {"contents", "code", "sources", "versions"}
    assert len(manifest["ingredients"]["contents"]["model.path"]) == 64
    assert manifest["paths"] == {"attention": "packed", "decoding": "quick", "reasons": {}}


@pytest.mark.parametrize(("each", "refused"), [(4, False), (16, True), (16 / 8, False)])
def test_a_model_that_no_setting_fits_on_its_card(monkeypatch, each, refused):
    """8.19e9 weights on 80 GB: 32.8 GB of weights fit, 131 GB with gradients and moments do not, an eighth of them does."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    card = torch.device("cuda", 0)
    if refused:
        with pytest.raises(
            UserError, match=r"Qwen/Qwen3-8B has 8,191 million .* 131\.1 GB, and NVIDIA H100 has 80\.0 GB"
        ):
            refuse_too_large("Qwen/Qwen3-8B", 8_190_735_360, each, card)
    else:
        refuse_too_large("Qwen/Qwen3-8B", 8_190_735_360, each, card)
    refuse_too_large("Qwen/Qwen3-8B", 8_190_735_360, each, torch.device("cpu"))
