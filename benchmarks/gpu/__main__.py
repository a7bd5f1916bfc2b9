"""The acceptance test of the first card: ``python -m benchmarks.gpu``; pass or fail, and a table for docs/gpu.md.

Without a GPU it says so. ``--device cpu --config rlrt/embedded/config.json --tokens 16`` tries the script itself and writes
nothing.
"""

from __future__ import annotations

import importlib.util
import sys

import torch

from benchmarks.gpu import checks, head, offload, packing, rates, saving, servers, throughput
from benchmarks.gpu.checks import Outcome, tried


def outcomes(given: throughput.Given) -> list[Outcome]:
    """Every check, printed as it comes."""
    device, name = torch.device(given.device), given.device if given.device == "cpu" else "cuda:0"
    made: list[Outcome] = []

    def check(title, work) -> None:
        made.append(tried(title, work))
        print(made[-1], flush=True)

    check("bfloat16 output layer", lambda: checks.head(device))
    check("its values and gradient over chunks", lambda: head.agrees(device))
    check("its seconds and memory", lambda: head.cost(device))
    check("causality of the flash kernel", lambda: packing.alignment(device))
    model = throughput.build(throughput.SMALL_CONFIG if device.type == "cuda" else given.config, device)
    for precision, tolerance in ((torch.float32, 1e-2), (torch.bfloat16, 5e-2)):
        check(f"packed attention, {precision}", lambda m=model, p=precision, t=tolerance: checks.attention(m, p, t))
    check("packed rows and their gradients", lambda m=model: packing.gradients(m))
    check("memory of packed attention", lambda m=model: packing.memory(m))
    del model
    check("three steps from the command line", lambda: checks.three_steps(name))
    check("the same bits twice", lambda: checks.twice(name))
    check("the same bits with moments and inputs of layers on the host", lambda: offload.same_numbers(name))
    check("moments leave the card", lambda: offload.moments_leave(device))
    check("checkpoints written beside training", lambda: saving.beside_training(name))
    if device.type == "cuda" and importlib.util.find_spec("vllm") is not None:
        check("vLLM sleeps and wakes", lambda: checks.sleep_and_wake(name))
    else:
        made.append(Outcome("vLLM sleeps and wakes", None, "needs a GPU and vLLM"))
        print(made[-1])
    servers.outcomes(check, made)
    tables = []
    for one in throughput.cases(given):
        table, estimated, measured = throughput.three_steps(one)
        tables.append(f"{table.text}{table.notes}\n")
        if measured:
            title = f"memory of the update of {one.config.stem} against preflight"
            check(title, lambda e=estimated, m=measured: checks.memory(e, m))
    if device.type == "cuda":
        lines = "\n".join(f"    {outcome}" for outcome in made)
        text = "\n".join(
            [f"# The first card\n\nWritten by `python -m benchmarks.gpu`: do not edit.\n\n{lines}\n", *tables]
        )
        throughput.DOCS.write_text(text)
    if given.rates:
        rates.write(given, table)
    return made


def main() -> None:
    """Check, measure, and exit with 1 if a check failed."""
    sys.exit(any(one.passed is False for one in outcomes(throughput.arguments())))


if __name__ == "__main__":
    main()
