"""Peak memory of one update in a process of its own: ``python -m benchmarks.speed.memory VOCABULARY ROLLOUTS TOKENS BUDGET``.

A Qwen3 of 18.9M parameters and the embedding; GRPO's loss over ROLLOUTS responses of TOKENS tokens, eight to a prompt, forward
and backward. Printed: mebibytes above what the process held with weights and gradients allocated, and how many micro-batches.
The gradient of a tied embedding is made once more than it is stored (the output layer's part and the input's): V x 512 x 4
bytes each, printed apart.
"""

from __future__ import annotations

import json
import resource
import sys

import torch

from rlrt.methods.entropy import entropy
from rlrt.model.allocator import keep_freed_memory
from rlrt.model.forward import Row, micro_batches, over_tokens, response_hidden
from rlrt.model.paths import choose


def held() -> float:
    """Peak resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(vocabulary: int, rollouts: int, tokens: int, budget: int) -> None:
    """Print the figures as JSON."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    keep_freed_memory()
    torch.set_num_threads(2)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    choose(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    base = held()
    rows = [Row([5, 6, 7, 8 + i // 8], [9] * tokens) for i in range(rollouts)]
    batches = micro_batches(model, rows, budget)
    for batch in batches:
        chosen = [rows[i] for i in batch]
        token_N = torch.cat([torch.tensor(r.response_ids) for r in chosen])

        def compute(logp_CV: torch.Tensor, where: slice, token_N: torch.Tensor = token_N) -> tuple[torch.Tensor, ...]:
            return logp_CV.gather(-1, token_N[where, None])[:, 0], entropy(logp_CV.detach())

        hidden = response_hidden(model, chosen)
        over_tokens(model, hidden, 1.0, compute)[0].mean().backward()
    embedding = vocabulary * 512 * 4 / 2**20
    print(json.dumps({"mib": held() - base, "embedding_mib": 2 * embedding, "micro_batches": len(batches)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
