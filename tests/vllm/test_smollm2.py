"""A real model in a real vLLM: the log-probabilities of what it samples are transformers' own.

gguf, which making the model takes, is not in vLLM's environment: ``make test-vllm`` makes the model in rlrt's own first.
"""

from __future__ import annotations

import pytest
import torch

from rlrt.engines.vllm import VllmEngine
from rlrt.execution.build import prompt_builder
from rlrt.model.load import load
from rlrt.paths import SMOLLM2
from tests.conftest import ROOT
from tests.helpers import settings
from tests.real.problems import ASKED, problems
from tests.vllm.worlds import KEYS, gap, sampled, seeds

FOLDER = ROOT / SMOLLM2
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        not FOLDER.exists(), reason=f"{SMOLLM2} is not there: make {SMOLLM2}, which make test-vllm does by itself"
    ),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(engine, model, prompts, id of the newline, which ends an answer)."""
    model, tokenizer = load(str(FOLDER), None, "sdpa")
    place = problems(tmp_path_factory.mktemp("words"))
    made = settings("model=smollm2_135m", "data=mawps", *ASKED, f"data.path={place}")
    made.data.prepare()
    builder = prompt_builder(made, tokenizer)
    prompts = [builder.student(prompt) for prompt in made.data.train[:2]]
    engine = VllmEngine(
        **{**KEYS, "max_new_tokens": 10}, max_model_len=256, gpu_memory_utilization=0.4, release_memory=True
    )
    yield engine, model, prompts, tokenizer.encode("\n", add_special_tokens=False)
    engine.close()


@torch.no_grad()
def differences(model, prompts, groups):
    """Between vLLM's log-probability of each sampled token and that of transformers' own forward pass in float32."""
    found = []
    for prompt, group in zip(prompts, groups, strict=True):
        for made in group:
            logp_TV = model(torch.tensor([[*prompt, *made.token_ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found.append(made.logp_T - logp_TV.gather(-1, torch.tensor(made.token_ids)[:, None])[:, 0])
    return torch.cat(found).abs()


def test_log_probabilities_are_transformers(world):
    engine, model, prompts, stop = world
    engine.load(model, stop, 0)
    groups = sampled(engine, prompts, seeds(3, prompts))
    assert differences(model, prompts, groups).max() < 1e-4  # 2e-5 were seen
    assert gap(model, prompts, groups) < 1e-4  # the trainer's


def test_in_bfloat16_they_are_near(world):
    engine, model, prompts, stop = world
    model.compute_dtype = torch.bfloat16
    try:
        engine.load(model, stop, 0)
        assert differences(model, prompts, sampled(engine, prompts, seeds(3, prompts))).mean() < 0.1  # 0.03 were seen
    finally:
        model.compute_dtype = torch.float32
