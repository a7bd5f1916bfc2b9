"""Write the files that a method of the package needs: ``python examples/new_method.py mine``, or ``make method NAME=mine``.

The new method works at once: ``make check test`` passes with it. Every place that waits for its author says TODO. The formula
is an example, and the test of the formula has a number worked by hand.
"""

from __future__ import annotations

import keyword
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 30
"""Letters that a name may have: longer names break lines of the files."""
YAMLS = ("true", "false", "null", "yes", "no", "on", "off", "inf", "nan")
"""Texts that YAML or Hydra do not read as text."""

MODULE = '''\
"""TODO: say in one sentence what ``method=NAME`` does, and name its source (arXiv number).

    D_t = sg(log P_S(y_t) - log P_T(y_t))
    A_t = A (1 + c tanh(D_t))     on correct rollouts that have a teacher;  A_t = A  elsewhere

TODO: this formula is an example. Write the formula of the method here and in ``token_factor``. c = 0 is GRPO, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.method import Credit
from rlrt.methods.signals import Credited, Signals


def token_factor(gap_BT: Float[Tensor, "B T"], strength: float) -> Float[Tensor, "B T"]:
    """TODO: the formula, its source. Here: 1 + c tanh(D), a factor between 1 - c and 1 + c.

    Args:
        gap_BT: D = log P_S - log P_T, nats.
        strength: c.
    """
    return 1.0 + strength * torch.tanh(gap_BT)


@dataclass
class CLASS(Credit):
    """TODO: the credit in one sentence."""

    needs_teacher = True

    NAME_strength: float = key("strength c of the weight; 0: GRPO", least=0, most=1)

    def teacher_rows(self, advantage_B: Tensor, signals: Signals) -> Tensor:
        """Bool_B: correct rollouts with an advantage; none where c is 0."""
        return (advantage_B != 0) & signals.correct_B & (self.NAME_strength > 0)

    def __call__(self, advantage_B: Tensor, signals: Signals) -> Credited:
        """Weigh the tokens of correct rollouts that have a teacher; the others keep the plain advantage."""
        plain_BT = advantage_B[:, None] * signals.mask_BT
        if not signals.teachers:
            return Credited(plain_BT)
        teacher = signals.teachers[0]
        weighted_BT = signals.mask_BT & (teacher.has_B & signals.correct_B)[:, None]
        factor_BT = token_factor(signals.logp_BT - teacher.logp_BT, self.NAME_strength)
        return Credited(plain_BT * torch.where(weighted_BT, factor_BT, torch.ones_like(factor_BT)))
'''

YAML = """\
# @package _global_
# TODO: the method in one line, and its source (arXiv number). The default 0.5 is an example.
defaults:
  - grpo
  - _self_
method:
  name: NAME
  credit: rlrt.methods.NAME.CLASS
  scale_by_std: true
  NAME_strength: 0.5
"""

TEST = '''\
from __future__ import annotations

import pytest
import torch

from rlrt.methods.NAME import CLASS
from tests.helpers import signals

F64 = torch.float64
ADVANTAGE = torch.tensor([2.0, -1.0], dtype=F64)


def two_rollouts(**more):
    """A correct rollout and a wrong one, of two tokens each."""
    student = torch.log(torch.tensor([[0.5, 0.2], [0.9, 0.5]], dtype=F64))
    teacher = torch.log(torch.tensor([[0.25, 0.4], [0.3, 0.5]], dtype=F64))
    return signals([1.0, 0.0], [0, 0], [2, 2], student, teacher, **more)


def test_the_formula_by_hand():
    """TODO: a number of the method's own formula, worked by hand."""
    credit = CLASS(NAME_strength=0.5)
    # correct: D = log(.5/.25) = log 2 and log(.2/.4) = -log 2; tanh(log 2) = (2 - 1/2) / (2 + 1/2) = 0.6
    # A (1 + c tanh(D)) = 2 (1 + 0.5 * 0.6) = 2.6 and 2 (1 - 0.5 * 0.6) = 1.4; the wrong rollout keeps A = -1
    result = credit(ADVANTAGE, two_rollouts()).advantage_BT
    assert result.flatten().tolist() == pytest.approx([2.6, 1.4, -1.0, -1.0], abs=1e-12)


def test_a_rollout_without_a_teacher_keeps_its_advantage():
    credit = CLASS(NAME_strength=0.5)
    result = credit(ADVANTAGE, two_rollouts(has_teacher_B=[False, True])).advantage_BT
    assert result.flatten().tolist() == [2.0, 2.0, -1.0, -1.0]


@pytest.mark.parametrize(("strength", "wanted"), [(0.5, [True, False, False, False]), (0.0, [False] * 4)])
def test_a_teacher_is_wanted_only_where_it_can_change_the_weight(strength, wanted):
    credit = CLASS(NAME_strength=strength)
    given = signals([1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1])
    advantage = torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=F64)
    assert credit.teacher_rows(advantage, given).tolist() == wanted
'''

ROW = "| `NAME` | TODO: what it changes, in one line | TODO: arXiv number |\n"

SECTION = """\
## TODO, the method's title: `method=NAME`

TODO: arXiv number, [`rlrt/methods/NAME.py`](../rlrt/methods/NAME.py).

    A_t = A (1 + c tanh(D_t))     on correct rollouts that have a teacher;  A_t = A  elsewhere

TODO: what the formula does, and why. `method.NAME_strength` is c; 0 is GRPO, to the bit.

"""


def main(arguments: list[str]) -> int:
    """Write everything, or refuse in one sentence and write nothing; return the exit code."""
    name = arguments[0] if len(arguments) == 1 else ""
    sentence = refusal(name)
    if sentence:
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    made = written(name)
    for path, (text, _) in made.items():
        (ROOT / path).write_text(text)
    keys, golden = "python -m rlrt.describe --all > docs/keys.md", f"python -m tests.golden.world {name}"
    try:
        (ROOT / "docs/keys.md").write_text(output("rlrt.describe", "--all"))
        output("tests.golden.world", name)
    except RuntimeError as error:
        print(f"error: {error}. The other files are written; when this is mended: {keys}; {golden}", file=sys.stderr)
        return 1
    print(f"method={name} is there, with a formula that is an example. Fill in, file by file (grep TODO):\n")
    what = {path: fill_in for path, (_, fill_in) in made.items()} | {
        "docs/keys.md": f"nothing; after a change of keys: {keys}",
        f"tests/golden/{name}.json": f"nothing; after a change of the formula: {golden}",
    }
    width = max(map(len, what))
    for path, fill_in in what.items():
        print(f"  {path:{width}}  {fill_in}")
    print(f"\nThen: make format check test, and a first run: {sys.executable} -m rlrt.run method={name}")
    return 0


def refusal(name: str) -> str:
    """Return why a name cannot be used, as one sentence; empty for a name that can."""
    if not name:
        return "expected the name of one new method, as in: make method NAME=mine."
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > LONGEST:
        return (
            "expected a Python identifier in lower case (a letter, then letters, digits and underscores, at most "
            f"{LONGEST} in all), got {name!r}."
        )
    if keyword.iskeyword(name) or name in YAMLS:
        return f"expected a name that Python and YAML have no meaning for, got {name!r}."
    files = [
        f"conf/method/{name}.yaml",
        f"rlrt/methods/{name}.py",
        f"tests/methods/test_{name}.py",
        f"tests/golden/{name}.json",
    ]
    there = [file for file in files if (ROOT / file).exists()]
    if there or name == "all":  # ``tests.golden.world all`` records every method
        return f"expected a new name, got {name!r}: {there[0] if there else 'a word of tests.golden.world'} is there already."
    return ""


def written(name: str) -> dict[str, tuple[str, str]]:
    """Return the text of every file by its path, and what its author fills in; nothing is written yet."""
    title = "".join(part.capitalize() for part in name.split("_")) + "Credit"

    def filled(text: str) -> str:
        return re.sub("CLASS|NAME", lambda match: title if match[0] == "CLASS" else name, text)

    def now(path: str) -> str:
        return (ROOT / path).read_text()

    readme, methods, study = now("README.md"), now("docs/methods.md"), now("sweeps/sweep/methods.yaml")
    table = readme.index("| `method=` |")
    end = readme.index("\n\n", table) + 1
    section = methods.index("## How to add a method")
    study = re.sub(r"^( +method: .*\w)$", rf"\1,{name}", study, count=1, flags=re.MULTILINE)
    return {
        f"rlrt/methods/{name}.py": (filled(MODULE), "the formula (token_factor), its source, and the keys"),
        f"conf/method/{name}.yaml": (filled(YAML), "the default of every key, and what the method is in one line"),
        f"tests/methods/test_{name}.py": (filled(TEST), "a number of your formula, worked by hand"),
        "README.md": (readme[:end] + filled(ROW) + readme[end:], "its line in the table of methods"),
        "docs/methods.md": (
            methods[:section] + filled(SECTION) + methods[section:],
            "its section: title, formula, keys (a new metric belongs into docs/metrics.md)",
        ),
        "sweeps/sweep/methods.yaml": (counted(study), "nothing: the study of all methods runs it too"),
    }


def counted(study: str) -> str:
    """Return the study with its cost for the methods that it lists now."""
    listed = re.search(r"^ +method: (.*)$", study, re.MULTILINE)
    count = len(listed[1].split(",")) if listed else 0
    return re.sub(r"\d+ methods x 5 seeds = \d+ jobs", f"{count} methods x 5 seeds = {5 * count} jobs", study)


def output(*module: str) -> str:
    """Return what a module prints, run on this tree.

    Raises:
        RuntimeError: if it fails; with its last line.
    """
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", *module],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"python -m {' '.join(module)} failed ({last})")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
