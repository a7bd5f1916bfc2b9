"""What ``make bench`` writes: docs/benchmarks.md, and the figure of how a step grows."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.speed.case import Case
from benchmarks.speed.sides import ROOT, Figures, Side, interleaved
from rlrt.records.files import write_json

VOCABULARY = 151936
"""Of Qwen3."""


def processor() -> str:
    """The processor's name and the vector instructions that matter here."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    names = {k.strip(): v.strip() for k, v in lines.items()}
    flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in names.get("flags", "").split()]
    return f"{names.get('model name', platform.processor())} ({os.cpu_count()} cores; {', '.join(flags)})"


INTRODUCTION = """# Speed and memory

Written by `make bench`: do not edit. Medians of interleaved repetitions: both sides take turns, step by step, in processes of
their own. Weights do not move (the learning rate is 1e-12), so all repetitions sample from one distribution; a truncated
response is wrong on both sides. TRL's gradient checkpointing and logging are off, since ours are.
"""
MARK = re.compile(r"^<!-- (\w+) -->$", re.MULTILINE)
"""Where a part of the file begins."""


def machine() -> str:
    """What a figure was measured on, and when."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    return f"*{datetime.date.today()}; {processor()}; Python {platform.python_version()}, {versions}*\n"


class Report:
    """Parts of the page, gathered while measuring; parts of an earlier page that are not measured now stay."""

    def __init__(self, out: Path, introduction: str = INTRODUCTION) -> None:
        self.out, self.introduction = out, introduction
        pieces = MARK.split(out.read_text()) if out.exists() else [""]
        self._parts = {name: text.strip() for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}
        self._lines: list[str] = []

    def part(self, name: str, measure: Callable[[], None]) -> None:
        """Measure one part of the page, and write the page."""
        self._lines = []
        self._say(machine())
        measure()
        self.place(name, "\n".join(self._lines))

    def place(self, name: str, text: str) -> None:
        """Put a part into the page, and write the page."""
        self._parts[name] = text.strip()
        texts = [f"<!-- {name} -->\n\n{text}\n" for name, text in self._parts.items()]
        self.out.write_text("\n".join([self.introduction, *texts]))

    def _say(self, line: str) -> None:
        print(line, flush=True)
        self._lines.append(line)

    def _title(self, title: str) -> None:
        self._say(f"## {title}\n")

    def against(self, name: str, case: Case, ours: Figures, theirs: Figures) -> None:
        """A comparison with TRL."""
        self._title(f"{name} against TRL: {case.name}, {case.dtype}, {case.threads} threads")
        self._say(f"{case.prompts} x {case.samples} rollouts, at most {case.max_new_tokens} new tokens.\n")
        self._say("| | s per step | tokens per response | groups without signal |\n|---|---|---|---|")
        for who, f in (("rlrt", ours), ("TRL", theirs)):
            self._say(f"| {who} | {f.seconds:.3f} | {f.length:.1f} | {f.no_signal:.2f} |")
        self._say(f"\n**{name} vs TRL: {theirs.seconds / ours.seconds:.2f}x**\n")

    def peaks(self, ours: Figures, theirs: Figures) -> None:
        """Memory beside TRL's."""
        self._say(f"Peak memory: rlrt {ours.peak / 1e9:.1f} GB, TRL {theirs.peak / 1e9:.1f} GB.\n")
        self._say(f"**peak memory vs TRL: {ours.peak / theirs.peak:.2f}x**\n")

    def arithmetic(self, updates: Sequence[tuple[Case, Figures, float]], matrix: float) -> None:
        """Operations a second of updates, beside those of a matrix product."""
        first = updates[0][0]
        self._title(f"The update's arithmetic: {first.name}, {first.dtype}, {first.threads} threads")
        self._say(
            f"Float32 products of its matrices' shapes reach {matrix / 1e9:.0f} GFLOPS. Each prompt is counted once; attention "
            "and optimiser are not.\n"
        )
        self._say("| rollouts | s per step | update, s | GFLOPS | share |\n|---|---|---|---|---|")
        for case, ours, rate in updates:
            self._say(
                f"| {case.prompts} x {case.samples} | {ours.seconds:.1f} | {ours.phases['time/update_s']:.1f} "
                f"| {rate / 1e9:.0f} | {rate / matrix:.2f} |"
            )
        self._say(f"\n**update vs matrix product: {max(rate for *_, rate in updates) / matrix:.2f}x**\n")

    def methods(self, case: Case, found: Mapping[str, Figures]) -> None:
        """What RLRT adds to GRPO."""
        self._title(f"RLRT over GRPO: {case.name}, {case.threads} threads")
        names = sorted(next(iter(found.values())).phases)
        self._say(f"| method | s per step | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
        for method, f in found.items():
            self._say(f"| {method} | {f.seconds:.3f} | {' | '.join(f'{f.phases[n]:.4f}' for n in names)} |")
        self._say(f"\n**RLRT vs GRPO: {found['rlrt'].seconds / found['grpo'].seconds:.2f}x**\n")

    def decode(self, case: Case, engine: float, generate: float) -> None:
        """The engine against ``generate``."""
        self._title(f"Decoding: {case.name}, {case.threads} threads")
        self._say(f"{case.prompts} x {case.samples} responses of at most {case.max_new_tokens} tokens.\n")
        self._say(f"| | tokens/s |\n|---|---|\n| engine | {engine:,.0f} |\n| `generate` | {generate:,.0f} |")
        self._say(f"\n**decode vs generate: {engine / generate:.2f}x**\n")

    def memory(self) -> None:
        """Peaks of an update."""
        self._title("Memory of an update")
        self._say(
            "`python -m benchmarks.speed.memory VOCABULARY ROLLOUTS TOKENS BUDGET`; the embedding's gradients apart.\n"
        )
        self._say("| vocabulary | rollouts x tokens | budget | micro-batches | MiB |\n|---|---|---|---|---|")
        peaks = {}
        for vocabulary, rollouts in ((1000, 16), (VOCABULARY, 16), (1000, 64)):
            command = [sys.executable, "-m", "benchmarks.speed.memory", str(vocabulary), str(rollouts), "512", "8192"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            got = json.loads(done.stdout.splitlines()[-1])
            peaks[vocabulary, rollouts] = mib = got["mib"] - got["embedding_mib"]
            self._say(f"| {vocabulary:,} | {rollouts} x 512 | 8,192 | {got['micro_batches']} | {mib:,.0f} |")
        self._say(f"\n**Qwen3's vocabulary vs 1,000: {peaks[VOCABULARY, 16] / peaks[1000, 16]:.2f}x**\n")
        self._say(f"**four times the rollouts: {peaks[1000, 64] / peaks[1000, 16]:.2f}x**\n")

    def growth(self, case: Case) -> None:
        """Step time against rollouts and length, as a table and a figure."""
        self._title(f"Growth: a GRPO step of {case.name}")
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
        prompts = [4, 8, 16, 32, 64]
        by_rollouts = [self._seconds(dataclasses.replace(case, prompts=p), ()) for p in prompts]
        lengths = [32, 64, 128, 256]
        # A stop token that never comes makes all responses as long as they may be.
        endless = [
            self._seconds(dataclasses.replace(case, max_new_tokens=n, coin=True), ("model.stop_tokens=['<bos>']",))
            for n in lengths
        ]
        rollouts = [p * case.samples for p in prompts]
        for axis, x, y, label in (
            (axes[0], rollouts, by_rollouts, "rollouts"),
            (axes[1], lengths, endless, "tokens of each"),
        ):
            axis.plot(x, y, marker="o")
            axis.set(xlabel=label, ylabel="seconds per step", xlim=(0, None), ylim=(0, None))
            self._say(f"| {label} | {' | '.join(map(str, x))} |\n|---|{'---|' * len(x)}")
            self._say(f"| s per step | {' | '.join(f'{v:.3f}' for v in y)} |\n")
        target = self.out.parent / "pictures" / "growth.svg"
        target.parent.mkdir(exist_ok=True)
        figure.savefig(target, metadata={"Date": None})
        self._say(f"![Seconds of a step against rollouts and against length](pictures/{target.name})\n")

    def _seconds(self, case: Case, overrides: tuple[str, ...]) -> float:
        return interleaved([Side("ours", case, "grpo", overrides)], 7, 2)[0].seconds

    def start(self) -> None:
        """Start-up, errors, status, and what tracking costs."""
        self._title("Waiting for the program")
        self._say("| | s |\n|---|---|")
        from benchmarks.orchestration import to_first_step

        runs = [to_first_step() for _ in range(3)]
        self._say(f"| the embedded default: command to first step recorded | {statistics.median(runs):.1f} |")
        for label, words in (
            ("`--help`", ["rlrt.run", "--help"]),
            ("a misspelt method", ["rlrt.run", "method=nope"]),
            ("a number that is none", ["rlrt.run", "train.steps=abc"]),
            ("a method's key out of range (its class imports torch)", ["rlrt.run", "method.epsilon_w=-1"]),
        ):
            self._say(f"| {label} | {took(*words):.2f} |")
        with tempfile.TemporaryDirectory() as place:
            many = thousand(Path(place))
            self._say(f"| `rlrt.status` on 1,000 jobs | {took('rlrt.status', str(many)):.2f} |\n")
        self._say(f"**Tracking, MLflow included, of the embedded model's step: {tracking_share():.2%}**\n")


def took(module: str, *words: str) -> float:
    """Seconds of a command; the middle of three."""
    seconds = []
    with tempfile.TemporaryDirectory() as place:
        for _ in range(3):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-m", module, *words], cwd=place, capture_output=True, check=False)
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def thousand(sweep: Path) -> Path:
    """A sweep of a thousand jobs in all states, each with a record of 150 steps."""
    states = ["finished", "finished", "running", "failed", "queued"]
    record = "".join(json.dumps({"step": i, "reward/mean": i / 150, "time/step_s": 1.0}) + "\n" for i in range(1, 151))
    for i in range(1000):
        folder = sweep / f"seed={i}-{i:012x}"
        folder.mkdir()
        write_json(folder / "job.json", {"overrides": [f"seed={i}"], "plain": {"train": {"steps": 150}}})
        write_json(folder / "summary.json", {"state": states[i % 5], "step": 150, "final": {}})
        (folder / "metrics.jsonl").write_text(record)
    return sweep


def tracking_share() -> float:
    """Seconds that recording takes in the training thread, as a share of all steps' seconds, over a run of 60 steps.

    Seen from the run itself: the time between the end of one step's own clock and the start of the next one's is recording.
    """
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "benchmarks.speed.tracking", place]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])
