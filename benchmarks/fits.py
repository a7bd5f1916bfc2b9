"""What fits on which cards by preflight's estimate, as docs/cluster.md shows it: ``python -m benchmarks.fits``.

The paper's recipe on every model and every choice of ``cluster``, with vLLM and with ``engine=hf engine.max_rows=16``.
Prompts of 1,024 tokens, responses of 20,480, all as long as they may be. No card has confirmed a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.execution.memory.estimate import PHASES, Estimate, Layout, Lengths, estimate
from rlrt.execution.memory.sizes import sizes_of

CONFIGS = Path(__file__).parents[1] / "tests" / "model" / "hub_configs"
MODELS = ("qwen3_0.6b", "qwen3_1.7b", "qwen3_4b", "qwen3_8b")
CARDS = {"h100x1": 1, "h100x1_lora": 1, "h100x8": 8, "h100x8x2": 16}
"""Processes of each choice of ``cluster``."""
ENGINES = {"vllm": (), "hf": ("engine=hf", "engine.max_rows=16")}
CARD = 80 * 10**9
"""Bytes of an H100."""
PROMPT = 1024
"""Tokens of the longest prompt."""


def estimates() -> Iterator[tuple[str, str, str, Estimate]]:
    """Yield model, cluster, engine and the estimate of RLRT on them."""
    for model in MODELS:
        config = AutoConfig.for_model(**json.loads((CONFIGS / f"{model}.json").read_text()))
        for cluster, processes in CARDS.items():
            for engine, more in ENGINES.items():
                made = load(composed(["experiment=paper/qwen3_8b/rlrt", f"model={model}", f"cluster={cluster}", *more]))
                lora = made.model
                sizes = sizes_of(config, lora.attn_implementation, lora.lora, lora.lora_targets, lora.lora_alpha)
                lengths = Lengths(PROMPT, made.teacher.max_context_tokens)
                layout = Layout("cuda", processes, processes > 1, CARD)
                yield model, cluster, engine, estimate(sizes, made, lengths, layout)


def rows() -> Iterator[str]:
    """Yield the table line by line."""
    yield "| model | cluster | engine | " + " | ".join(PHASES) + " | fits 80 GB | what decides |"
    yield "|---" * (len(PHASES) + 5) + "|"
    for model, cluster, engine, found in estimates():
        phase = found.worst
        parts = found.phases[phase]
        part = max(parts, key=lambda name: parts[name])
        cells = [f"{found.total(p) / 1e9:.1f}" for p in PHASES]
        fits = "yes" if found.peak <= CARD else "no"
        yield f"| {model} | {cluster} | {engine} | {' | '.join(cells)} | {fits} | {phase}: {part} {parts[part] / 1e9:.1f} |"


if __name__ == "__main__":
    print("\n".join(rows()))
