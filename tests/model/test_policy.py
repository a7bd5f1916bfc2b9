"""The texts of single tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlrt.model.policy import Policy


def bytes_alone():
    """A policy whose tokenizer has a token for each byte, and nothing else."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return Policy(None, PreTrainedTokenizerFast(tokenizer_object=made), None, 1.0)


def test_a_character_of_several_tokens_stands_whole_at_its_first():
    policy = bytes_alone()
    ids = policy.tokenizer("né 🙂!", add_special_tokens=False)["input_ids"]
    assert len(ids) == 1 + 2 + 1 + 4 + 1
    pieces = policy.spell(ids)
    assert pieces == ["n", "é", "", " ", "🙂", "", "", "", "!"]


def test_bytes_that_are_no_character_stay_single():
    policy = bytes_alone()
    n, first, second = policy.tokenizer("né", add_special_tokens=False)["input_ids"]
    assert policy.spell([first]) == ["\ufffd"]  # cut in its middle
    assert policy.spell([second, n, first, second]) == ["\ufffd", "n", "é", ""]
    assert policy.spell([first, n]) == ["\ufffd", "n"]
    assert policy.spell([]) == []
