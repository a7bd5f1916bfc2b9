"""``make setup`` on machines of every kind, with a Python that only notes what it is asked; ``make resolve`` with a uv that
says what it is told (CI runs it with the real one)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

CONSTRAINTS = ("constraints.txt", "constraints-cuda13.txt", "constraints-cuda13-vllm.txt", "constraints-vllm.txt")
PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") shift 2; echo "$*" >> "$ASKED" ;;
"-W ignore") echo "$REASON"; [ -z "$REASON" ] ;;
esac
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Machine:
    """A checkout without rlrt on a machine with or without an NVIDIA driver."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, folder / "asked"
        shutil.copytree(ROOT / "install", folder / "install")
        for name in ("pyproject.toml", *CONSTRAINTS):
            shutil.copy(ROOT / name, folder)
        self.python = script(folder / "bin" / "python3", PYTHON)
        self.card(there=False)

    def card(self, there: bool) -> None:
        script(self.folder / "bin" / "nvidia-smi", f"#!/bin/sh\nexit {0 if there else 9}\n")

    def do(self, name="setup", **asked):
        """What was said, and what pip was asked."""
        self.asked.write_text("")
        kept = {k: v for k, v in os.environ.items() if k not in ("DEVICE", "TORCH_INDEX", "EXTRAS", "UPDATE")}
        environment = {
            **kept,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(self.python),
            "ASKED": str(self.asked),
            "NVIDIA_DRIVER": str(self.folder / "driver"),
            "REASON": "",
            **asked,
        }
        done = subprocess.run(
            ["bash", str(self.folder / "install" / f"{name}.sh")], env=environment, capture_output=True, text=True
        )
        return done, self.asked.read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def versions(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    pairs = (line.split("==") for line in lines)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pairs}


CPU = [
    "--quiet install --upgrade --constraint constraints.txt torch==2.13.0",
    "--quiet install --constraint constraints.txt --editable .[dev]",
]
CUDA = [
    "--quiet install --constraint constraints-cuda13.txt torch===2.13.0",
    "--quiet install --constraint constraints-cuda13.txt --editable .[dev]",
]
WITH_VLLM = [
    "--quiet install --constraint constraints-cuda13-vllm.txt torch===2.13.0",
    "--quiet install --constraint constraints-cuda13-vllm.txt --editable .[dev,gym,vllm]",
]
URL = "https://download.pytorch.org/whl/cu126"
FROM_URL = [f"--quiet install --upgrade --index-url {URL} torch==2.13.0", CPU[1]]


@pytest.mark.parametrize(
    ("card", "asked", "pip"),
    [
        (False, {}, CPU),
        (True, {}, CUDA),
        (True, {"DEVICE": "cpu"}, CPU),
        (False, {"DEVICE": "cuda"}, CUDA),
        (True, {"EXTRAS": "vllm,gym"}, WITH_VLLM),
        (False, {"EXTRAS": "vllm,gym", "DEVICE": "cuda"}, WITH_VLLM),
        (True, {"TORCH_INDEX": URL}, FROM_URL),
        (False, {"TORCH_INDEX": URL}, FROM_URL),
    ],
)
def test_each_kind_of_machine_gets_its_own_torch_and_its_own_constraints(machine, card, asked, pip):
    machine.card(card)
    done, was_asked = machine.do(**asked)
    assert (done.returncode, done.stderr, was_asked) == (0, "", pip)
    assert ("NVIDIA driver" in done.stdout) == (card and not asked.keys() & {"DEVICE", "TORCH_INDEX"})


def test_a_driver_without_its_tool_is_a_driver(machine):
    (machine.folder / "driver").touch()
    assert machine.do()[1] == CUDA


def test_what_is_there_is_not_installed_again_and_keeps_its_kind(machine):
    assert machine.do(DEVICE="cuda")[1] == CUDA
    assert machine.do()[1] == []  # on a login node without a driver, too
    assert machine.do(EXTRAS="gym,vllm")[1] == WITH_VLLM
    for asked in ({}, {"EXTRAS": "gym"}, {"DEVICE": "cuda"}):
        assert machine.do(**asked)[1] == []
    os.utime(machine.folder / "pyproject.toml", (2e9, 2e9))
    assert machine.do()[1] == WITH_VLLM
    assert machine.do(DEVICE="cpu")[0].returncode == 2  # vLLM stays, and needs CUDA


def test_a_card_that_torch_cannot_use_is_a_warning(machine):
    machine.card(there=True)
    done, _ = machine.do(REASON="The NVIDIA driver on your system is too old (found version 12020).")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert re.match(r"make setup: warning: nvidia-smi answers, but torch cannot use the card \(The NVIDIA.*12020", line)
    assert machine.do(DEVICE="cpu", REASON="torch 2.13.0+cpu was built without CUDA")[0].stderr == ""


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"DEVICE": "gpu"}, "DEVICE: expected cuda or cpu, got gpu."),
        ({"EXTRAS": "gym,vlm"}, "EXTRAS: expected names out of lora,real,gym,trackio,bench,vllm,dev, got vlm."),
        ({"EXTRAS": "vllm"}, "EXTRAS=vllm: vLLM's wheel needs torch for CUDA (DEVICE=cuda); for a machine without"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_installed(machine, asked, says):
    done, was_asked = machine.do(**asked)
    assert (done.returncode, was_asked, done.stderr.count("\n")) == (2, [], 1)
    assert done.stderr.startswith(f"make setup: {says}")
    assert not (machine.folder / ".venv").exists()


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_constraints_file_says_first_how_it_was_made(name):
    assert re.search(r"made by: (\S+/pip freeze|make resolve UPDATE=1)\.", (ROOT / name).read_text().splitlines()[0])


def test_the_kinds_differ_where_they_must_and_nowhere_else():
    cpu, cuda = versions("constraints.txt"), versions("constraints-cuda13.txt")
    assert cuda.items() >= cpu.items()
    assert {n for n in cuda.keys() - cpu.keys() if not n.startswith(("nvidia-", "cuda-"))} == {"setuptools", "triton"}
    with_vllm = versions("constraints-cuda13-vllm.txt")
    (wanted, _) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["vllm"]
    assert wanted == f"vllm=={with_vllm['vllm']}"
    assert (with_vllm["torch"], with_vllm["nvidia-cublas"]) == (cuda["torch"], cuda["nvidia-cublas"])
    assert with_vllm["transformers"].startswith("5.19.")
    assert with_vllm["cuda-python"].startswith("13.")


UV = """#!/bin/sh
case "$*" in
*cuda13-vllm.txt*) {vllm} ;;
*planted*) {planted} ;;
*) {cuda} ;;
esac
"""
SAME, SAME_VLLM = "grep -v '^#' constraints-cuda13.txt", "grep -v '^#' constraints-cuda13-vllm.txt"
REFUSED = "echo 'error: there is no version of triton' >&2; exit 1"


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({}, None),
        (
            {"cuda": REFUSED},
            r"triton\nmake resolve: constraints-cuda13\.txt: for Python 3\.11 a version in it is not on",
        ),
        ({"vllm": REFUSED}, r"make resolve: constraints-cuda13-vllm\.txt: .*UPDATE=1 writes the file anew\.$"),
        (
            {"cuda": f"{SAME} | sed 's/^torch==.*/torch==2.13.1/'"},
            r"< torch==2\.13\.0\n> torch==2\.13\.1\nmake resolve: ",
        ),
        (
            {"vllm": f"{SAME_VLLM}; echo new==1"},
            r"^> new==1\nmake resolve: constraints-cuda13-vllm\.txt: .*it lacks what",
        ),
        (
            {"planted": f"{SAME} | sed 's/^triton==.*/triton==3.0.0/'"},
            r"a planted version, triton 3\.0\.0, was not refused",
        ),
    ],
)
def test_files_that_do_not_resolve_are_named(machine, answers, says):
    texts = {"cuda": SAME, "vllm": SAME_VLLM, "planted": REFUSED, **answers}
    uv = script(machine.folder / "bin" / "uv", UV.format(**texts))
    done, _ = machine.do("resolve", UV=str(uv))
    if says is None:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(" resolve for Python 3.11; not installed\n")
    else:
        assert done.returncode == 1
        assert re.search(says, done.stderr), done.stderr


def test_the_page_names_every_kind_and_every_extra():
    page = (ROOT / "docs" / "cluster.md").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in [*CONSTRAINTS, *(extras.keys() - {"dev"})]:
        assert f"`{name}`" in page, name
    assert {f.name for f in ROOT.glob("constraints*.txt")} == set(CONSTRAINTS)
