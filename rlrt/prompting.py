"""One way from a problem to token ids, for the student and the teacher alike."""

from __future__ import annotations

from typing import Any

from rlrt.errors import UserError
from rlrt.types import Prompt


class PromptBuilder:
    """Writes prompts as token ids.

    Args:
        tokenizer: a transformers tokenizer.
        style: ``plain`` (``prompt_template`` around the text) or ``chat`` (the tokenizer's chat template).
        prompt_template: for ``plain``; ``{prompt}`` stands for the text.
        thinking: for ``chat``: passed to the template as ``enable_thinking`` unless None.
        teacher_template: the teacher's text; ``{prompt}`` and ``{solution}`` stand for the texts.

    Raises:
        UserError: for a chat style without a chat template, or a template that lacks its placeholders.
    """

    def __init__(
        self, tokenizer: Any, style: str, prompt_template: str, thinking: bool | None, teacher_template: str
    ) -> None:
        if style == "chat" and not tokenizer.chat_template:
            raise UserError(
                "model.style=chat needs a tokenizer with a chat template, and this model's has none; set model.style=plain "
                "(base models) or choose another model.path."
            )
        if style == "plain" and "{prompt}" not in prompt_template:
            raise UserError(f"model.prompt_template: expected a text with {{prompt}} in it, got {prompt_template!r}.")
        missing = [f for f in ("{prompt}", "{solution}") if f not in teacher_template]
        if missing:
            raise UserError(f"teacher.template: {missing[0]} is missing in {teacher_template!r}.")
        self._tokenizer, self._style = tokenizer, style
        self._prompt_template, self._thinking, self._teacher_template = prompt_template, thinking, teacher_template

    def student(self, prompt: Prompt) -> list[int]:
        """Token ids of the student's prompt."""
        return self._encode(prompt.text)

    def teacher(self, prompt: Prompt, solution: str) -> list[int]:
        """Token ids of the teacher's prompt; an empty solution bypasses the template, so teacher equals student."""
        if not solution:
            return self._encode(prompt.text)
        text = self._teacher_template.replace("{solution}", "\0").replace("{prompt}", prompt.text)
        return self._encode(text.replace("\0", solution))

    def _encode(self, text: str) -> list[int]:
        if self._style == "chat":
            extra = {} if self._thinking is None else {"enable_thinking": self._thinking}
            ids = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **extra,
            )
            return list(ids)
        ids = self._tokenizer(self._prompt_template.replace("{prompt}", text), add_special_tokens=False)["input_ids"]
        bos = self._tokenizer.bos_token_id
        return [bos, *ids] if bos is not None else list(ids)
