"""A model sharded over two processes (gloo): its weights are those of a whole one, it sends half the bytes, and keeps nothing
gathered."""

from __future__ import annotations

import json

import pytest

from tests.distributed.test_several import ROOT, torchrun


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    code, output = torchrun(folder, "tests.distributed.sharded", str(folder / "found.json"), PYTHONPATH=ROOT)
    assert code == 0, output
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_bfloat16_is_gathered_float32_is_summed_and_the_gradient_is_as_near_as_that_of_replicas(found, model):
    numbers = found[model]
    assert numbers["fsdp"]["gathered"] == ["torch.bfloat16"]
    assert numbers["fsdp"]["summed"] == ["torch.float32"]
    assert numbers["fsdp"]["bytes"] * 2 == numbers["float32"]["bytes"] > 0
    assert numbers["ddp"]["bytes"] == 0  # the recorder sees FSDP2 alone
    # relative to the float32 gradient: about .01 of a bfloat16 run of replicas, measured; some norms are rounded besides
    assert 1e-4 < numbers["ddp"]["apart"] < 0.02
    assert numbers["fsdp"]["apart"] < 2 * numbers["ddp"]["apart"]
    assert numbers["fsdp"]["loss"] == pytest.approx(numbers["ddp"]["loss"], rel=0.01)


def test_autocast_copies_no_weight_that_was_gathered_in_bfloat16(found):
    assert found["copies"]["ddp"] >= 21  # 7 matrices of 3 layers, at least once
    assert found["copies"]["fsdp"] == 0


@pytest.mark.parametrize("model", ["tied", "untied", "adapters", "whole"])
def test_a_sharded_model_is_the_whole_one(found, model):
    """Weights, buffers, config, stop tokens; read by slices or (``whole``) by every process. New adapters are drawn alike."""
    numbers = found["weights"][model]
    assert numbers["equal"] == {"student": True, "teacher": True, "reference": True}
    assert numbers["stop"]
    assert numbers["config"]


def test_copies_are_shards_and_with_adapters_share_the_base(found):
    untied, adapted = found["weights"]["untied"], found["weights"]["adapters"]
    assert untied["own"] == {"teacher": untied["shard"], "reference": untied["shard"]}
    assert adapted["own"] == {"teacher": adapted["adapters"], "reference": 0}
    assert adapted["adapters"] > 0


def test_nothing_stays_gathered_after_a_pass_without_gradient_or_an_update(found):
    # rlrt scores reference, student and teacher, sd the reference alone; at the end three models of each
    assert len(found["dropped"]) >= (3 + 3) + (1 + 3)
    assert all(found["dropped"])


def test_a_model_whose_names_differ_is_read_whole_and_the_log_says_so(found):
    assert found["said before"] == []
    assert len(found["said"]) == 1
    assert "each process reads the whole model, because the files and the model differ in 1 names" in found["said"][0]
