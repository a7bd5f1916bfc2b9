"""Texts of problems and responses as tokens: what looks like a control token inside a problem is encoded as the letters that it
is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

THOUGHT, END_OF_THOUGHT = "<think>", "</think>"
TAGS = (THOUGHT, END_OF_THOUGHT)
TAG = re.compile(f"({THOUGHT}|{END_OF_THOUGHT})")
MARK = "\ue000"
"""A letter of Unicode's private use area, around the number of a text that waits to be encoded."""
MARKED = re.compile(f"{MARK}(\\d+){MARK}")


class PlainText:
    """Encodes texts of which some parts are data: in these no control token is recognised.

    A control token is any token that was added to the tokenizer's vocabulary, special or not: ``<|im_end|>`` ends a turn and
    ``<think>`` opens a thought, wherever the tokenizer reads them.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = [str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()]
        self._control = pattern([*added, MARK])
        self._without: Any = None
        self._behind: Any = None

    def control_tokens(self, text: str) -> list[str]:
        """Return the control tokens that the tokenizer would read in a text, in their order."""
        return [found for found in self._control.findall(text) if found != MARK]

    def marks(self, first: bool = True) -> tuple[Callable[[str, bool], str], Callable[[str], list[int]]]:
        """Return two functions for one prompt: ``guard(text, tags)`` gives what stands for a data text in a template (the text
        itself where it holds no control token; with ``tags`` the tags of thoughts are no control tokens), and
        ``encode(rendered)`` the token ids of the filled template.

        Args:
            first: False for a response, which stands behind its prompt: no space is put before it.
        """
        texts: list[str] = []

        def guard(text: str, tags: bool) -> str:
            if tags:
                return "".join(part if part in TAGS else guard(part, False) for part in TAG.split(text))
            if self._control.search(text) is None:
                return text
            texts.append(text)
            return f"{MARK}{len(texts) - 1}{MARK}"

        def encode(rendered: str) -> list[int]:
            if not texts:
                return self._read(rendered, first)
            ids: list[int] = []
            for i, part in enumerate(MARKED.split(rendered)):
                if i % 2:
                    ids += self._plain(texts[int(part)], first=first and not ids)
                elif part:
                    ids += self._read(part, first or bool(ids))
            return ids

        return guard, encode

    def _read(self, text: str, first: bool) -> list[int]:
        """Return the ids of a text in which control tokens are recognised; unless it is ``first``, without a space before it
        that the tokenizer would put there."""
        if first:
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._behind is None:
            self._behind = behind(self._tokenizer)
        return list(self._behind.encode(text, add_special_tokens=False).ids)

    def _plain(self, text: str, first: bool) -> list[int]:
        """Return the ids of a text in which no control token is recognised."""
        if self._without is None:
            self._without = {first: without_added(self._tokenizer, first) for first in (True, False)}
        return list(self._without[first].encode(text, add_special_tokens=False).ids)


def pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """Return the expression that finds any of the tokens, the longest first."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


def without_added(tokenizer: Any, first: bool) -> Any:
    """Return the tokenizer's own model without the tokens that were added to its vocabulary.

    Args:
        first: True if the text begins the prompt; else no space is put before it where the tokenizer would put one.
    """
    from tokenizers import Tokenizer

    described = json.loads((tokenizer.backend_tokenizer if first else behind(tokenizer)).to_str())
    described["added_tokens"], described["post_processor"] = [], None
    return Tokenizer.from_str(json.dumps(described))


def behind(tokenizer: Any) -> Any:
    """Return the tokenizer's own model for a text that stands behind another one: it puts no space before it."""
    from tokenizers import Tokenizer

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer"):
        described[part] = unprefixed(described.get(part))
    return Tokenizer.from_str(json.dumps(described))


def unprefixed(part: Any) -> Any:
    """Return a tokenizer's normalizer or pre-tokenizer, as its file describes it, without the space that it prepends."""
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    made = dict(part)
    if part.get("type") == "Metaspace":
        made["prepend_scheme"] = "never"
    if part.get("type") == "ByteLevel":
        made["add_prefix_space"] = False
    for key in ("normalizers", "pretokenizers"):
        if key in part:
            made[key] = [one for one in map(unprefixed, part[key]) if one is not None]
    return made


def beginning(tokenizer: Any) -> list[int]:
    """Return the tokens that a tokenizer itself puts before a text (a beginning of sequence), [] for none."""
    bare, whole = (list(tokenizer("0", add_special_tokens=add)["input_ids"]) for add in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of a response without special tokens, but with the tags of its thought, which a tokenizer may call
    special too."""
    special = {tokenizer.convert_tokens_to_ids(tag): tag for tag in TAGS if tag in tokenizer.all_special_tokens}
    if not special:
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    words, part = [], list[int]()
    for token in ids:
        if token in special:
            words += [tokenizer.decode(part, skip_special_tokens=True), special[token]]
            part = []
        else:
            part.append(token)
    return "".join([*words, tokenizer.decode(part, skip_special_tokens=True)])
