"""Convert problems to token ids, in one way for student and teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rlrt.errors import UserError, first_line
from rlrt.model.plain_text import END_OF_THOUGHT, TAGS, THOUGHT, PlainText, beginning
from rlrt.types import Prompt

ANSWER = "an answer"
"""An assistant's text, to see what a chat template writes after it."""


class PromptBuilder:
    """Builds prompts as token ids. What looks like a control token inside a problem or a solution is plain text.

    Args:
        tokenizer: a transformers tokenizer.
        style: ``plain`` (the text unchanged) or ``chat`` (the tokenizer's chat template around the text).
        prompt_template: the model's prompt; ``{prompt}`` and ``{instruction}`` stand for the problem's texts.
        thinking: for style ``chat``, passed to the template as ``enable_thinking`` unless None.
        teacher_template: the teacher's prompt; ``{prompt}`` and ``{solution}`` stand for the question and the teacher context.
        bos: for style ``plain``, whether a prompt begins with the beginning of sequence: ``auto`` (as the tokenizer does it
            for a text), ``always`` or ``never``.
        examples: most worked examples of a prompt that stand before its question: in style ``plain`` the template around
            the example's question, then its answer, on lines of their own; in style ``chat`` turns of user and assistant.

    Attributes:
        examples: as given.
        opening: the part of the response that the prompt already contains: ``<think>`` if the template of a thinking model
            opens the thought, else empty. A verifier must see it.

    Raises:
        UserError: for a chat style without a chat template, a thinking switch that the template ignores, or a
            template without its placeholders.
    """

    def __init__(
        self,
        tokenizer: Any,
        style: str,
        prompt_template: str,
        thinking: bool | None,
        teacher_template: str,
        bos: str = "auto",
        examples: int = 0,
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
        self.examples = examples
        self._texts = PlainText(tokenizer)
        self._beginning = beginning_of(tokenizer, bos) if style == "plain" else []
        self._closing = self._after_the_user()
        closing = tokenizer.decode(self._closing) if self._closing else prompt_template.rpartition("{prompt}")[2]
        self.opening = THOUGHT if closing.rfind(THOUGHT) > closing.rfind(END_OF_THOUGHT) else ""

    def student(self, prompt: Prompt) -> list[int]:
        """Return the token ids of the student's prompt."""
        guard, encode = self._texts.marks()
        return self._encode(guard(prompt.text, False), prompt, guard, encode)

    def shown(self, prompt: Prompt) -> tuple[tuple[str, str], ...]:
        """Return the worked examples that stand before a prompt's question."""
        return prompt.examples[: self.examples]

    @property
    def spaces_examples(self) -> bool:
        """True if a worked example's answer stands behind its prompt with a space between them that no template writes."""
        return self._style == "plain" and not self._prompt_template[-1:].isspace()

    def letters(self, prompt: Prompt) -> int:
        """Return how many characters of the data a prompt has: an order by length without encoding it."""
        shown = self.shown(prompt)
        return sum(
            map(len, (prompt.text, *(text for pair in shown for text in pair), *[prompt.instruction] * len(shown)))
        )

    def teacher(self, prompt: Prompt, solution: str, question: str | None = None) -> list[int]:
        """Return the token ids of the teacher's prompt; an empty solution gives the student's prompt, without the template.

        Args:
            solution: the teacher context; shown without the white space around it, such as the newline that ended a response.
            question: the question in the teacher's prompt; None for the student's own question.
        """
        solution = solution.strip()
        if not solution:
            return self.student(prompt)
        question = prompt.text if question is None else question
        guard, encode = self._texts.marks()
        # a solution that the model wrote has the tags of its own thought
        text = filled(self._teacher_template, prompt=guard(question, False), solution=guard(solution, True))
        return self._encode(text, prompt, guard, encode)

    def response(self, prompt: Prompt, template: str) -> list[int]:
        """Return the token ids of the data's own response to a prompt, without the token that ends it.

        Args:
            template: ``{solution}`` and ``{answer}`` stand for the problem's texts, of which control tokens other than the tags
                of a thought are plain text.
        """
        guard, encode = self._texts.marks(first=False)
        texts = {name: guard(text, True) for name, text in response_texts(prompt).items()}
        return encode(filled(template, **texts))

    def ending(self, stop_ids: Sequence[int]) -> int:
        """Return the token that ends a response: the first of ``stop_ids`` that the chat template writes after an assistant's
        turn, or else the first of them.

        Raises:
            UserError: where there is none.
        """
        if not stop_ids:
            raise UserError(
                "model.stop_tokens: this model names no token that ends a response; set model.stop_tokens=[TOKEN]."
            )
        written: list[int] = []
        if self._style == "chat":
            _, encode = self._texts.marks(first=False)
            written = encode(self._chat("0", add_generation_prompt=False, answer=ANSWER).rpartition(ANSWER)[2])
        return next((i for i in written if i in stop_ids), stop_ids[0])

    def control_tokens(self, prompt: Prompt) -> list[str]:
        """Return the control tokens that a problem's texts spell, which are encoded as plain text."""
        solution = self._texts.control_tokens(prompt.solution or "")
        return self._texts.control_tokens(prompt.text) + [token for token in solution if token not in TAGS]

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

    def _encode(
        self, text: str, prompt: Prompt, guard: Callable[[str, bool], str], encode: Callable[[str], list[int]]
    ) -> list[int]:
        instruction = prompt.instruction
        template = self._prompt_template if instruction else without_instruction(self._prompt_template)
        asked = filled(template, prompt=text, instruction=instruction)
        shown = [
            (filled(template, prompt=guard(question, False), instruction=instruction), guard(answer, True))
            for question, answer in self.shown(prompt)
        ]
        if self._style == "chat":
            return encode(self._chat(asked, add_generation_prompt=True, examples=shown))
        before = [f"{question}{'' if question[-1:].isspace() else ' '}{answer}\n" for question, answer in shown]
        return [*self._beginning, *encode("".join(before) + asked)]

    def _chat(
        self,
        text: str,
        add_generation_prompt: bool,
        answer: str | None = None,
        examples: Sequence[tuple[str, str]] = (),
    ) -> str:
        """Return the chat template around the examples as earlier turns, a user's text, and the assistant's where there is one.

        Raises:
            UserError: for a template that is no valid one, or that refuses the conversation.
        """
        extra = {} if self._thinking is None else {"enable_thinking": self._thinking}
        asked = [*examples, (text, answer)]
        turns = [
            {"role": role, "content": content}
            for pair in asked
            for role, content in zip(("user", "assistant"), pair, strict=True)
            if content is not None
        ]
        try:
            rendered = self._tokenizer.apply_chat_template(
                turns,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **extra,
            )
        except Exception as error:  # jinja's many types, and whatever a template's own expressions raise
            of, remedy = "one user message", "mend its chat_template, or set model.style=plain"
            if examples:
                of, remedy = (
                    "worked examples as earlier turns and a user message",
                    "set model.examples=0 or model.style=plain",
                )
            raise UserError(
                f"model.path: the chat template of this model fails on a conversation of {of} "
                f"({type(error).__name__}: {first_line(error)}); {remedy}."
            ) from None
        return str(rendered)

    def _after_the_user(self) -> list[int]:
        """Return the tokens that the chat template adds after the user's turn, before the response; [] in style plain."""
        if self._style == "plain":
            return []
        _, encode = self._texts.marks()
        with_prompt, without = (encode(self._chat("0", add_generation_prompt=add)) for add in (True, False))
        return with_prompt[len(without) :]


def beginning_of(tokenizer: Any, bos: str) -> list[int]:
    """Return the tokens that begin a plain prompt.

    Args:
        bos: ``auto``, ``always`` (wherever the tokenizer has one) or ``never``.
    """
    if bos == "auto":
        return beginning(tokenizer)
    return [] if bos == "never" or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def response_texts(prompt: Prompt) -> dict[str, str]:
    """Return the texts of a problem that a response can be made of, without white space around them; those that it has."""
    texts = {"solution": prompt.solution, "answer": prompt.final}
    return {name: text.strip() for name, text in texts.items() if text is not None and text.strip()}


def filled(template: str, **texts: str) -> str:
    """Return a template with every ``{name}`` replaced by its text, in one pass: braces inside the texts stay unchanged."""
    return re.sub(r"\{(\w+)\}", lambda match: texts.get(match[1], match[0]), template)


def without_instruction(template: str) -> str:
    """Return a prompt template for a problem whose own text says how to answer."""
    return template.replace("\n{instruction}", "").replace("{instruction}", "")
