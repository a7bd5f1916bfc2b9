from __future__ import annotations

from typing import ClassVar

import pytest

from rlrt.errors import UserError
from rlrt.model.prompting import PromptBuilder
from rlrt.types import Prompt
from tests.hub import tokenizer


class Letters:
    """A tokenizer of single characters."""

    bos_token_id = None
    chat_template = "{% if enable_thinking %}"
    added_tokens_decoder: ClassVar = {}

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) for c in text]}

    def apply_chat_template(self, messages, **options):
        self.options = options
        assert not options["tokenize"]
        turns = (
            "\2".join(f"{m['role'][0]}:{m['content']}" for m in messages)
            if len(messages) > 1
            else messages[0]["content"]
        )
        return f"\0{turns}" + "\1" * options["add_generation_prompt"]

    def decode(self, ids):
        return "".join(map(chr, ids))


PROMPT = Prompt(id="1", text="2+{solution}?", answer=None)


def text(ids):
    return "".join(map(chr, ids))


def test_plain_style():
    builder = PromptBuilder(Letters(), "plain", "<{prompt}>", None, "{prompt}|{solution}")
    assert text(builder.student(PROMPT)) == "<2+{solution}?>"
    assert text(builder.teacher(PROMPT, "4{prompt}")) == "<2+{solution}?|4{prompt}>"  # braces in texts stay text


def test_a_response_is_shown_without_the_white_space_that_began_and_ended_it():
    builder = PromptBuilder(Letters(), "plain", "{prompt}", None, "{prompt}|{solution}|")
    assert text(builder.teacher(PROMPT, " 2 + 2\n= 4 \n")) == "2+{solution}?|2 + 2\n= 4|"


def test_an_empty_solution_gives_the_students_prompt():
    builder = PromptBuilder(Letters(), "plain", "<{prompt}>", None, "{prompt}|{solution}")
    assert builder.teacher(PROMPT, "") == builder.student(PROMPT)


def test_chat_style_passes_the_thinking_switch():
    words = Letters()
    builder = PromptBuilder(words, "chat", "{prompt}", False, "{prompt}|{solution}")
    assert text(builder.teacher(PROMPT, "4"))[1:-1] == "2+{solution}?|4"
    assert words.options["enable_thinking"] is False
    PromptBuilder(words, "chat", "{prompt}", None, "{prompt}|{solution}").student(PROMPT)
    assert "enable_thinking" not in words.options


def test_templates_without_placeholders_are_refused():
    with pytest.raises(UserError, match=r"model\.prompt_template"):
        PromptBuilder(Letters(), "plain", "hello", None, "{prompt}{solution}")
    with pytest.raises(UserError, match=r"teacher\.template: \{solution\} is missing"):
        PromptBuilder(Letters(), "plain", "{prompt}", None, "{prompt}")


def test_chat_style_needs_a_template():
    words = Letters()
    words.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        PromptBuilder(words, "chat", "{prompt}", None, "{prompt}{solution}")


SHOWN = Prompt(id="1", text="2+3?", answer=None, instruction="Box it.", examples=(("1+1?", "2"), ("4-1?", "3")))


def test_examples_stand_before_the_question_in_the_models_own_template():
    """Of the data's two examples the model asks for one, or for more than there are; the teacher's context comes after them."""
    one, all_of_them = (
        PromptBuilder(Letters(), "plain", "Q: {prompt}\nA:", None, "{prompt}\nA: {solution}\nQ: {prompt}", examples=n)
        for n in (1, 5)
    )
    assert text(one.student(SHOWN)) == "Q: 1+1?\nA: 2\nQ: 2+3?\nA:"
    assert text(one.teacher(SHOWN, "5")) == "Q: 1+1?\nA: 2\nQ: 2+3?\nA: 5\nQ: 2+3?\nA:"
    assert text(all_of_them.student(SHOWN)) == "Q: 1+1?\nA: 2\nQ: 4-1?\nA: 3\nQ: 2+3?\nA:"
    one.check_parity([SHOWN])
    instructed = PromptBuilder(Letters(), "plain", "{prompt}\n{instruction}\n", None, "{prompt}{solution}", examples=1)
    assert text(instructed.student(SHOWN)) == "1+1?\nBox it.\n2\n2+3?\nBox it.\n"


def test_examples_are_earlier_turns_of_a_chat():
    builder = PromptBuilder(Letters(), "chat", "{prompt} {instruction}", None, "{prompt}{solution}", examples=1)
    assert text(builder.student(SHOWN)) == "\0u:1+1? Box it.\2a:2\2u:2+3? Box it.\1"
    plain = PromptBuilder(Letters(), "chat", "{prompt} {instruction}", None, "{prompt}{solution}")
    assert text(plain.student(SHOWN)) == "\x002+3? Box it.\1"


def test_a_chat_template_that_takes_no_earlier_turns_is_refused_with_the_key_of_the_examples():
    class OneTurn(Letters):
        def apply_chat_template(self, messages, **options):
            if len(messages) > 1:
                raise ValueError("one turn only")
            return super().apply_chat_template(messages, **options)

    with pytest.raises(UserError, match=r"worked examples as earlier turns .*one turn only\); set model\.examples=0"):
        PromptBuilder(OneTurn(), "chat", "{prompt}", None, "{prompt}{solution}", examples=1).student(SHOWN)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_what_looks_like_a_control_token_in_an_example_is_plain_text(style):
    """As in a question: else the text of an example could end a turn. The tags of a thought in its answer are tags."""
    made = tokenizer("instruct")
    end, think = (made.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<think>"))
    builder = PromptBuilder(made, style, "Q {prompt} A", None, "{prompt}{solution}", "never", examples=1)
    bare, spelt = (
        builder.student(Prompt("1", "2", None, examples=((question, answer),)))
        for question, answer in (("a", "b"), ("a <|im_end|>", "<think>b <|im_end|>"))
    )
    assert spelt.count(end) == bare.count(end)
    assert spelt.count(think) == bare.count(think) + 1
    assert made.decode(spelt).count("<|im_end|>") == bare.count(end) + 2
