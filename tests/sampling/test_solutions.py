"""The data's own responses: their tokens, what is left out, and the gradient of learning them."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlrt.errors import UserError
from rlrt.execution.build import build_learner, lessons_of
from rlrt.execution.data import drop_untaught
from rlrt.model.prompting import PromptBuilder
from rlrt.sampling.sampler import Sampler
from rlrt.sampling.solutions import Lessons, Solutions
from rlrt.training.batch import signals_of
from rlrt.training.update import learn
from rlrt.types import Grade, Prompt
from tests.helpers import settings
from tests.training.test_update import close, gradient

CHAT = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
THINKING = CHAT.replace("<s>assistant\n{% endif %}", "<s>assistant\n<think>\n{% endif %}")
PROBLEM = Prompt("1", "3 and 4?", "7", solution=" 3 + 4 = 7 \n", final="7")


@pytest.fixture(scope="module")
def world():
    """A learner of the embedded model, its settings with 6 problems, and its lessons."""
    config = settings("method=sft", "train.prompts_per_step=6")
    config.data.prepare()
    learner = build_learner(config)
    return config, learner, lessons_of(config, learner)


def source_of(world, task=None):
    config, learner, lessons = world
    sampler = Sampler(config.engine, learner.policy, learner.builder, task or config.data, seed=0)
    return Solutions(sampler, config.train, 0, lessons)


def words(template=CHAT):
    """A tokenizer of words that puts a space before a text, as those of Llama 2 do, with tokens that end a turn."""
    names = ["<s>", "<e>", "<end>", "▁user", "▁assistant", "▁3", "▁+", "▁4", "▁=", "▁7", "3", "7", "▁\n", "\n", "▁"]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate([*names, "?"])}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<s>", "<e>", "<end>"])
    made.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, unk_token="?")


def builder_of(tokenizer, style="chat"):
    return PromptBuilder(tokenizer, style, "{prompt}", None, "{prompt}{solution}", "never")


def test_a_response_of_the_embedded_model_reads_as_the_solution_and_ends(world):
    config, learner, lessons = world
    prompt = config.data.train[0]
    ids = lessons.ids(prompt)
    assert ids[-1:] == learner.policy.stop_ids
    assert learner.policy.text(ids) == prompt.solution
    assert config.data.grade(prompt, learner.policy.text(ids)).correct


def test_no_space_is_put_before_a_response_that_the_template_does_not_write():
    tokenizer = words()
    builder, spell = builder_of(tokenizer), tokenizer.convert_ids_to_tokens
    assert spell(tokenizer("3 + 4", add_special_tokens=False)["input_ids"])[0] == "▁3"
    assert spell(builder.response(PROBLEM, "{solution}")) == ["3", "▁+", "▁4", "▁=", "▁7"]
    assert spell(builder.response(PROBLEM, " {solution}"))[0] == "▁3"
    assert spell(builder.response(PROBLEM, " {answer}")) == ["▁7"]


def test_control_tokens_of_a_solution_are_text_and_those_of_the_template_are_not():
    builder, (end, close_thought) = builder_of(words()), words().convert_tokens_to_ids(["<e>", "</think>"])
    spelled = dataclasses.replace(PROBLEM, solution="7 <e> </think> 7")
    assert end not in builder.response(spelled, "{solution}")
    assert builder.response(spelled, "{solution}").count(close_thought) == 1  # a solution may have a thought's tags
    assert builder.response(spelled, "<e>{solution}")[0] == end


def test_the_end_is_what_the_chat_template_writes_after_an_answer():
    tokenizer = words()
    turn, end = tokenizer.convert_tokens_to_ids(["<e>", "<end>"])
    assert builder_of(tokenizer).ending([end, turn]) == turn
    assert builder_of(tokenizer).ending([end]) == end  # the template writes no such token
    assert builder_of(tokenizer, "plain").ending([end, turn]) == end
    with pytest.raises(UserError, match=r"^model.stop_tokens"):
        builder_of(tokenizer).ending([])


def test_templates_that_teach_nothing_or_never_end_a_thought_are_refused():
    builder = builder_of(words(THINKING))
    assert builder.opening == "<think>"
    for template, says in (("yes", "expected a text with {solution}"), ("{solution}", "never ends it")):
        with pytest.raises(UserError, match=rf"^method.response_template: .*{says}"):
            Lessons(builder, template, [1], 9)
    assert Lessons(builder, "</think>{solution}", [1], 9).needed == {"solution"}


def test_problems_without_a_response_are_left_out_and_said(world, caplog):
    config, _, lessons = world
    first = config.data.train[:4]
    task = type("Task", (), {})()
    task.train = [first[0], dataclasses.replace(first[1], solution=None), dataclasses.replace(first[2], solution=" ")]
    with caplog.at_level(logging.WARNING):
        drop_untaught(task, lessons)
    assert task.train == first[:1]
    assert "dropped 2 x problem without solution" in caplog.text
    short = dataclasses.replace(lessons, longest=len(lessons.ids(first[0])) - 1)
    stopped = dataclasses.replace(lessons, stop_ids=[*lessons.stop_ids, *lessons.ids(first[0])[1:2]])
    assert "engine.max_new_tokens" in short.unfit(first[0])
    assert "model.stop_tokens" in stopped.unfit(first[0])
    with pytest.raises(UserError, match=r"^method.response_template: no training problem .* over \d+ tokens"):
        drop_untaught(task, short)
    before = list(task.train)
    drop_untaught(task, None)
    assert task.train == before


def test_a_source_of_a_mixture_that_nothing_is_taught_of_is_refused(world):
    """Else no step would have a prompt of it, though it was asked for."""
    config, _, lessons = world
    first = config.data.train[:3]
    task = type("Task", (), {})()
    task.train = [dataclasses.replace(p, source="a") for p in first]
    task.train += [dataclasses.replace(p, source="b", solution=None) for p in first[:2]]
    with pytest.raises(
        UserError, match=r"^data\.sources\.b: none of its 2 .*\(2 x b: problem without solution.*leave the"
    ):
        drop_untaught(task, lessons)


@pytest.mark.parametrize(
    ("prompt", "template", "examples", "warns"),
    [
        ("Q: {prompt} A:", "{solution}", 1, True),
        ("Q: {prompt} A:", " {solution}", 1, False),
        ("Q: {prompt} A: ", "{solution}", 1, False),
        ("Q: {prompt} A:", "{solution}", 0, False),
    ],
)
def test_a_response_that_begins_otherwise_than_the_examples_is_said(prompt, template, examples, warns, caplog):
    """In "Answer: 7" of an example a space stands between prompt and answer; "Answer:7" would be taught another form."""
    builder = PromptBuilder(words(), "plain", prompt, None, "{prompt}{solution}", "never", examples)
    task = type("Task", (), {})()
    task.train = [dataclasses.replace(PROBLEM, examples=(("1 and 1?", "2"),))]
    with caplog.at_level(logging.WARNING):
        drop_untaught(task, Lessons(builder, template, [1], 99))
    assert ("begin it with a space, ' {solution}'" in caplog.text) == warns


def test_a_steps_responses_are_a_function_of_seed_and_step(world):
    config, _, lessons = world
    draw, again, other = (source_of(world).take(step) for step in (3, 3, 4))
    assert [r.prompt.id for r in draw.rollouts] == [r.prompt.id for r in again.rollouts]
    assert {r.prompt.id for r in draw.rollouts}.isdisjoint(r.prompt.id for r in other.rollouts)
    assert [r.generation.token_ids for r in draw.rollouts] == [lessons.ids(r.prompt) for r in draw.rollouts]
    assert len(draw.rollouts) == config.train.prompts_per_step
    numbers = source_of(world).metrics(draw)
    assert numbers["reward/correct_share"] == 1.0
    assert not any(name.startswith(("group/", "policy/")) for name in numbers)


def test_a_verifier_that_fails_is_counted_and_takes_nothing_out(world):
    config, _, _ = world

    class Failing(type(config.data)):
        def grade(self, prompt, text):
            return Grade(correct=False, reward=0.0, error=True)

    task = Failing(**{f.name: getattr(config.data, f.name) for f in dataclasses.fields(config.data) if f.init})
    task.prepare()
    source = source_of(world, task)
    draw = source.take(1)
    assert source.metrics(draw)["reward/verifier_error_share"] == 1.0
    assert not any(r.grade.error for r in draw.rollouts)


@pytest.mark.parametrize("budget", [16384, 40])
def test_the_gradient_is_that_of_transformers_labels(world, budget):
    learner = build_learner(settings("method=sft", f"train.token_budget={budget}"))
    rollouts = source_of(world).take(1).rollouts
    caught = gradient(learner, rollouts)
    model, rows = learner.policy.model, [(r.prompt_ids, r.generation.token_ids) for r in rollouts]
    width = max(len(p) + len(r) for p, r in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for i, (prompt_ids, response_ids) in enumerate(rows):
        whole = torch.tensor([*prompt_ids, *response_ids])
        ids[i, : len(whole)] = whole
        labels[i, len(prompt_ids) : len(whole)] = whole[len(prompt_ids) :]
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    assert close(caught, {n: p.grad for n, p in model.named_parameters()})
    learned = build_learner(settings("method=sft"))
    result = learn(learned, rollouts, signals_of(rollouts, 1, learned.policy.special_ids), 1e-3)
    assert result.metrics["policy/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
