"""The longest sequences that a run will meet, as far as its data and tokenizer are known."""

from __future__ import annotations

from collections.abc import Sequence

from rlrt.config.schema import Settings
from rlrt.execution.data import longest_prompt
from rlrt.execution.memory.estimate import Lengths
from rlrt.methods.contexts import FromData, configured
from rlrt.model.prompting import PromptBuilder
from rlrt.types import Prompt

TRIED = 32
"""Number of longest texts among which the longest prompt of a teacher is searched."""
TEMPLATE = 64
"""Tokens that a teacher's template adds to a prompt and a solution, at most."""
UNKNOWN_PROMPT = 512
"""Assumed tokens of a prompt if neither data nor tokenizer are on this machine."""


def lengths_of(
    settings: Settings, prompts: Sequence[Prompt], builder: PromptBuilder | None, context: int
) -> tuple[Lengths, str]:
    """Return the lengths of the longest prompts, as far as data and tokenizer are known, and the source of the number.

    Args:
        prompts: prompts of the data; empty if they could not be read.
        builder: the prompt builder; None if the tokenizer is not on this machine.
        context: maximum tokens of prompt and response together.
    """
    most = settings.data.max_prompt_tokens
    room = max(1, context - settings.engine.max_new_tokens)
    if builder is not None and prompts:
        prompt, source = longest_prompt(builder, prompts), "as the data has"
    else:
        prompt, source = min(most or UNKNOWN_PROMPT, room), "data.max_prompt_tokens" if most else "a guess"
    teacher_context = configured(settings.teacher.context, settings.teacher.on_unique_correct)
    # a longer prompt of the teacher leaves a shorter response, so the sequence is no longer than with this one
    context = limit = min(settings.teacher.max_context_tokens, room)
    if not isinstance(teacher_context, FromData):
        asked = prompt + TEMPLATE
        if builder is not None and prompts:  # a template may repeat the question
            longest = sorted(prompts, key=builder.letters)[-TRIED:]
            asked = max(asked, *(len(builder.teacher(p, "0")) for p in longest))
        context = asked + settings.engine.max_new_tokens
    elif builder is not None and prompts:
        pairs = sorted(((p, teacher_context.text_of(p) or "") for p in prompts), key=lambda pair: len(pair[1]))[-TRIED:]
        context = max(len(builder.teacher(p, text, teacher_context.question(p))) for p, text in pairs)
    return Lengths(prompt, max(prompt, min(context, limit))), source
