"""A run's inputs in MLflow, and its checkpoint as a version of a registered model that transformers loads."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rlrt.errors import UserError
from rlrt.execution.execute import execute
from rlrt.records.folder import RunFolder
from rlrt.register import register
from tests.helpers import settings

SMALL = ("train.steps=2", "train.prompts_per_step=2", "eval.prompts=2", "train.save_every=1")


def test_inputs_and_a_registered_checkpoint(tmp_cwd, uri):
    from mlflow import MlflowClient
    from transformers import AutoModelForCausalLM

    execute(settings(*SMALL, f"tracking.uri={uri}"), tmp_cwd / "run", lambda line: None, lambda: False, progress=False)
    client, run_id = MlflowClient(uri), RunFolder(tmp_cwd / "run").manifest()["mlflow_run_id"]
    inputs = {i.tags[0].value: i.dataset for i in client.get_run(run_id).inputs.dataset_inputs}
    assert set(inputs) == {"model", "training"}
    assert (inputs["model"].name, len(inputs["model"].digest)) == ("embedded", 36)
    assert inputs["training"].name == "Countdown"
    assert register(tmp_cwd / "run", "mine", None, None) == "1"
    assert register(tmp_cwd / "run", "mine", 1, None) == "2"
    assert register(tmp_cwd / "run", "it's 'mine' OR name LIKE '%", 1, None) == "1"
    version = client.get_model_version("mine", "1")
    assert (version.run_id, version.tags["rlrt.step"]) == (run_id, "2")
    AutoModelForCausalLM.from_pretrained(Path(urlsplit(version.source).path))
    with pytest.raises(UserError, match=r"expected a checkpoint, found 1, 2; see --step"):
        register(tmp_cwd / "run", "mine", 7, None)
    (tmp_cwd / "run" / "checkpoints" / "step_2" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"damaged \(config.json is not what was written\)"):
        register(tmp_cwd / "run", "mine", None, None)


def test_a_run_that_mlflow_does_not_know(tmp_cwd):
    execute(settings(*SMALL, "tracking=none"), tmp_cwd / "run", lambda line: None, lambda: False, progress=False)
    with pytest.raises(UserError, match="is not in MLflow"):
        register(tmp_cwd / "run", "mine", None, None)
