"""``python -m benchmarks.speed [--quick]``: the ratios that this project promises, measured side by side in one run.

--quick prints the main ones, in under two minutes. Without it everything is measured and written to docs/benchmarks.md, with
the machine and the date; that takes about twenty minutes, most of it TRL in bfloat16 and Qwen3's vocabulary.
``--data FOLDER --only real`` measures a published model on published word problems.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.arithmetic import matrix_rate, update_rate
from benchmarks.speed.case import EMBEDDED, STILL, Case, small
from benchmarks.speed.decode import decode
from benchmarks.speed.report import Report
from benchmarks.speed.sides import Figures, Side, interleaved
from rlrt.paths import SMOLLM2

TINY = Case("tiny, 155k parameters", str(EMBEDDED))


def against(
    case: Case, method: str, repetitions: int, warm_up: int = 2, overrides: tuple[str, ...] = ()
) -> tuple[Figures, Figures]:
    """Our figures and TRL's."""
    sides = [Side("ours", case, method, overrides), Side("theirs", case, method)]
    ours, theirs = interleaved(sides, repetitions, warm_up)
    return ours, theirs


def methods(case: Case, repetitions: int, warm_up: int = 2) -> dict[str, Figures]:
    """Our own methods, in turns."""
    names = ("grpo", "rlrt")
    found = interleaved([Side("ours", case, name) for name in names], repetitions, warm_up)
    return dict(zip(names, found, strict=True))


def quick() -> None:
    """The main ratios, a line each."""
    ours, theirs = against(TINY, "grpo", 12)
    print(f"GRPO vs TRL: {theirs.seconds / ours.seconds:.2f}x", flush=True)
    found = methods(TINY, 25)
    print(f"RLRT vs GRPO: {found['rlrt'].seconds / found['grpo'].seconds:.2f}x", flush=True)
    engine, generate = decode(TINY, 7)
    print(f"decode vs generate: {engine / generate:.2f}x", flush=True)


def real(data: Path, model: Path) -> Case:
    """SmolLM2-135M on the word problems of MAWPS with numbers up to 20; a coin rewards, so that every group has a signal.

    Eight prompts would take more memory than a machine of 24 GB has for TRL and this project side by side.
    """
    chosen = (
        "model=smollm2_135m",
        "data=mawps",
        f"data.path='{data}'",
        "data.max_number=20",
        "teacher.probe_prompts=0",
    )
    shape = {"threads": 2, "max_new_tokens": 24, "prompts": 4, "coin": True}
    return Case("SmolLM2-135M, MAWPS", str(model), config=chosen, **shape)


def whole(out: Path, only: Sequence[str], data: Path | None, model: Path) -> None:
    """The parts of the page that were asked for."""
    report = Report(out)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(small(Path(folder)))
        larger = Case("18.9M parameters", checkpoint, threads=2, max_new_tokens=64, coin=True)
        brief = Case("18.9M parameters, 2 prompts", checkpoint, "bfloat16", 2, 64, prompts=2, coin=True)

        def trl() -> None:
            report.against("GRPO", TINY, *against(TINY, "grpo", 31))
            dense = ("teacher.weights=ema", "method.distill_alpha=0.5", f"train.lr={STILL}")
            report.against("SDPO", TINY, *against(TINY, "sd", 21, overrides=dense))
            report.against("GRPO", larger, *against(larger, "grpo", 5, 1))

        def bf16() -> None:
            report.against("GRPO", brief, *against(brief, "grpo", 2, 1))

        def rlrt() -> None:
            report.methods(TINY, methods(TINY, 61))
            report.methods(larger, methods(larger, 4, 1))

        def decoding() -> None:
            for case, repetitions in ((TINY, 15), (larger, 3)):
                report.decode(case, *decode(case, repetitions))

        def published() -> None:
            assert data is not None
            case = real(data, model)
            ours, theirs = against(case, "grpo", 5, 1)
            report.against("GRPO", case, ours, theirs)
            report.peaks(ours, theirs)
            report.decode(case, *decode(case, 5))

        def update() -> None:
            assert data is not None
            case = real(data, model)
            before = matrix_rate(case.threads)
            shapes = [dataclasses.replace(case, prompts=times * case.prompts) for times in (1, 2, 3)]
            found = interleaved([Side("ours", shape, "grpo") for shape in shapes], 4, 1)
            updates = [(shape, f, update_rate(shape, f)) for shape, f in zip(shapes, found, strict=True)]
            report.arithmetic(updates, max(before, matrix_rate(case.threads)))

        parts = {"trl": trl, "bf16": bf16, "rlrt": rlrt, "decode": decoding}
        parts |= {"memory": report.memory, "growth": lambda: report.growth(TINY), "start": report.start}
        parts |= {"real": published, "update": update} if data is not None else {}
        for name, measure in parts.items():
            if name in only:
                report.part(name, measure)


PARTS = ("trl", "bf16", "rlrt", "decode", "memory", "growth", "start", "real", "update")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main ratios, under two minutes")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="these parts of the page; the others stay"
    )
    parser.add_argument(
        "--data", type=Path, help="a folder with the files of MAWPS: also the part `real`, on a published model"
    )
    parser.add_argument("--model", type=Path, default=Path(SMOLLM2), help=f"that model's folder; default: {SMOLLM2}")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), help="where everything is written")
    arguments = parser.parse_args()
    if arguments.quick:
        quick()
    else:
        whole(arguments.out, arguments.only, arguments.data, arguments.model)


if __name__ == "__main__":
    main()
