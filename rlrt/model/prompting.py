"""Convert problems to token ids, in one way for student and teacher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rlrt.errors import UserError
from rlrt.types import Prompt

THOUGHT, END_OF_THOUGHT = "<think>", "</think>"


class PromptBuilder:
    """Builds prompts as token ids.

    Args:
        tokenizer: a transformers tokenizer.
        style: ``plain`` (the text unchanged) or ``chat`` (the tokenizer's chat template around the text).
        prompt_template: the model's prompt; ``{prompt}`` and ``{instruction}`` stand for the problem's texts.
        thinking: for style ``chat``, passed to the template as ``enable_thinking`` unless None.
        teacher_template: the teacher's prompt; ``{prompt}`` and ``{solution}`` stand for the question and the teacher context.

    Attributes:
        opening: the part of the response that the prompt already contains: ``<think>`` if the template of a thinking model
            opens the thought, else empty. A verifier must see it.

    Raises:
        UserError: for a chat style without a chat template, a thinking switch that the template ignores, or a
            template without its placeholders.
    """

    def __init__(
        self, tokenizer: Any, style: str, prompt_template: str, thinking: bool | None, teacher_template: str
    ) -> None:
        if style == "chat" and not tokenizer.chat_template:
            raise UserError(
                "model.style=chat needs a tokenizer with a chat template, and this model's has none; set model.style=plain "
                "(base models) or choose another model.path."
            )
        if thinking is not None and (style == "plain" or "enable_thinking" not in str(tokenizer.chat_template)):
            where = "style plain" if style == "plain" else "this model's chat template"
            raise UserError(f"model.thinking: {where} has no thinking switch, got {thinking}; set model.thinking=null.")
        if "{prompt}" not in prompt_template:
            raise UserError(f"model.prompt_template: expected a text with {{prompt}} in it, got {prompt_template!r}.")
        missing = [f for f in ("{prompt}", "{solution}") if f not in teacher_template]
        if missing:
            raise UserError(f"teacher.template: {missing[0]} is missing in {teacher_template!r}.")
        self._tokenizer, self._style = tokenizer, style
        self._prompt_template, self._thinking, self._teacher_template = prompt_template, thinking, teacher_template
        self._closing = self._after_the_user()
        closing = tokenizer.decode(self._closing) if self._closing else prompt_template.rpartition("{prompt}")[2]
        self.opening = THOUGHT if closing.rfind(THOUGHT) > closing.rfind(END_OF_THOUGHT) else ""

    def student(self, prompt: Prompt) -> list[int]:
        """Return the token ids of the student's prompt."""
        return self._encode(prompt.text, prompt.instruction)

    def teacher(self, prompt: Prompt, solution: str, question: str | None = None) -> list[int]:
        """Return the token ids of the teacher's prompt; an empty solution gives the student's prompt, without the template.

        Args:
            solution: the teacher context.
            question: the question in the teacher's prompt; None for the student's own question.
        """
        if not solution.strip():
            return self.student(prompt)
        question = prompt.text if question is None else question
        return self._encode(filled(self._teacher_template, prompt=question, solution=solution), prompt.instruction)

    def check_parity(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts where student and teacher differ by more than the teacher context.

        An empty context must give exactly the student's tokens at every call (a chat template that reads the clock does not),
        and all prompts of student and teacher must end in the same tokens, so that a response begins alike: a boundary
        ``<think>`` on one side only would change the response's meaning.

        Raises:
            UserError: naming the problem.
        """
        for prompt in prompts:
            student = self.student(prompt)
            if self.teacher(prompt, "") != student:
                raise UserError(
                    f"teacher.template: an empty context must give the teacher exactly the student's tokens, and for problem "
                    f"{prompt.id} it does not; does the chat template read the time or draw at random?"
                )
            teacher = self.teacher(prompt, "0")
            count = max(1, len(self._closing))
            if teacher[-count:] != student[-count:]:
                raise UserError(
                    f"teacher.template: the teacher's prompt for problem {prompt.id} ends in "
                    f"{self._tokenizer.decode(teacher[-count:])!r}, the student's in "
                    f"{self._tokenizer.decode(student[-count:])!r}; both must end alike for a response to mean the same: put "
                    "the common end into model.prompt_template."
                )

    def _encode(self, text: str, instruction: str) -> list[int]:
        template = self._prompt_template if instruction else without_instruction(self._prompt_template)
        text = filled(template, prompt=text, instruction=instruction)
        if self._style == "chat":
            return self._chat(text, add_generation_prompt=True)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = self._tokenizer.bos_token_id
        return [bos, *ids] if bos is not None else list(ids)

    def _chat(self, text: str, add_generation_prompt: bool) -> list[int]:
        extra = {} if self._thinking is None else {"enable_thinking": self._thinking}
        ids = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=False,
            **extra,
        )
        return list(ids)

    def _after_the_user(self) -> list[int]:
        """Return the tokens that the chat template adds after the user's turn, before the response; [] in style plain."""
        if self._style == "plain":
            return []
        return self._chat("0", add_generation_prompt=True)[len(self._chat("0", add_generation_prompt=False)) :]


def filled(template: str, **texts: str) -> str:
    """Return a template with every ``{name}`` replaced by its text, in one pass: braces inside the texts stay unchanged."""
    return re.sub(r"\{(\w+)\}", lambda match: texts.get(match[1], match[0]), template)


def without_instruction(template: str) -> str:
    """Return a prompt template for a problem whose own text says how to answer."""
    return template.replace("\n{instruction}", "").replace("{instruction}", "")
