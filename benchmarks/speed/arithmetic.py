"""How near an update is to what the machine can multiply: its operations a second beside those of a plain matrix product."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.speed.case import Case, settings_of
from benchmarks.speed.sides import Figures
from rlrt.execution.build import prompt_builder
from rlrt.model.load import load

SHAPES = ((2048, 576, 1536), (2048, 576, 576), (2048, 1536, 576))
"""Matrix products of SmolLM2-135M's layers over 2,048 tokens."""


def matrix_rate(threads: int, repetitions: int = 15) -> float:
    """Operations a second of float32 matrix products of ``SHAPES``; the best of the repetitions, since others only disturb."""
    torch.set_num_threads(threads)
    pairs = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in SHAPES]
    operations = 10 * sum(2 * m * k * n for m, k, n in SHAPES)
    seconds = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        for _ in range(10):
            for left, right in pairs:
                left @ right
        seconds.append(time.perf_counter() - begin)
    return operations / min(seconds)


def update_rate(case: Case, ours: Figures) -> float:
    """Operations a second of our side's update, attention not counted.

    Every token that the update runs costs two operations a weight of the layers, forward, and twice that backward; every token
    of a response as much for each weight of the output layer. A prompt is run once for its group.
    """
    settings = settings_of(case)
    model: Any
    model, tokenizer = load(case.folder, None, "sdpa")
    builder = prompt_builder(settings, tokenizer)
    prompt = statistics.mean(len(builder.student(p)) for p in settings.data.train)
    head = model.get_input_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.parameters()) - head
    trained = 1 - ours.skipped
    response_tokens = trained * case.prompts * case.samples * ours.length
    tokens = trained * case.prompts * prompt + response_tokens
    return 6 * (layers * tokens + head * response_tokens) / ours.phases["time/update_s"]
