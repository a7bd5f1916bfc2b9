"""A model and its tokenizer from a folder or the hub, and what is refused of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlrt.errors import UserError, first_line
from rlrt.model import packed
from rlrt.model.files import check_folder, check_hub, no_hub
from rlrt.model.forward import evaluating
from rlrt.paths import resolve_path

LONGEST = 1_000_000
"""Tokens of context of a model whose config names no limit."""


def load(path: str, revision: str | None, attention: str) -> tuple[Any, Any]:
    """Model and tokenizer from a folder in the hub's format, or from the hub; weights in float32, no dropout.

    Weights are read from safetensors only, and no code that comes with a model is run. Dropout is switched off: with it
    the ratio of new to old log-probabilities would be noise, and a resumed run could not be the same.

    Raises:
        UserError: for a folder without weights or with a broken config, for files that lead elsewhere, for weights that are
            not those that the config asks for, and for a hub that cannot be reached.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    check_attention(attention)
    source = resolve_path(path)
    folder = Path(source)
    if folder.is_dir():
        check_folder(folder)
    elif folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(
            f"model.path: expected a folder or a hub id such as Qwen/Qwen3-1.7B, got {path!r}, which is not a folder here."
        )
    else:
        revision = check_hub(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision or "main",
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many types for one cause: the model cannot be had
        if folder.is_dir():
            raise UserError(f"model.path: {path} could not be loaded: {first_line(error)}") from error
        raise no_hub(path, first_line(error)) from error
    model, report = loaded
    check_tensors(path, str(model.config.model_type), report)
    if not tokenizer("1", add_special_tokens=False)["input_ids"]:
        raise UserError(f"model.path: the tokenizer of {path} gives no tokens for '1'; is its tokenizer.json there?")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    check_head(model)
    packed.enable(model)
    return model, tokenizer


def check_tensors(path: str, kind: str, report: Mapping[str, Any]) -> None:
    """Refuse weights that are not those of the config: what is lacking would be random, what is left over was trained with.

    Args:
        kind: the config's ``model_type``.
        report: transformers' loading info.

    Raises:
        UserError: with how many tensors differ, and the first.
    """
    lacking = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if lacking:
        raise UserError(
            f"model.path: the weights in {path} lack {len(lacking)} tensors that its config.json asks for ({lacking[0]}, ...)."
        )
    left = sorted(report["unexpected_keys"])
    if left:
        raise UserError(
            f"model.path: the weights in {path} hold {len(left)} tensors that its config.json (model_type {kind}) has no use "
            f"for ({left[0]}, ...); give the config.json that belongs to the weights, or save the model without these tensors."
        )


def set_stop_tokens(model: Any, tokenizer: Any, tokens: Sequence[str] | None) -> None:
    """Note on the model which tokens end a response, so that its checkpoints say so to whoever serves them.

    Raises:
        UserError: for a token that the tokenizer does not have.
    """
    if tokens is None:
        return
    known = tokenizer.get_vocab()
    for token in tokens:
        if token not in known:
            raise UserError(
                f"model.stop_tokens: {token!r} is no token of this model's tokenizer; set model.stop_tokens=null for the "
                "model's own."
            )
    model.generation_config.eos_token_id = [known[token] for token in tokens]


def context_length(model: Any, asked: int | None) -> int:
    """Tokens that prompt and response may have together.

    Raises:
        UserError: for more than the model has positions.
    """
    positions = int(getattr(model.config, "max_position_embeddings", asked or LONGEST))
    if asked is not None and asked > positions:
        raise UserError(f"model.context_length: expected at most the model's {positions} positions, got {asked}.")
    return asked or positions


@torch.no_grad()
def check_head(model: Any) -> None:
    """Refuse a model that does more to its logits than its output layer does (soft-capping, scaling).

    The trainer applies the output layer to the response's hidden states; the engine calls the whole model. Both must
    give one distribution.

    Raises:
        UserError: naming the difference.
    """
    ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    with evaluating(model):
        whole = model(ids, use_cache=False).logits[0].float().log_softmax(-1)
        head = model.get_output_embeddings()(model.base_model(ids, use_cache=False).last_hidden_state[0])
    gap = float((whole - head.float().log_softmax(-1)).abs().max())
    if not gap < 1e-3:
        raise UserError(
            f"model.path: this model ({type(model).__name__}) changes its logits after its output layer (log-probabilities "
            f"differ by {gap:.3g} nats), which the trainer does not do; use a Qwen3 model."
        )


def check_attention(attention: str) -> None:
    """Refuse an attention kernel that is not installed.

    Raises:
        UserError: naming the package.
    """
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            "model.attn_implementation: flash_attention_2 needs the package flash-attn, which is not installed; install it or "
            "set model.attn_implementation=sdpa."
        )
