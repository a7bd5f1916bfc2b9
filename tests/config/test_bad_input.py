"""What cannot work is refused in one sentence that names the key, what came, and what to do."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.errors import UserError
from tests.helpers import settings

CASES = [
    ("train.lr=-1", r"train\.lr: expected a number above 0, got -1"),
    ("train.lr=0", r"train\.lr: expected a number above 0, got 0"),
    ("train.lr=nan", r"train\.lr: expected a finite number, got nan"),
    ("train.lr=inf", r"train\.lr: expected a finite number"),
    ("train.lr=fast", r"train\.lr: expected a number, got 'fast'"),
    ("train.lr=null", r"train\.lr: expected a number, got None"),
    ("train.steps=1.5", r"train\.steps: expected a whole number, got 1\.5"),
    ("train.steps=0", r"train\.steps: .* at least 1"),
    ("train.prompts_per_step=0", r"train\.prompts_per_step: .* at least 1"),
    (
        "train.rollouts_per_prompt=1",
        r"rollouts of a group, so it needs at least 2, got 1; set train\.rollouts_per_prompt",
    ),
    ("train.minibatches=17", r"train\.minibatches: .*whole groups"),
    ("train.lr_schedule=linaer", r"train\.lr_schedule: .* Did you mean 'linear'"),
    ("train.beta2=1", r"beta2"),
    ("train.overlong_cache=48", r"train\.overlong_cache"),
    ("engine.temperature=0", r"engine\.temperature: .* all rollouts of a group are the same"),
    ("engine.temperature=-1", r"engine\.temperature"),
    ("engine.temperature=nan", r"engine\.temperature: expected a finite number"),
    ("method.gate=corect", r"method\.gate: .* Did you mean 'correct'"),
    ("method.epsilon_w=1.5", r"method\.epsilon_w: .* at most 1"),
    ("method.lambda_init=2", r"method\.lambda_init: .* at most 1"),
    ("method.credit=rlrt.methods.rlrt.Nothing", r"method\.credit: expected the import path of a class"),
    ("method.credit=rlrt.methods.grpo.ClippedLoss", r"method\.credit: expected a kind of Credit"),
    ("method.auxiliary=x", r"method\.auxiliary: expected a list"),
    ("+method.lamda_init=0.3", r"method\.lamda_init: there is no such key\. Did you mean 'method\.lambda_init'"),
    ("+train.lrr=1", r"train\.lrr: there is no such key\. Did you mean 'train\.lr'"),
    ("+trainn=1", r"trainn: there is no such key\. Did you mean 'train'"),
    ("teacher.weights=emma", r"teacher\.weights: .* Did you mean 'ema'"),
    ("device=gpu", r"device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
    ("dtype=float16", r"dtype: expected one of auto, float32, bfloat16"),
    ("seed=-1", r"seed: .* at least 0"),
    ("resume=maybe", r"resume: expected one of auto, never, must"),
    ("data._target_=os.path", r"data\._target_: expected"),
    ("eval.samples_per_prompt=0", r"eval\.samples_per_prompt"),
    ("train=3", r"train: expected a section"),
    ("threads=99999999999999999999999", r"threads: expected a whole number of at most"),
    ("train.clip_low=5", r"train\.clip_low: .* at most 1"),
    ("method.credit=..a", r"method\.credit: expected the import path"),
    ("method.policy_loss=null", r"method\.policy_loss: .* nothing would be learned"),
    ("method.name=null", r"method\.name: expected text"),
    ("train.lr=1e-300", r"train\.lr: expected a number from 1e-37 to 1e\+38 in size"),
    ("train.weight_decay=1e300", r"train\.weight_decay: expected a number from 1e-37 to 1e\+38 in size"),
    (f"train.lr={'9' * 400}", r"train\.lr: expected a number"),
    ("eval.temperature=1e-6", r"eval\.temperature: .* at least 0\.001"),
    ("eval.top_p=1e-6", r"eval\.top_p: .* at least 0\.001"),
    ("train.max_refills=2147483647", r"train\.max_refills: .* at most 100"),
    ("model.lora=2147483647", r"model\.lora: .* at most 8192"),
    ("train.keep_best=nonsense", r"train\.keep_best: expected a metric such as eval/greedy"),
    ("tracking.experiment=''", r"tracking\.experiment: expected the name of an experiment"),
    ("tracking.uri='http://'", r"tracking\.uri: expected HOST:PORT after http://"),
    ("tracking.uri='https://a b/'", r"tracking\.uri: expected HOST:PORT after https://"),
    ("tracking.uri='http://[::1'", r"tracking\.uri: expected HOST:PORT"),
    ("tracking.uri='sqlite:////'", r"tracking\.uri: expected a file"),
    ("tracking.uri='sqlite:////dev/null/x.db'", r"tracking\.uri: expected a file that can be in /dev/null"),
    ("engine._target_=rlrt.tasks.file.ProblemFile", r"engine\._target_: .* cannot be used here: it has no load"),
]


@pytest.mark.parametrize(("override", "says"), CASES, ids=[c[0] for c in CASES])
def test_refused(override, says):
    with pytest.raises(UserError, match=says) as caught:
        settings(override)
    assert "\n" not in str(caught.value)


def test_cuda_that_is_not_there(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=r"device: cuda was asked for, but this machine has 0 CUDA devices; set device=cpu"
    ):
        settings("device=cuda")


def test_a_key_without_value_and_a_missing_key():
    config = OmegaConf.create(composed([]))
    OmegaConf.set_struct(config, False)
    del config.train["lr"]
    with pytest.raises(UserError, match=r"train\.lr: this key has no value"):
        load(config)


def test_types_are_converted_where_nothing_is_lost():
    made = settings("train.lr=1", "train.steps='7'", "model.thinking=true")
    assert made.train.lr == 1.0
    assert isinstance(made.train.lr, float)
    assert made.train.steps == 7
