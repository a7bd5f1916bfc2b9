"""One input of the fuzzer, and whether what the program did with it was right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.forked import forked

SECONDS = 90
"""Seconds after which an input counts as one that never ends; most take less than two."""
LINES, CHARACTERS = 3, 700
"""How long a refusal may be."""


def nothing(folder: Path) -> None:
    """Prepare nothing: the command needs no file."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        kind: which generator made it.
        words: the command line of ``python -m rlrt.MODULE``.
        names: texts of which a refusal must hold one: keys or files.
        prepare: makes the files that the command needs, in its working directory.
        module: the command.
    """

    kind: str
    words: tuple[str, ...]
    names: tuple[str, ...]
    prepare: Callable[[Path], None] = nothing
    module: str = "run"

    def __str__(self) -> str:
        return " ".join(
            [self.kind, self.module, *(w if len(w) < 200 else f"{w[:200]}...({len(w)})" for w in self.words)]
        )


def run_forked(case: Case, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an input in a fork of this process."""
    return forked(case.module, case.words, folder, timeout=SECONDS)


def run_real(case: Case, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an input in an interpreter of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HYDRA")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"rlrt.{case.module}", *case.words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=2 * SECONDS)


def judged(case: Case, run: Callable[[Case, Path], subprocess.CompletedProcess[str]] = run_forked) -> list[str]:
    """Run an input in a folder of its own; return what was wrong with the outcome, [] if nothing was."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        folder = Path(name)
        case.prepare(folder)
        try:
            done = run(case, folder)
        except subprocess.TimeoutExpired:
            return [f"not over after {SECONDS} s"]
        return faults(case, done.returncode, done.stdout, done.stderr, states(folder))


def states(folder: Path) -> list[str]:
    """The states of all runs below a folder."""
    return [str(json.loads(f.read_text()).get("state")) for f in folder.rglob("summary.json")]


def faults(case: Case, code: int, out: str, err: str, left: Sequence[str]) -> list[str]:
    """Return what is wrong with an outcome.

    Args:
        code, out, err: of the process.
        left: states of the runs that it left.
    """
    found = []
    if "Traceback (most recent call last)" in out + err:
        last = [
            line for line in (out + err).splitlines() if re.match(r"[\w.]+(Error|Exception|Iteration|Exit)\b", line)
        ]
        found.append(f"a traceback: {last[-1][:200] if last else ''}")
    if code not in (0, 2):
        found.append(f"exit code {code}")
    if code == 2:
        found += faults_of_refusal(case, err, left)
    if code == 0 and set(left) - {"finished", "pruned"}:
        found.append(f"exit code 0, and a run is {', '.join(left)}")
    return found


def faults_of_refusal(case: Case, err: str, left: Sequence[str]) -> list[str]:
    """Return what is wrong with a refusal: its one sentence, and what it left."""
    lines = [line for line in err.splitlines() if line.strip()]
    found = []
    if sum(line.startswith("error: ") for line in lines) != 1:
        found.append(f"expected one sentence after 'error: ', got {err[:300]!r}")
    if len(lines) > LINES or len(err) > CHARACTERS:
        found.append(f"a refusal of {len(lines)} lines and {len(err)} characters")
    if not any(name in err for name in case.names):
        found.append(f"no key and no file is named: {err[:300]!r}")
    if "finished" in left:
        found.append("refused, and a run is left as finished")
    return found
