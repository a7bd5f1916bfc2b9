"""``examples/one_page.py`` is what the package does: the same prompts, rewards, defaults and gradient."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import re
import sys

import pytest
import torch

from rlrt.methods.contexts import Sibling
from tests.conftest import ROOT
from tests.training.test_update import close, gradient, solve, world

PAGE = ROOT / "examples" / "one_page.py"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("one_page", PAGE)
    module = sys.modules["one_page"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["one_page"]


def grouped(page, tokenizer, rollouts):
    """The package's rollouts as the page's groups, each with the package's rollouts beside it."""
    groups = [list(group) for _, group in itertools.groupby(rollouts, key=lambda r: r.group)]
    return [(page.graded(tokenizer, g[0].prompt.text, [r.generation.token_ids for r in g]), g) for g in groups]


def test_the_gradient_is_the_trainers(page):
    learner, rollouts, config = world("method=rlrt")
    credit, tokenizer = config.method.credit, learner.policy.tokenizer
    model = page.AutoModelForCausalLM.from_pretrained(page.FOLDER)
    groups = [group for group, _ in grouped(page, tokenizer, rollouts)]
    loss, gap = page.rlrt_loss(model, groups, credit.lambda_init, credit.epsilon_w)
    loss.backward()
    mine = {name: p.grad for name, p in model.named_parameters()}
    caught = gradient(learner, rollouts)
    assert len(gap) > 0
    assert mine.keys() == caught.keys()
    assert close(mine, caught)
    other, _, _ = world("method=grpo", "method.scale_by_std=true")
    assert not close(mine, gradient(other, rollouts), 1e-3)  # the weight is not all 1


def test_a_group_of_equal_rewards_and_no_coefficient_are_grpos(page):
    learner, rollouts, _ = world("method=grpo", "method.scale_by_std=true")
    model = page.AutoModelForCausalLM.from_pretrained(page.FOLDER)
    groups = [group for group, _ in grouped(page, learner.policy.tokenizer, rollouts)]
    solve(rollouts, 0)
    for rollout in groups[0]:
        rollout.reward = 1.0
    page.rlrt_loss(model, groups, 0.0, 0.2)[0].backward()
    assert close({name: p.grad for name, p in model.named_parameters()}, gradient(learner, rollouts))


def test_prompts_texts_rewards_and_siblings_are_the_packages(page):
    learner, rollouts, _ = world("method=rlrt")
    taught = 0
    for mine, theirs in grouped(page, learner.policy.tokenizer, rollouts):
        for rollout, other, sibling in zip(mine, theirs, Sibling().texts(theirs), strict=True):
            assert rollout.prompt_ids == other.prompt_ids == learner.builder.student(other.prompt)
            assert (rollout.text, rollout.reward) == (other.text, other.grade.reward)
            if sibling is None or not other.grade.correct:
                assert rollout.teacher_ids is None
            else:
                assert rollout.teacher_ids == learner.builder.teacher(other.prompt, sibling)
                taught += 1
    assert taught > 0


def test_the_checker_agrees_with_the_packages_verifier(page):
    _, _, config = world("method=rlrt")
    task = config.data
    texts = ["", ";", "a", "3*4=12", "3*4=12,12+5=17", "5-3=2;3*4=12,12+5=17", "4*3=12,5+12=17;", "3*4=12,12+05=17"]
    texts += ["3*4=12,3+14=17", "3+14=17,3+12=17", "3-4=-1,5-1=4", "3*4=13,13+4=17", "3*4=12,12+5=17,17*1=17"]
    for prompt in task.train[:50]:
        solutions = [prompt.solution, f"{texts[4]};{prompt.solution}", f"{prompt.solution};{prompt.solution}"]
        assert page.correct(prompt.text, prompt.solution)
        for text in [*texts, *solutions, prompt.solution[:-1], prompt.solution.replace("=", "=0")]:
            assert page.correct(prompt.text, text) == task.grade(prompt, text).correct, (prompt.text, text)
    assert page.correct("17:5 3 4", texts[4])
    assert not page.correct("17:5 3 4", texts[5])


def test_the_defaults_are_the_packages(page):
    _, _, config = world("method=rlrt")
    default = {name: p.default for name, p in inspect.signature(page.main).parameters.items()}
    assert default["lam"] == config.method.credit.lambda_init
    assert default["eps_w"] == config.method.credit.epsilon_w
    assert default["lr"] == config.train.lr
    assert config.method.advantage.scale_by_std
    assert config.train.aggregation == "token"


def test_the_page_stands_alone_and_is_one_page():
    source = PAGE.read_text()
    assert len(source.splitlines()) <= 140
    nodes = list(ast.walk(ast.parse(source)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    allowed = {"random", "re", "collections", "dataclasses", "pathlib", "torch", "transformers"}
    assert {name.split(".")[0] for name in imported} <= allowed
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "__import__"}


def test_two_steps_run(page, capsys):
    with torch.random.fork_rng():
        page.main(steps=2, every=1, prompts=2, size=4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for step, line in enumerate(lines, 1):
        assert re.fullmatch(rf"step +{step}   reward \d\.\d+   D \S+ nats   share correct 0\.\d+", line), line
