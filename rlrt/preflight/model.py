"""A model as it is known before its weights are read: its config and its tokenizer, from a folder or the hub's local cache."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.execution.build import prompt_builder
from rlrt.model.load import context_length
from rlrt.model.prompting import PromptBuilder
from rlrt.paths import resolve_path
from rlrt.preflight.memory.estimate import Lengths
from rlrt.preflight.memory.sizes import Sizes, sizes_of
from rlrt.training.contexts import reference_text
from rlrt.types import Prompt

TRIED = 32
"""The longest prompts by letters, of which the longest by tokens is looked for."""
TEMPLATE = 64
"""Tokens that a teacher's template adds around a prompt and a solution, at most."""
UNKNOWN_PROMPT = 512
"""Tokens of a prompt where neither data nor tokenizer are here."""


def source_of(settings: Settings) -> Path | None:
    """The folder that holds a model's ``config.json`` here; None where there is none."""
    source = resolve_path(settings.model.path)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        return None
    found = try_to_load_from_cache(source, "config.json", revision=settings.model.revision)
    return Path(found).parent if isinstance(found, str) else None


def config_of(settings: Settings) -> Any:
    """The model's transformers config.

    Raises:
        UserError: where it is not here, or cannot be read.
    """
    from transformers import AutoConfig

    folder = source_of(settings)
    if folder is None:
        raise UserError(
            f"model.path: sizes are unknown, since neither a folder nor the hub's local cache holds the config.json of "
            f"{settings.model.path}; download it elsewhere and give its folder as model.path=/path/to/folder."
        )
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers raises many types for one cause
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.path: {folder / 'config.json'} could not be read: {first:.200}") from None


def model_sizes(settings: Settings) -> Sizes:
    """Sizes of the model, its adapters included.

    Raises:
        UserError: where its config cannot be had.
    """
    model = settings.model
    return _sizes(
        str(source_of(settings)),
        config_of(settings),
        model.attn_implementation,
        model.lora,
        tuple(model.lora_targets),
    )


_known: dict[tuple[Any, ...], Sizes] = {}


def _sizes(source: str, config: Any, attention: str, lora: int | None, targets: tuple[str, ...]) -> Sizes:
    """``sizes_of``, once for each model: a sweep has many jobs on few."""
    name = (source, attention, lora, targets)
    if name not in _known:
        _known[name] = sizes_of(config, attention, lora, targets)
    return _known[name]


@functools.cache
def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return found if found("1", add_special_tokens=False)["input_ids"] else None  # made up where there is no file
    except Exception:  # whatever is wrong is a finding, not the end
        return None


def builder_of(settings: Settings) -> PromptBuilder | None:
    """How prompts are written; None where the tokenizer is not here.

    Raises:
        UserError: for a template that cannot do what is asked.
    """
    folder = source_of(settings)
    tokenizer = _tokenizer(str(folder)) if folder is not None else None
    return None if tokenizer is None else prompt_builder(settings, tokenizer)


def context_of(settings: Settings) -> int:
    """Tokens that prompt and response may have together.

    Raises:
        UserError: where the config cannot be had, or for more than the model has positions.
    """
    return context_length(SimpleNamespace(config=config_of(settings)), settings.model.context_length)


def lengths_of(settings: Settings, builder: PromptBuilder | None, context: int) -> tuple[Lengths, str]:
    """The longest prompts, as far as data and tokenizer say; and where the number comes from."""
    prompts = [*getattr(settings.data, "train", []), *getattr(settings.data, "heldout", [])]
    prompts += [p for suite in settings.eval.suites.values() for p in suite.heldout]
    most = getattr(settings.data, "max_prompt_tokens", None)
    room = max(1, context - settings.engine.max_new_tokens)
    if builder is not None and prompts:
        prompt, said = longest(builder, prompts), "as the data has"
    else:
        prompt, said = min(most or UNKNOWN_PROMPT, room), "data.max_prompt_tokens" if most else "a guess"
    shown, limit = settings.teacher.context, min(settings.teacher.max_context_tokens, room)
    context = limit
    if shown == "sibling":
        context = prompt + settings.engine.max_new_tokens + TEMPLATE
    elif builder is not None and prompts:
        pairs = sorted(((p, reference_text(p, shown) or "") for p in prompts), key=lambda pair: len(pair[1]))[-TRIED:]
        context = max(len(builder.teacher(*pair)) for pair in pairs)
    return Lengths(prompt, max(prompt, min(context, limit))), said


def longest(builder: PromptBuilder, prompts: list[Prompt]) -> int:
    """Tokens of the longest prompt, among the longest by letters."""
    return max(len(builder.student(p)) for p in sorted(prompts, key=lambda p: len(p.text))[-TRIED:])
