"""``python -m rlrt.audit_verifier data=...``: probes whose verdict is known, and what the verifier makes of them.

A verifier that takes a wrong answer for right teaches that answer; one that takes a right one for wrong starves the signal.
Probes: the expected answer itself, equivalent forms, near misses, junk, refusals, and an expression that never ends.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlrt.config.load import load
from rlrt.hydra_setup import composed
from rlrt.run import guarded
from rlrt.terminal import table
from rlrt.types import Prompt

HANGING = "\\boxed{9^{9^{9^{9^{9^{9}}}}}}"
SHOWN = 12
"""Wrong verdicts that are printed."""


@dataclass(frozen=True)
class Probe:
    """A response with a known verdict.

    Attributes:
        kind: what it tries.
        text: the response.
        right: whether it answers the problem.
    """

    kind: str
    text: str
    right: bool


def number_probes(answer: str) -> list[Probe]:
    """Equivalent forms and near misses of a whole number; none of anything else."""
    if not re.fullmatch(r"-?\d{1,12}", answer):
        return []
    n = int(answer)
    equal = [f"\\boxed{{{n}.0}}", f"\\boxed{{\\frac{{{2 * n}}}{{2}}}}", f"\\boxed{{ {n} }}", f"\\boxed{{{n + 1}-1}}"]
    near = [n + 1, n - 1, n * 10 + 1, -n if n else 7]
    return [
        *(Probe("equivalent form", text, True) for text in equal),
        Probe("without a box", f"Therefore the answer is ${n}$.", True),
        *(Probe("near miss", f"\\boxed{{{m}}}", False) for m in near),
        Probe("many boxes, the last one wrong", f"\\boxed{{{n}}} or rather \\boxed{{{n + 3}}}", False),
        Probe("many answers in one box", f"\\boxed{{{n}, {n + 1}, {n + 2}}}", False),
    ]


def fraction_probes(answer: str) -> list[Probe]:
    """Equivalent forms and near misses of a LaTeX fraction of whole numbers."""
    match = re.fullmatch(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", answer)
    if match is None:
        return []
    over, under = int(match[1]), int(match[2])
    return [
        Probe("equivalent form", f"\\boxed{{\\dfrac{{{over}}}{{{under}}}}}", True),
        Probe("equivalent form", f"\\boxed{{{over}/{under}}}", True),
        Probe("near miss", f"\\boxed{{\\frac{{{over + under}}}{{{under}}}}}", False),
    ]


def probes_of(prompt: Prompt) -> list[Probe]:
    """All probes of a problem."""
    answer = prompt.final
    gold = f"\\boxed{{{answer}}}" if answer is not None else prompt.solution
    probes = [] if gold is None else [Probe("expected answer", gold, True)]
    if answer is not None:
        probes += [*number_probes(answer), *fraction_probes(answer)]
        probes.append(Probe("thought without an end", f"<think>it may be \\boxed{{{answer}}}", False))
    return [
        *probes,
        *(
            Probe("junk", text, False)
            for text in ("", "\\boxed{}", "asdf qwer", "\\boxed{?}", "0 1 2 3 4 5 6 7 8 9 " * 20)
        ),
        Probe("refusal", "I am sorry, but I cannot answer this question.", False),
    ]


def audit(task: Any, prompts: Sequence[Prompt]) -> str:
    """The table of verdicts by kind of probe, the wrong ones, and how long the hanging expression took."""
    asked = [(prompt, probe) for prompt in prompts for probe in probes_of(prompt)]
    grades = grade_all(task, [(prompt, probe.text) for prompt, probe in asked])
    begin = time.monotonic()
    (late,) = grade_all(task, [(prompts[0], HANGING)])
    seconds = time.monotonic() - begin
    rows = [["probe", "asked", "as it should", "taken for right", "taken for wrong", "errors"]]
    wrong = []
    for kind in dict.fromkeys(probe.kind for _, probe in asked):
        mine = [(prompt, probe, g) for (prompt, probe), g in zip(asked, grades, strict=True) if probe.kind == kind]
        errors = sum(g.error for _, _, g in mine)
        accepted = [(p, q) for p, q, g in mine if g.correct and not q.right]
        rejected = [(p, q) for p, q, g in mine if not g.correct and not g.error and q.right]
        fine = len(mine) - errors - len(accepted) - len(rejected)
        rows.append([kind, *map(str, (len(mine), fine, len(accepted), len(rejected), errors))])
        wrong += [f"taken for right: {q.text!r:.60} for {p.final!r:.40}" for p, q in accepted]
        wrong += [f"taken for wrong: {q.text!r:.60} for {p.final!r:.40}" for p, q in rejected]
    verdict = "an error" if late.error else "taken for right" if late.correct else "wrong"
    lines = [table(rows), f"an expression that never ends: {verdict} after {seconds:.1f} s", *wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        lines.append(f"and {len(wrong) - SHOWN} more")
    return "\n".join(lines)


def grade_all(task: Any, pairs: Sequence[tuple[Prompt, str]]) -> list[Any]:
    """Grades, all at once where the task can."""
    start = getattr(task, "start_grading", None)
    return list(start(pairs)()) if start is not None else [task.grade(prompt, text) for prompt, text in pairs]


def main() -> None:
    """Probe the verifier of a composed config's data set."""
    parser = argparse.ArgumentParser(prog="python -m rlrt.audit_verifier", description=main.__doc__)
    parser.add_argument("overrides", nargs="*", help="as for rlrt.run, for example data=gsm8k data.path=FOLDER")
    parser.add_argument("--problems", type=int, default=20, help="problems that are probed")
    given = parser.parse_args()

    def act() -> None:
        task = load(composed(given.overrides), overrides=given.overrides).data
        task.prepare()
        try:
            print(audit(task, task.train[: max(1, given.problems)]))
        finally:
            if hasattr(task, "close"):
                task.close()

    sys.exit(guarded(act, given.overrides))


if __name__ == "__main__":
    main()
