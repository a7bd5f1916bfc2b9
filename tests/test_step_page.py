"""``docs/step.md`` is what ``examples/step.py`` prints, and its numbers and names are true."""

from __future__ import annotations

import importlib
import operator
import re
import runpy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "step.md").read_text()
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def test_the_page_is_what_the_script_prints():
    printed = runpy.run_path(str(ROOT / "examples" / "step.py"))["page"]()
    command = "python examples/step.py > docs/step.md"
    assert NUMBER.sub("#", PAGE) == NUMBER.sub("#", printed), command
    for stored, now in zip(NUMBER.findall(PAGE), NUMBER.findall(printed), strict=True):
        assert float(stored) == pytest.approx(float(now), rel=0, abs=2e-3), command


def test_every_function_that_the_page_names_is_there():
    places = re.findall(r"`(rlrt/\S+)\.py:([\w.]+)`", PAGE)
    assert len(places) > 10
    for path, name in places:
        assert callable(operator.attrgetter(name)(importlib.import_module(path.replace("/", ".")))), (path, name)


def test_the_table_is_what_plain_transformers_and_autograd_give():
    """The page's two prompts and its response through the model; the gradient of the loss terms at the logits by autograd."""
    folder = ROOT / "rlrt" / "embedded"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    student, response, teacher = re.findall(r"^ {4}(.+)$", PAGE, re.MULTILINE)
    tokens = int(re.search(r"N = (\d+)", PAGE)[1])
    rows = re.findall(r"^\| \d+ `.+?` \| (-?\d\..+) \|$", PAGE, re.MULTILINE)
    logp_s, logp_t, gap, weight, factor, advantage, loss, gradient = torch.tensor(
        [[float(cell) for cell in row.split(" | ")] for row in rows]
    ).T
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]

    def logits_TV(prompt):
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return model(torch.tensor([[*prompt_ids, *ids]])).logits[0, len(prompt_ids) - 1 : -1].detach()

    z_TV = logits_TV(student).requires_grad_()
    sampled = z_TV.log_softmax(-1)[range(len(ids)), ids]
    (-advantage * sampled / tokens).sum().backward()
    near = {"rtol": 0.0, "atol": 2e-3}
    assert torch.allclose(sampled, logp_s, **near)
    assert torch.allclose(logits_TV(teacher).log_softmax(-1)[range(len(ids)), ids], logp_t, **near)
    assert torch.allclose(logp_s - logp_t, gap, **near)
    assert torch.allclose(gap.exp().clamp(0.8, 1.2), weight, **near)
    assert torch.allclose(0.5 + 0.5 * weight, factor, **near)
    assert torch.allclose(float(re.search(r"/ 0\.\d+ = (0\.\d+)", PAGE)[1]) * factor, advantage, **near)
    assert torch.allclose(-1000 * advantage / tokens, loss, **near)
    assert torch.allclose(1000 * z_TV.grad[range(len(ids)), ids], gradient, **near)
