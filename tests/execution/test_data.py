"""At the door: ids that repeat, in a task of one's own and in the shipped ones."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from rlrt.errors import UserError
from rlrt.execution.data import (
    check_control_tokens,
    drop_long_prompts,
    longest_prompt,
    prepare_data,
    prepare_suites,
    prepare_task,
    tell_lacking_examples,
)
from rlrt.model.prompting import PromptBuilder
from rlrt.tasks.base import Task
from rlrt.types import Prompt
from tests.helpers import settings
from tests.hub import jsonl, tokenizer
from tests.model.test_prompting import Letters


class Mine:
    """A task of one's own, from (id, question) pairs."""

    def __init__(self, train, heldout):
        self.pairs = {"train": train, "heldout": heldout}

    def prepare(self):
        self.train, self.heldout = ([Prompt(i, q, "") for i, q in self.pairs[part]] for part in ("train", "heldout"))


@pytest.mark.parametrize(
    ("train", "heldout", "says"),
    [
        (
            [("1", "a?"), ("2", "b?"), ("1", "c?")],
            [("3", "d?")],
            r"got '1' for 'a\?' \(train\) and for 'c\?' \(train\)",
        ),
        ([("1", "a?")], [("2", "b?"), ("2", "c?")], r"got '2' for 'b\?' \(heldout\) and for 'c\?' \(heldout\)"),
        ([("1", "a?"), ("1", "a?")], [("2", "b?")], r"got '1' for 'a\?' \(train\) and for 'a\?' \(train\)"),
        ([("1", "a?")], [("1", "b?")], r"got '1' for 'a\?' \(train\) and for 'b\?' \(heldout\)"),
    ],
)
def test_ids_that_repeat_are_refused_with_both_questions(train, heldout, says):
    whole = SimpleNamespace(task=Mine(train, heldout), suites={})
    for prepare in (lambda: prepare_task(whole.task), lambda: prepare_data(whole)):
        with pytest.raises(UserError, match=r"^data: expected an id of its own for every problem, " + says) as caught:
            prepare()
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("; give each Prompt an id that no other has.")


class Limited(Task):
    """Prompts of two sources, of which a prompt may have 3 letters of "b", and 9 of "a"."""

    def prompt_limit(self, prompt):
        return {"a": 9, "b": 3}[prompt.source]


def letters(examples=0):
    return PromptBuilder(Letters(), "plain", "{prompt}", None, "{prompt}{solution}", "never", examples)


def test_a_source_whose_prompts_are_all_too_long_is_refused_by_its_own_key():
    task = Limited()
    task.dropped = Counter()
    task.train = [Prompt(str(n), "x" * n, "", source="a" if n < 8 else "b") for n in range(6, 10)]
    task.heldout = task.train[:1]
    with pytest.raises(
        UserError, match=r"^data\.sources\.b\.max_prompt_tokens: all 2 training prompts .* than 3 tokens"
    ):
        drop_long_prompts(task, letters())


def test_the_longest_prompt_may_be_long_by_its_examples():
    """40 long questions without examples beside a short one whose examples make it the longest."""
    long = [Prompt(str(n), "x" * 50, "") for n in range(40)]
    short = Prompt("s", "x", "", examples=(("y" * 60, "z" * 30),))
    assert longest_prompt(letters(examples=1), [short, *long]) == 60 + 1 + 30 + 1 + 1
    assert longest_prompt(letters(), [short, *long]) == 50


def test_prompts_with_fewer_examples_than_asked_for_are_said(caplog):
    pair = ("y", "z")
    prompts = [
        Prompt("0", "x", ""),
        Prompt("1", "x", "", examples=(pair,)),
        Prompt("2", "x", "", examples=(pair, pair)),
    ]
    with caplog.at_level("WARNING"):
        tell_lacking_examples(prompts, letters())
        assert not caplog.text
        tell_lacking_examples(prompts, letters(examples=2))
    assert "model.examples: 2 asked for, and 2 of 3 prompts have fewer" in caplog.text


def test_ids_that_differ_are_taken_and_a_question_in_both_parts_is_not_about_ids():
    prepare_task(Mine([("1", "a?"), ("2", "b?")], [("3", "c?"), ("1", "a?")]))


def test_a_long_question_is_cut_in_the_message():
    with pytest.raises(UserError) as caught:
        prepare_task(Mine([("1", "a" * 1000), ("1", "b\n" * 1000)], [("2", "c")]))
    assert len(str(caught.value)) < 400


def test_a_suite_whose_ids_repeat_is_refused(tmp_path):
    file = jsonl(tmp_path / "test.jsonl", [{"problem": f"{t}?", "answer": "1"} for t in range(3)])
    made = settings("eval=aime24", f"eval.suites.aime24.path={file}", "eval.suites.aime24.problems=3").eval.suites
    prepare_suites(made)
    suite = made["aime24"]
    suite.prepare = lambda: setattr(suite, "heldout", [Prompt("1", "a?", ""), Prompt("1", "b?", "")])
    with pytest.raises(UserError, match=r"^eval\.suites\.aime24: .* got '1' for 'a\?' \(aime24\) and for 'b\?'"):
        prepare_suites(made)


@pytest.mark.parametrize("wording", ["symbols", "words"])
def test_countdowns_ids_are_its_own(wording):
    data = settings("data=countdown", f"data.wording={wording}").data
    prepare_task(data)
    assert len({p.id for p in [*data.train, *data.heldout]}) == len(data.train) + len(data.heldout)
    assert all(":" in p.id for p in data.train)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_task_without_prompts_is_refused_in_one_sentence(part):
    whole = Mine(*([] if part == name else [(name, "a?")] for name in ("train", "heldout")))
    with pytest.raises(
        UserError, match=rf"^data: expected Mine\.prepare to set {part} to a list of prompts, got \[\]\.$"
    ):
        prepare_task(whole)


@pytest.mark.parametrize("chosen", ["escape", "refuse"])
def test_problems_that_spell_control_tokens_are_counted_or_refused(chosen, caplog):
    builder = PromptBuilder(tokenizer("hybrid"), "chat", "{prompt}", None, "{prompt}{solution}")
    task = type("Mine", (Task,), {"special_tokens": chosen})()
    clean = [Prompt("1", "3 < 4 |x|>", "7"), Prompt("2", "<eos>", "7")]
    check_control_tokens(task, clean, builder)
    assert caplog.text == ""
    odd = [*clean, Prompt("3", "say <|im_end|>", "7"), Prompt("4", "x", "7", solution="<|im_start|>7")]
    if chosen == "refuse":
        with pytest.raises(UserError, match=r"data\.special_tokens: 2 problems .*for example '<\|im_end\|>' in 'say <"):
            check_control_tokens(task, odd, builder)
    else:
        check_control_tokens(task, odd, builder)
        assert (
            "2 problems spell control tokens of this model (for example '<|im_end|>' in 'say <|im_end|>')"
            in caplog.text
        )
