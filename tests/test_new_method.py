"""``make method NAME=mine`` in a copy of this tree: what it writes passes at once, and what it refuses leaves no trace."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.helpers import ONE_STEP

TREE = (
    "rlrt",
    "conf",
    "sweeps",
    "tests",
    "docs",
    "examples",
    "benchmarks",
    "README.md",
    "LICENSE",
    "Makefile",
    "pyproject.toml",
)
FILES = {
    "rlrt/methods/mine.py",
    "conf/method/mine.yaml",
    "tests/methods/test_mine.py",
    "tests/golden/mine.json",
    "README.md",
    "docs/methods.md",
    "docs/keys.md",
    "sweeps/sweep/methods.yaml",
}
"""What a new method makes and changes."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the tree, whose package is used there instead of this one."""
    folder = tmp_path_factory.mktemp("copy")
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def python(copy, *words):
    """Run Python in the copy."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment = outside | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "RUFF_NO_CACHE": "true"}
    return subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)


def contents(copy):
    return {
        str(file.relative_to(copy)): file.read_bytes()
        for file in copy.rglob("*")
        if file.is_file() and not file.relative_to(copy).parts[0].startswith(".")
    }


REFUSED = [
    ([], "expected the name of one new method"),
    ([""], "expected the name of one new method"),
    (["mine", "yours"], "expected the name of one new method"),
    (["Mine"], "expected a Python identifier in lower case .*, got 'Mine'"),
    (["my-method"], "expected a Python identifier"),
    (["9lives"], "expected a Python identifier"),
    (["_mine"], "expected a Python identifier"),
    (["../mine"], "expected a Python identifier"),
    (["a" * 31], "expected a Python identifier .* at most 30"),
    (["lambda"], "no meaning for, got 'lambda'"),
    (["null"], "no meaning for, got 'null'"),
    (["grpo"], "got 'grpo': conf/method/grpo.yaml is there already"),
    (["rlsd"], "conf/method/rlsd.yaml is there already"),  # a YAML alone
    (["signals"], "rlrt/methods/signals.py is there already"),  # a module alone
    (["laws"], "tests/methods/test_laws.py is there already"),
    (["rollouts"], "tests/golden/rollouts.json is there already"),
    (["all"], "a word of tests.golden.world is there already"),
]


def test_a_name_that_cannot_be_used_is_one_sentence_and_leaves_no_trace(copy):
    before = contents(copy)
    for words, says in REFUSED:
        done = python(copy, "examples/new_method.py", *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert re.fullmatch(rf"error: [^\n]*{says}[^\n]*\.\n", done.stderr), done.stderr
    assert contents(copy) == before


@pytest.mark.long
def test_what_is_written_passes_at_once(copy):
    before = contents(copy)
    done = python(copy, "examples/new_method.py", "mine")
    assert done.returncode == 0, done.stderr
    after = contents(copy)
    assert {name for name in after if after[name] != before.get(name)} == FILES
    assert all(f"\n  {name} " in done.stdout for name in FILES), done.stdout
    for name in FILES:  # each place that waits for the author, and the output says where they are
        assert (after[name].count(b"TODO") > before.get(name, b"").count(b"TODO")) == (
            re.search(rf"^  {name} +nothing", done.stdout, re.MULTILINE) is None
        ), name
    for words in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        done = python(copy, "-m", *words)
        assert done.returncode == 0, done.stdout
    files = ("tests/methods/test_mine.py", "tests/methods/test_laws.py", "tests/golden", "tests/test_docs.py")
    done = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "mine or test_docs", *files)
    assert done.returncode == 0, done.stdout
    done = python(copy, "-m", "rlrt.run", "method=mine", "method.mine_strength=0.25", *ONE_STEP, "tracking=none")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["q", "n_a_m_e", "a" * 30])
def test_a_name_of_any_length_leaves_the_files_in_form(name):
    spec = importlib.util.spec_from_file_location("new_method", ROOT / "examples" / "new_method.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.refusal(name) == ""  # I001, the order of imports, needs the file on the disk
    for file, (text, _) in script.written(name).items():
        for words in (["check", "--ignore=I001"], ["format", "--check"]) if file.endswith(".py") else ():
            typed = [sys.executable, "-m", "ruff", *words, "--no-cache", "--stdin-filename", ROOT / file, "-"]
            done = subprocess.run(typed, cwd=ROOT, input=text, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout


def test_the_make_target_runs_the_script():
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    words = ["make", "--dry-run", "--no-print-directory", "method", "NAME=mine"]
    shown = subprocess.run(words, cwd=ROOT, env=outside, capture_output=True, text=True)
    assert shown.stdout.splitlines()[-1] == ".venv/bin/python examples/new_method.py 'mine'"
