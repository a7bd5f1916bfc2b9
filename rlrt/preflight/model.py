"""Facts about a model before its weights are read: config and tokenizer, from a folder or the hub's local cache."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.execution.build import prompt_builder
from rlrt.execution.memory.sizes import Sizes, sizes_of
from rlrt.model.load import context_length
from rlrt.model.prompting import PromptBuilder
from rlrt.paths import resolve_path


def source_of(settings: Settings) -> Path | None:
    """Return the local folder that holds a model's ``config.json``; None if there is none."""
    source = resolve_path(settings.model.path)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        return None
    cached = try_to_load_from_cache(source, "config.json", revision=settings.model.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def config_of(settings: Settings) -> Any:
    """Return the model's transformers config.

    Raises:
        UserError: if the config is not on this machine, or cannot be read.
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
    """Return the sizes of the model, its adapters included.

    Raises:
        UserError: if the model's config is not available.
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
    """Return ``sizes_of``, cached for each model: a sweep has many jobs on few models."""
    name = (source, attention, lora, targets)
    if name not in _known:
        _known[name] = sizes_of(config, attention, lora, targets)
    return _known[name]


@functools.cache
def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return (
            tokenizer if tokenizer("1", add_special_tokens=False)["input_ids"] else None
        )  # transformers makes an empty one if the file is missing
    except Exception:  # an error is a finding and must not end the command
        return None


def builder_of(settings: Settings) -> PromptBuilder | None:
    """Return the prompt builder of a run; None if the tokenizer is not on this machine.

    Raises:
        UserError: for an invalid template.
    """
    folder = source_of(settings)
    tokenizer = _tokenizer(str(folder)) if folder is not None else None
    return None if tokenizer is None else prompt_builder(settings, tokenizer)


def context_of(settings: Settings) -> int:
    """Return the maximum number of tokens of prompt and response together.

    Raises:
        UserError: if the config is not available, or if more tokens are requested than the model has positions.
    """
    return context_length(SimpleNamespace(config=config_of(settings)), settings.model.context_length)
