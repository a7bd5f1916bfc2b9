"""Load a model and its tokenizer from a folder or the hub, and refuse those that the trainer cannot use."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlrt.errors import UserError, first_line, shown
from rlrt.model import slices
from rlrt.model.files import check_folder, check_hub, not_on_hub_error
from rlrt.model.paths import choose
from rlrt.paths import SMOLLM2, existing, resolve_path

log = logging.getLogger("rlrt")
UNLIMITED_CONTEXT = 1_000_000
"""Context length in tokens of a model whose config states no limit."""


def load(
    path: str, revision: str | None, attention: str, check_size: Callable[[int], None] | None = None
) -> tuple[Any, Any]:
    """Load model and tokenizer from a folder in the hub's format, or from the hub; weights in float32, dropout off.

    Weights are read from safetensors only, and no code that comes with a model is run. Dropout is off because it would make
    the ratio of new to old log-probabilities noise, and a resumed run could not repeat the uninterrupted one.

    Raises:
        UserError: for a folder without weights or with a broken config, for files that point outside the folder, for
            weights other than those that the config asks for, and for a hub that cannot be reached.
    """
    source, revision = located(path, revision, attention, check_size)
    return loaded(path, source, revision, attention)


def load_outline(
    path: str, revision: str | None, attention: str, check_size: Callable[[int], None] | None = None
) -> tuple[Any, Any, dict[str, Path]]:
    """``load`` for weights that will be sharded: the model on the meta device, the tokenizer, and the file of each weight.

    Whoever fills the model (``rlrt.model.slices.read``) checks its output layer then, where ``rlrt.model.paths`` could not. A
    model that cannot be read by slices is loaded whole, and then there are no files.

    Raises:
        UserError: as ``load`` does.
    """
    source, revision = located(path, revision, attention, check_size)
    try:
        model, files = slices.outline(source, revision, attention)
        tokenizer = tokenizer_of(source, revision)
    except slices.WholeError as reason:
        log.info("model.path: each process reads the whole model, because %s", reason)
        return *loaded(path, source, revision, attention), {}
    except Exception:  # loading it whole meets the same error, and has a sentence for it
        return *loaded(path, source, revision, attention), {}
    check_tokenizer(path, model, tokenizer)
    no_dropout(model)
    choose(model)
    return model, tokenizer, files


def located(
    path: str, revision: str | None, attention: str, check_size: Callable[[int], None] | None
) -> tuple[str, str | None]:
    """Check a model's files and size before any weight is read; returns its folder or hub id, and the commit to load.

    Raises:
        UserError: for files that are missing, broken or point elsewhere, and for a hub that cannot be reached.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    check_attention(attention)
    source = resolve_path(path)
    folder = existing(source)
    if folder is not None and folder.is_dir():
        check_folder(folder)
    elif folder is not None or source.startswith((".", "/", "~")) or source.count("/") != 1:
        remedy = "; make it first: python -m rlrt.smollm2" if path == SMOLLM2 else ""
        raise UserError(
            f"model.path: expected a folder or a hub id such as Qwen/Qwen3-1.7B, got {shown(path)}, which is no folder{remedy}."
        )
    else:
        revision = check_hub(source, revision)
    if check_size is not None:
        check_size(count_weights(source, revision))
    return source, revision


def loaded(path: str, source: str, revision: str | None, attention: str) -> tuple[Any, Any]:
    """Load model and tokenizer from the place that ``located`` checked.

    Raises:
        UserError: for a model that cannot be loaded, or that the trainer cannot use.
    """
    from transformers import AutoModelForCausalLM

    try:
        tokenizer = tokenizer_of(source, revision)
        found: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision or "main",
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many types for one cause: the model cannot be loaded
        if existing(source) is not None:
            raise UserError(f"model.path: {path} could not be loaded: {first_line(error)}") from error
        raise not_on_hub_error(path, first_line(error), revision) from error
    model, report = found
    check_tensors(path, str(model.config.model_type), report)
    check_tokenizer(path, model, tokenizer)
    untie(path, model)
    no_dropout(model)
    choose(model)
    return model, tokenizer


def tokenizer_of(source: str, revision: str | None) -> Any:
    """Load a model's tokenizer; no code that comes with it is run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, revision=revision or "main", trust_remote_code=False)


def check_tokenizer(path: str, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that does not belong to the model, or that is none.

    Raises:
        UserError: naming what is wrong.
    """
    check_vocabulary(path, model, tokenizer)
    if not tokenizer("1", add_special_tokens=False)["input_ids"]:
        raise UserError(f"model.path: the tokenizer of {path} gives no tokens for '1'; is its tokenizer.json there?")


def no_dropout(model: Any) -> None:
    """Switch dropout off."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def count_weights(source: str, revision: str | None) -> int:
    """Number of weights of a model, from its config alone; 0 where the config cannot be read, which ``load`` reports."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # load meets the same error, and has a sentence for it
        return 0
    return sum(p.numel() for p in model.parameters())


def check_tensors(path: str, kind: str, report: Mapping[str, Any]) -> None:
    """Refuse weights other than the config's: missing tensors would be random, and unused ones belong to another
    architecture.

    Args:
        kind: the config's ``model_type``.
        report: transformers' loading info.

    Raises:
        UserError: stating how many tensors differ, and the first of them.
    """
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise UserError(
            f"model.path: the weights in {path} lack {len(missing)} tensors that its config.json asks for ({missing[0]}, ...)."
        )
    unused = sorted(report["unexpected_keys"])
    if unused:
        raise UserError(
            f"model.path: the weights in {path} hold {len(unused)} tensors that its config.json (model_type {kind}) has no use "
            f"for ({unused[0]}, ...); give the config.json that belongs to the weights, or save the model without them."
        )


def set_stop_tokens(model: Any, tokenizer: Any, tokens: Sequence[str] | None) -> None:
    """Store the tokens that end a response in the model, so that its checkpoints carry them to any inference server.

    Args:
        tokens: each as its name in the vocabulary or as a text that is one token; None: the model's own.

    Raises:
        UserError: for a text that is no token, and for a model that has none of its own.
    """
    if tokens is not None:
        model.generation_config.eos_token_id = [stop_id(tokenizer, token) for token in tokens]
    own = model.generation_config.eos_token_id
    ids = tokenizer.eos_token_id if own is None else own
    ids = [ids] if isinstance(ids, int) else ids
    rows = model.get_input_embeddings().num_embeddings
    if not ids:
        raise UserError(
            "model.stop_tokens: no token ends a response, since neither the model's generation_config.json nor its tokenizer "
            "names one; set model.stop_tokens=[TOKEN]."
        )
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < rows for i in ids):
        raise UserError(
            f"model.stop_tokens: expected ids of 0 to {rows - 1} as eos_token_id in the model's generation_config.json, got "
            f"{ids!r:.80}; set model.stop_tokens=[TOKEN]."
        )


def stop_id(tokenizer: Any, token: str) -> int:
    """Return the id of a token, given by its name in the vocabulary or by its text.

    Raises:
        UserError: for a text that is no token, or several.
    """
    known = tokenizer.get_vocab()
    if token in known:
        return int(known[token])
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id and tokenizer.decode(ids) == token:
        return int(ids[0])
    # a tokenizer that puts a space before every text spells a newline by two tokens, and has a token for it all the same
    alone = [i for i in sorted(known.values()) if tokenizer.decode([i]) == token] if len(ids) > 1 else []
    if alone:
        return int(alone[0])
    raise UserError(
        f"model.stop_tokens: {token!r} is no token of this model's tokenizer ({len(ids)} tokens spell it); set "
        "model.stop_tokens=null for the model's own."
    )


def check_vocabulary(path: str, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that gives ids for which the model has no embedding.

    Raises:
        UserError: naming the first such token.
    """
    rows = model.get_input_embeddings().num_embeddings
    beyond = min(((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows), default=None)
    if beyond is not None:
        raise UserError(
            f"model.path: the tokenizer of {path} has the token {beyond[1]!r} with the id {beyond[0]}, and the model embeds "
            f"ids of 0 to {rows - 1}; give the tokenizer that belongs to the weights, or resize the embedding before."
        )


def untie(path: str, model: Any) -> None:
    """Correct a config that calls input embedding and output layer tied where the weights have an output layer of its own:
    a checkpoint with that flag would be another model to whoever trusts it."""
    config, head = model.config, model.get_output_embeddings()
    if getattr(config, "tie_word_embeddings", False) and head is not None:
        if head.weight is model.get_input_embeddings().weight:
            return
        log.warning(
            "%s: config.json says tie_word_embeddings, and the weights have an output layer of their own: it is used, and "
            "checkpoints say that it is not tied",
            path,
        )
        config.tie_word_embeddings = False


def context_length(model: Any, requested: int | None) -> int:
    """Return the maximum number of tokens of prompt and response together.

    Raises:
        UserError: if more tokens are requested than the model has positions.
    """
    positions = int(getattr(model.config, "max_position_embeddings", requested or UNLIMITED_CONTEXT))
    if requested is not None and requested > positions:
        raise UserError(f"model.context_length: expected at most the model's {positions} positions, got {requested}.")
    return requested or positions


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
