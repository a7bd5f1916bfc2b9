"""The acceptance test of a card: ``python -m benchmarks.gpu``; pass or fail, and a table for docs/gpu.md.

Without a GPU it says so. ``--device cpu --config rlrt/embedded/config.json --tokens 16`` tries the script itself and writes
nothing.
"""

from __future__ import annotations

import datetime
import importlib.util
import sys
from collections.abc import Callable

import torch

from benchmarks.gpu import checks, head, methods, offload, packing, rates, saving, servers, throughput
from benchmarks.gpu.checks import Outcome, tried
from benchmarks.speed.report import Report

INTRODUCTION = """# A card

Written by `python -m benchmarks.gpu`, each part by its own `--only`: do not edit.
"""
Check = Callable[[str, Callable[[], tuple[bool, str]]], None]


def numbers(given: throughput.Given, check: Check, made: list[Outcome]) -> None:
    """Checks of values, gradients, memory and runs."""
    device, name = torch.device(given.device), given.device if given.device == "cpu" else "cuda:0"
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
    check("three updates of every method beside the recorded ones", lambda: methods.golden(name))
    check("three steps from the command line", lambda: checks.three_steps(name))
    check("the same bits twice", lambda: checks.twice(name))
    check("the same bits with moments and inputs of layers on the host", lambda: offload.same_numbers(name))
    check("moments leave the card", lambda: offload.moments_leave(device))
    check("checkpoints written beside training", lambda: saving.beside_training(name))
    check("every method from the command line", lambda: methods.every_method(name))
    check("the embedded model learns", lambda: methods.learns(name))
    if device.type == "cuda" and importlib.util.find_spec("vllm") is not None:
        check("vLLM sleeps and wakes", lambda: checks.sleep_and_wake(name))
    else:
        made.append(Outcome("vLLM sleeps and wakes", None, "needs a GPU and vLLM"))
        print(made[-1])
    servers.outcomes(check, made)


def phases(given: throughput.Given, check: Check) -> list[str]:
    """Tables of seconds of every phase; preflight's memory beside what was measured; the rates if a file for them was named."""
    tables = []
    for one in throughput.cases(given):
        table, estimated, measured = throughput.three_steps(one)
        tables.append(f"{table.text}{table.notes}\n")
        if measured:
            title = f"memory of the update of {one.config.stem} against preflight"
            check(title, lambda e=estimated, m=measured: checks.memory(e, m))
        if given.rates:
            rates.write(one, table)
    return tables


def outcomes(given: throughput.Given) -> list[Outcome]:
    """Every check, printed as it comes; on a GPU the page as well."""
    made: list[Outcome] = []

    def check(title: str, work: Callable[[], tuple[bool, str]]) -> None:
        made.append(tried(title, work))
        print(made[-1], flush=True)

    page = Report(throughput.DOCS, INTRODUCTION)
    for part in throughput.PARTS:
        if given.only not in (None, part):
            continue
        before, tables = len(made), []
        if part == "checks":
            numbers(given, check, made)
        else:
            tables = phases(given, check)
        if given.device == "cuda":
            card = f"*{torch.cuda.get_device_name()}, {datetime.date.today()}, torch {torch.__version__}*"
            lines = "\n".join(f"    {outcome}" for outcome in made[before:])
            page.place(part, "\n\n".join([card, lines, *tables]))
    return made


def main() -> None:
    """Check, measure, and exit with 1 if a check failed."""
    sys.exit(any(one.passed is False for one in outcomes(throughput.arguments())))


if __name__ == "__main__":
    main()
