"""Every command of the README and of docs/commands.md, as it stands there: run, shown, or at least found, by what it needs."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from tests.conftest import ROOT
from tests.forked import forked
from tests.helpers import ONE_STEP

PAGES = (ROOT / "README.md", ROOT / "docs" / "commands.md")
LINE = re.compile(r"^    (?:\.venv/bin/)?(?:python -m|torchrun .* -m) rlrt\.(\w+)(.*)$", re.MULTILINE)
COMMANDS = sorted({(m[1], m[2].split("  #")[0].strip()) for page in PAGES for m in LINE.finditer(page.read_text())})
ONLY_HELP = ("ui", "serve_vllm", "pretrain", "smollm2")
"""Commands that serve until they are ended, need another environment, or take long: tests of their own run them."""
OVERRIDES = ("eval.prompts=2", "eval.samples_per_prompt=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished sweep of two runs, in MLflow too."""
    folder = tmp_path_factory.mktemp("commands")
    done = forked("run", ["-m", "method=rlrt,grpo", *ONE_STEP, "tracking.uri=sqlite:///mlflow.db"], folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_there_are_commands():
    assert len(COMMANDS) > 25
    assert {module for module, _ in COMMANDS} >= {"run", "status", "report", "evaluate", "analyze", "sync"}


@pytest.mark.parametrize(("module", "typed"), COMMANDS, ids=[f"{m} {t}".strip() for m, t in COMMANDS])
def test_a_command_as_it_stands(module, typed, place):
    (sweep,) = (place / "outputs" / "sweeps").iterdir()
    run = next(sweep.glob("method=rlrt*"))
    named = typed.replace("outputs/sweeps/NAME", str(sweep)).replace("SWEEP", str(sweep)).replace("RUN", str(run))
    arguments = shlex.split(re.sub(r"\bNAME\b", "registered", named))
    if module in ONLY_HELP:
        arguments = ["--help"]
    elif module in ("run", "sft") and "hydra.launcher.dry_run=true" not in arguments and "--cfg" not in arguments:
        arguments += ["--cfg", "job"]
    elif module in ("evaluate", "scout", "analyze"):
        arguments = [*arguments, *OVERRIDES] if "eval=paper" not in arguments else arguments
    done = forked(module, arguments, place)
    if "eval=paper" in arguments:  # the hub cannot be reached here: one sentence says so
        assert (done.returncode, done.stderr.count("error:")) == (2, 1), done.stderr
    elif module == "preflight":  # what does not fit is said by the exit code
        assert done.returncode in (0, 2), done.stderr
        assert f"nothing was {'trained' if '--teacher' in arguments else 'started'}" in done.stdout
    else:
        assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_and_scripts_are_there(page):
    makefile = (ROOT / "Makefile").read_text()
    for line in re.findall(r"^    make ([a-zA-Z= -]+?)(?:  |$)", page.read_text(), re.MULTILINE):
        for target in (word for word in line.split() if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for script in re.findall(r"python ((?:examples|benchmarks)/\S+\.py)", page.read_text()):
        assert (ROOT / script).is_file(), script
    assert sys.version_info >= (3, 11)  # what the README promises
