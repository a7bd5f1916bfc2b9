"""Decoding: this framework's engine and transformers' ``generate`` on the same prompts and weights, in turns."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.speed.case import Case, settings_of
from rlrt.execution.build import build_learner
from rlrt.sampling.sampler import step_prompts


def decode(case: Case, repetitions: int) -> tuple[float, float]:
    """Tokens per second of the engine and of ``generate``; a token counts up to its response's end."""
    torch.set_num_threads(case.threads)
    settings = settings_of(case, "method=grpo")
    learner = build_learner(settings)
    policy, engine = learner.policy, settings.engine
    prompts = [learner.builder.student(p) for p in step_prompts(settings.data.train, 0, 1, case.prompts)]
    width = max(map(len, prompts))
    pad = policy.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts for _ in range(case.samples)])
    engine.load(policy.model, policy.stop_ids, 0)

    def ours(seed: int) -> int:
        seeds = [[seed * 10**6 + i * 1000 + g for g in range(case.samples)] for i in range(case.prompts)]
        return sum(len(g.token_ids) for _, _, g in engine.sample(prompts, seeds))

    def theirs(seed: int) -> int:
        torch.manual_seed(seed)
        out: Any = policy.model.generate(
            ids,
            attention_mask=(ids != pad).long(),
            max_new_tokens=case.max_new_tokens,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            pad_token_id=pad,
            eos_token_id=policy.stop_ids,
        )
        new = out[:, width:]
        ended = torch.isin(new, torch.tensor(policy.stop_ids))
        before = ended.cumsum(1) - ended.long()
        return int((before == 0).sum())

    rates: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 1):
        for way, kept in zip((ours, theirs), rates, strict=True):
            begin = time.perf_counter()
            tokens = way(repetition)
            if repetition:
                kept.append(tokens / (time.perf_counter() - begin))
    return statistics.median(rates[0]), statistics.median(rates[1])
