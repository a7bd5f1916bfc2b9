"""Qwen3-0.6B and 1.7B with random weights on one GPU: tokens/s of rollout (hf and vLLM), scoring, teacher and update.

bfloat16, 32 prompts x 8 rollouts, 1,024 new tokens, three steps; each phase's share of the card's matrix peak and memory
bandwidth, and its peak memory, beside preflight's estimate of the update.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.engines.hf import HfEngine
from rlrt.engines.vllm import VllmEngine
from rlrt.execution.memory.estimate import HEADROOM, Layout, Lengths, estimate
from rlrt.execution.memory.sizes import sizes_of
from rlrt.model.forward import Row, micro_batches, over_tokens, response_hidden, score
from rlrt.model.paths import choose
from rlrt.model.policy import adamw
from rlrt.model.precision import set_compute_dtype

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "model" / "hub_configs" / "qwen3_1.7b.json"
SMALL_CONFIG = CONFIG.with_name("qwen3_0.6b.json")
DOCS = ROOT / "docs" / "gpu.md"
PEAKS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12), "A100": (312e12, 2.0e12)}
"""Dense bfloat16 operations and bytes per second, by the makers' data sheets (SXM cards)."""
PROMPT = 128
"""Tokens of a prompt."""
PROMPTS, GROUP = 32, 8
PARTS = ("checks", "phases")
"""Parts of the page."""
FEW = "rollout of one prompt"
"""Phase that is measured beside the table: one group alone, which takes the time of launches."""


def build(config: Path, device: torch.device) -> Any:
    """The model with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    made = Qwen3Config(**json.loads(config.read_text()), attn_implementation="sdpa")
    with device:
        model = Qwen3ForCausalLM(made)
    choose(model)
    set_compute_dtype(model, torch.bfloat16)
    return model.train()


def measured(device: torch.device, work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(seconds, peak GiB, result) of one call."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0, result


def update(model: Any, optimiser: torch.optim.Optimizer, rows: list[Row], token_budget: int) -> None:
    """Forward, backward and one optimiser step."""
    for batch in micro_batches(model, rows, token_budget):
        chosen = [rows[i] for i in batch]
        token_N = torch.cat([torch.tensor(r.response_ids) for r in chosen]).to(next(model.parameters()).device)

        def compute(logp_CV: torch.Tensor, where: slice, token_N: torch.Tensor = token_N) -> tuple[torch.Tensor, ...]:
            return (logp_CV.gather(-1, token_N[where, None])[:, 0],)

        over_tokens(model, response_hidden(model, chosen), 1.0, compute)[0].sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


Given = argparse.Namespace


def arguments() -> Given:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="config.json of a Qwen3")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=1024, help="new tokens of a rollout")
    parser.add_argument("--token-budget", type=int, default=8192, help="train.token_budget")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, help="one part; the page keeps the other as it was")
    parser.add_argument(
        "--rates", type=Path, help="write the measured rates here, for rlrt.preflight and benchmarks.throughput"
    )
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: expected a CUDA GPU, found none here; run it where there is one.")
    return given


def cases(given: Given) -> list[Given]:
    """What is measured: the config that was typed; on a GPU without one Qwen3-0.6B and then Qwen3-1.7B."""
    if given.device == "cpu" or given.config != CONFIG:
        return [given]
    return [argparse.Namespace(**vars(given) | {"config": config}) for config in (SMALL_CONFIG, CONFIG)]


class Table:
    """Lines of the table, printed as they come.

    Args:
        parameters: of the matrices that every token passes.
        peaks: operations and bytes per second of the card.
    """

    def __init__(self, title: str, parameters: int, peaks: tuple[float, float]) -> None:
        self.parameters, self.peaks = parameters, peaks
        self.seconds: dict[str, list[float]] = {}
        self.notes = ""
        self.text = (
            f"{title}\n\n| step | phase | s | tokens/s | of matrix peak | of bandwidth | peak GiB |\n{'|---' * 7}|\n"
        )
        print(self.text, end="")

    def line(
        self, step: int, phase: str, took: tuple[float, float, Any], tokens: int, passes: int, moved: float = 0.0
    ) -> None:
        """One phase: ``passes`` forward passes' worth of matrix work on each token, ``moved`` bytes read."""
        seconds, memory, _ = took
        self.seconds.setdefault(phase, []).append(seconds)
        matrix = f"{2 * passes * self.parameters * tokens / seconds / self.peaks[0]:.1%}"
        share = f"{moved / seconds / self.peaks[1]:.1%}" if moved else ""
        words = f"| {step} | {phase} | {seconds:.2f} | {tokens / seconds:,.0f} | {matrix} | {share} | {memory:.1f} |\n"
        print(words, end="", flush=True)
        self.text += words

    def note(self, words: str) -> None:
        """A line under the table."""
        print(words, flush=True)
        self.notes += f"\n- {words}"


def three_steps(given: Given) -> tuple[Table, int, int]:
    """The table with the seconds of each phase; preflight's bytes for the update, and those that it took.

    0: on a CPU, or after one step alone, since the optimiser has no moments before its first.
    """
    device = torch.device(given.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    model = build(given.config, device)
    config = model.config
    # the input embedding is looked up, not multiplied; the output layer is
    parameters = sum(p.numel() for p in model.base_model.layers.parameters()) + config.vocab_size * config.hidden_size
    draw = random.Random(0)
    top = min(config.vocab_size, 150000)
    prompts = [[draw.randrange(3, top) for _ in range(PROMPT)] for _ in range(PROMPTS)]
    engine = HfEngine(max_new_tokens=given.tokens, temperature=1.0, max_rows=256, grade_truncated=False)
    seeds = [[100 * i + g for g in range(GROUP)] for i in range(PROMPTS)]
    optimiser = adamw(model, 1e-6, (0.9, 0.99), 0.0)
    title = (
        f"{name}, {datetime.date.today()}, torch {torch.__version__}; {given.config.stem}, {parameters / 1e9:.2f}e9 weights in "
        f"matrices, bfloat16, 32 x 8 rollouts of {given.tokens} tokens, prompts of {PROMPT}, "
        f"`train.token_budget={given.token_budget}`"
    )
    peaks = next((v for k, v in PEAKS.items() if k in name), (float("nan"), float("nan")))
    table = Table(title, parameters, peaks)
    peak_bytes = 0
    engine.load(model, [])  # nothing ends a response: all are as long as they may be
    list(engine.sample(prompts[:1], seeds[:1]))  # warm
    table.seconds[FEW] = [measured(device, lambda: list(engine.sample(prompts[:1], seeds[:1])))[0]]
    for step in range(1, given.steps + 1):
        engine.load(model, [])
        took = measured(device, lambda: list(engine.sample(prompts, seeds)))
        found = took[2]
        tokens = sum(len(g.token_ids) for _, _, g in found)
        table.line(step, "rollout", took, tokens, 1, decoding_bytes(config, parameters, given.tokens))
        rows = [Row(prompts[i], g.token_ids) for i, _, g in found]
        shown = [
            Row([*prompts[i], *found[8 * i][2].token_ids], row.response_ids)
            for (i, _, _), row in zip(found, rows, strict=True)
        ]
        for phase, those in (("scoring", rows), ("teacher", shown)):
            took = measured(device, lambda those=those: score(model, those, 1.0, given.token_budget, given.tokens))
            table.line(step, phase, took, tokens, 1)
        took = measured(device, lambda rows=rows: update(model, optimiser, rows, given.token_budget))
        table.line(step, "update", took, tokens, 3)
        peak_bytes = int(took[1] * 2**30) if step > 1 else 0
    if device.type == "cuda" and importlib.util.find_spec("vllm") is not None:
        optimiser.zero_grad(set_to_none=True)
        rollouts_by_vllm(table, model, prompts, seeds, given)
    return table, estimated_bytes(model, given), peak_bytes


def decoding_bytes(config: Any, parameters: int, tokens: int) -> float:
    """Bytes that decoding all rows reads: the weights once for each token, and each row's keys and values."""
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2  # bytes of a token
    return tokens * parameters * 2 + PROMPTS * GROUP * cache * sum(PROMPT + t for t in range(tokens))


def rollouts_by_vllm(table: Table, model: Any, prompts: list[list[int]], seeds: list[list[int]], given: Given) -> None:
    """The same rollouts by vLLM in this process, beside weights and optimiser, and how long it takes to sleep and wake."""
    device = next(model.parameters()).device
    engine = VllmEngine(
        max_new_tokens=given.tokens, temperature=1.0, max_rows=256, grade_truncated=False, importance_clip=2.0,
        max_model_len=None, gpu_memory_utilization=None, release_memory=True,
    )  # fmt: skip
    free, whole = torch.cuda.mem_get_info(device)
    engine.expect(PROMPT + given.tokens, (free - HEADROOM) / whole)
    engine.load(model, [], 0)
    list(engine.sample(prompts[:1], seeds[:1]))  # warm
    for step in range(1, given.steps + 1):
        slept = measured(device, engine.release)
        woke = measured(device, lambda step=step: engine.load(model, [], step))
        took = measured(device, lambda: list(engine.sample(prompts, seeds)))
        tokens = sum(len(g.token_ids) for _, _, g in took[2])
        table.line(step, "rollout, vllm", took, tokens, 1, decoding_bytes(model.config, table.parameters, given.tokens))
        table.note(f"vLLM slept in {slept[0]:.2f} s, woke and took the weights in {woke[0]:.2f} s")
    engine.close()


def estimated_bytes(model: Any, given: Given) -> int:
    """Preflight's peak of a pass with its gradient and of the optimiser's step, for this model and these rows."""
    sizes = sizes_of(model.config)
    overrides = ["method=grpo", "dtype=bfloat16", f"engine.max_new_tokens={given.tokens}", "engine.max_rows=256"]
    overrides += [
        f"train.token_budget={given.token_budget}",
        "train.prompts_per_step=32",
        "train.rollouts_per_prompt=8",
    ]
    phases = estimate(sizes, load(composed(overrides)), Lengths(PROMPT, PROMPT), Layout("cuda")).phases
    return max(sum(phases[name].values()) for name in ("gradient", "step"))
