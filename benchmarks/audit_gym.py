"""Which tasks of reasoning-gym can be trusted with a reward, asked of all of them; the whitelist is in rlrt/tasks/reasoning.py.

A task passes if its problems are the same in two processes with different hash seeds, its own answer scores 1 and is found in a
box, its scoring raises nothing on junk, and no one junk answer gets full score on every problem.

    python benchmarks/audit_gym.py
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

PROBLEMS, LATE_S = 24, 40
JUNK = (
    "",
    "asdf qwer",
    "0",
    "1",
    "I am sorry, but I cannot answer this question.",
    "?",
    "[]",
    "None",
    "no",
    "yes",
    "True",
)


class Late(BaseException):
    """A task took too long."""


def late(*_: Any) -> None:
    """What the alarm does."""
    raise Late


def looked_at(name: str) -> dict[str, Any]:
    """What one task does: a digest of its problems, and what is wrong with its scoring."""
    import reasoning_gym

    from rlrt.tasks.reasoning import last_answer

    data = reasoning_gym.create_dataset(name, size=PROBLEMS, seed=7)
    entries = [data[i] for i in range(PROBLEMS)]
    wrong = []
    if any(e["answer"] is None for e in entries):
        return {"digest": "", "wrong": ["no reference answer"]}
    if any(data.score_answer(last_answer(f"Thus \\boxed{{{e['answer']}}}"), e) != 1 for e in entries):
        wrong.append("its own answer does not score 1")
    for junk in JUNK:
        try:
            scores = [data.score_answer(junk, e) for e in entries]
        except Exception as error:
            wrong.append(f"raises on {junk!r}: {type(error).__name__}")
            continue
        if all(s == 1 for s in scores):
            wrong.append(f"full score for {junk!r} on every problem")
    text = json.dumps([[e["question"], str(e["answer"])] for e in entries])
    return {"digest": hashlib.sha256(text.encode()).hexdigest(), "wrong": wrong}


def all_tasks() -> dict[str, Any]:
    """Every task, each within its time."""
    from reasoning_gym.factory import DATASETS

    signal.signal(signal.SIGALRM, late)
    found = {}
    for name in sorted(DATASETS):
        signal.alarm(LATE_S)
        try:
            found[name] = looked_at(name)
        except Late:
            found[name] = {"digest": "", "wrong": ["late"]}
        except Exception as error:
            found[name] = {"digest": "", "wrong": [f"cannot be made: {type(error).__name__}"]}
        signal.alarm(0)
    return found


def main() -> None:
    """Ask twice, compare with the whitelist."""
    warnings.simplefilter("ignore")
    if "--once" in sys.argv:
        Path(sys.argv[-1]).write_text(json.dumps(all_tasks()))  # the tasks themselves print
        return
    runs = []
    for seed in ("1", "2"):
        with tempfile.NamedTemporaryFile() as file:
            words = [sys.executable, "-W", "ignore", __file__, "--once", file.name]
            subprocess.run(words, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.DEVNULL, check=True)
            runs.append(json.loads(Path(file.name).read_text()))
    from rlrt.tasks.reasoning import TASKS

    passed = []
    for name, first in runs[0].items():
        wrong = list(first["wrong"])
        if first["digest"] != runs[1][name]["digest"]:
            wrong.append("other problems under another hash seed")
        if wrong:
            print(f"{name}: {'; '.join(wrong)}")
        else:
            passed.append(name)
    print(f"{len(passed)} of {len(runs[0])} tasks pass")
    if passed != list(TASKS):
        sys.exit(f"the whitelist differs: {sorted(set(passed) ^ set(TASKS))}")


if __name__ == "__main__":
    main()
