"""The embedded model's tokenizer: whole numbers 0..99 and the symbols of countdown, 112 tokens in all."""

from __future__ import annotations

from typing import Any

SPECIAL = ("<pad>", "<bos>", "<eos>")
TOKENS = [*SPECIAL, *(str(n) for n in range(100)), *"+-*=,;:|>"]
TOKEN_ID = {token: i for i, token in enumerate(TOKENS)}
TAGS = ("<think>", "</think>")
WITH_TAGS = TOKEN_ID | {tag: len(TOKENS) + i for i, tag in enumerate(TAGS)}
"""The testbed's vocabulary: also the tags of a thought."""


def build(tags: bool = False) -> Any:
    """Return a transformers tokenizer whose decoding of any token sequence encodes to the same tokens again.

    Two consecutive numbers are decoded with a space between them, so ``1 2`` never reads as ``12``.

    Args:
        tags: True for the vocabulary with the tags of a thought.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(TOKEN_ID, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(r"\d+|[^\d]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"^(?=\d)"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<!\d) "), ""),
        ]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    if tags:
        made.add_tokens(list(TAGS))
    return made
