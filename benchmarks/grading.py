"""What grading costs: 2,048 answers by math-verify, alone and beside the sampling of one step. Figures in docs/LOG.md.

python benchmarks/grading.py
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.execution.execute import execute
from rlrt.records.folder import RunFolder
from rlrt.verifiers.math import math_verify

ANSWERS = 2048
THOUGHT = "We have $x^2 + 3x = 10$, so that $(x-2)(x+5) = 0$ and hence the two roots. " * 200
"""About as long as a response of 5,000 tokens."""


def alone(workers: int) -> float:
    """Seconds for as many different answers, in LaTeX of several kinds."""
    pairs = []
    for i in range(ANSWERS):
        forms = (f"{i}", f"\\frac{{{i}}}{{7}}", f"{i}\\sqrt{{2}}", f"({i}, {i + 1})")
        expected = forms[i % 4]
        pairs.append((expected, f"{THOUGHT}\\boxed{{{expected if i % 2 else i + 1}}}"))
    verifier = math_verify(5.0, workers)
    verifier.start([("1", "\\boxed{1}")])()
    begin = time.perf_counter()
    grades = verifier.start(pairs)()
    seconds = time.perf_counter() - begin
    verifier.close()
    assert sum(g.correct for g in grades) >= ANSWERS // 2
    assert not any(g.error for g in grades)
    return seconds


def beside(workers: int) -> dict[str, float]:
    """Mean seconds of the second and third step of the embedded model, 256 prompts x 8, its answers judged by math-verify."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            {"prompt": f"{t}:{a} {b} 5", "answer": f"{t}.0"}  # two whole numbers would be compared at sight
            for t in range(1, 60)
            for a in range(1, 4)
            for b in range(6, 9)
        ]
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = load(
            composed(
                ["method=grpo", "data=file", f"data.path={folder / 'a.jsonl'}", "data.verifier=math", "tracking=none",
                 f"data.verifier_workers={workers}", "train.steps=3", "train.prompts_per_step=256", "train.eval_every=0",
                 "eval.prompts=4"]
            )
        )  # fmt: skip
        execute(settings, folder / "run", lambda line: None, lambda: False, progress=False)
        record = RunFolder(folder / "run").record.read()[2:]
        names = ("time/grading_s", "time/rollout_s", "time/step_s")
        return {n: sum(row[n] for row in record) / len(record) for n in names}


def main() -> None:
    """Print the figures."""
    for workers in (1, 2):
        seconds = alone(workers)
        print(
            f"{ANSWERS} different answers, {workers} processes: {seconds:.1f} s, {1000 * seconds / ANSWERS:.1f} ms each"
        )
    for workers in (1, 2):
        found = beside(workers)
        share = found["time/grading_s"] / found["time/step_s"]
        print(f"one step of 256 x 8, {workers} processes: {found} waiting for grades: {share:.1%} of the step")


if __name__ == "__main__":
    main()
