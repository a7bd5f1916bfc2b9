"""``python -m tests.fuzz``: as many inputs as wanted; what was wrong, with the command that shows it again."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time

import tests.conftest  # noqa: F401  (the environment of tests)
from tests.fuzz.judge import judged, run_forked, run_real
from tests.fuzz.kinds import KINDS, cases


def main() -> int:
    """Run inputs one after the other; 1 if one was treated wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kind", choices=list(KINDS), help="inputs of this kind only")
    parser.add_argument("--real", action="store_true", help="each in an interpreter of its own")
    options = parser.parse_args()
    made = [KINDS[options.kind](options.seed)] if options.kind else []
    inputs = [next(made[0]) for _ in range(options.inputs)] if made else cases(options.seed, options.inputs)
    print(f"{len(inputs)} inputs, --seed {options.seed}", flush=True)
    wrong, begin = 0, time.monotonic()
    for number, case in enumerate(inputs):
        found = judged(case, run_real if options.real else run_forked)
        wrong += bool(found)
        if found:
            print(f"{number}: {case}\n  " + "\n  ".join(found), flush=True)
            print("  " + shlex.join(["python", "-m", f"rlrt.{case.module}", *case.words])[:1000], flush=True)
        if number % 100 == 99:
            print(f"{number + 1} inputs, {wrong} wrong, {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{len(inputs)} inputs, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
