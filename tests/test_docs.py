"""The documentation says what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from rlrt.describe import full_page
from tests.conftest import ROOT
from tests.helpers import METHODS, MODELS

PARTS = re.compile(r"^\| (\d*) *\|((?: `\w+`)+) \|", re.MULTILINE)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_every_key_is_on_the_page_as_it_is():
    assert (ROOT / "docs" / "keys.md").read_text() == full_page(), "python -m rlrt.describe --all > docs/keys.md"


def test_every_method_stands_in_the_readme_and_every_model_in_the_docs():
    readme = (ROOT / "README.md").read_text()
    for method in METHODS:
        assert f"`{method}`" in readme, method
    for model in MODELS:
        assert any(model in page.read_text() for page in PAGES), model


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_map_of_the_parts_is_the_contract_of_the_layers():
    """docs/architecture.md shows the layers that pyproject.toml states, and ``rlrt/`` holds these parts and no others."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    stated = [set(re.findall(r"rlrt\.(\w+)", layer)) for layer in contract]
    shown: list[set[str]] = []
    page = (ROOT / "docs" / "architecture.md").read_text()
    for number, parts in PARTS.findall(page[page.index("## The parts") : page.index("## One step")]):
        if number:
            assert int(number) == len(shown) + 1
            shown.append(set())
        shown[-1] |= set(re.findall(r"`(\w+)`", parts))
    assert shown == stated
    assert len(stated) <= 10
    there = {p.stem for p in (ROOT / "rlrt").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert set.union(*stated) == there - {"__init__"}


def test_tests_lie_in_the_folders_of_the_package():
    parts = {p.name for p in (ROOT / "rlrt").iterdir() if (p / "__init__.py").exists()}
    others = {"card", "commands", "fuzz", "golden", "kills", "browser", "real", "slurm", "slurm_nodes", "soak", "vllm"}
    assert {p.parent.name for p in (ROOT / "tests").glob("*/test_*.py")} <= parts | others


def test_no_page_and_no_comment_names_a_file_that_is_not_here():
    names = re.compile(r"\b(FINDINGS|DESIGN|METHODS|HOUSE|STYLE|FIDELITY|ATTACK)\.md|(?<![/\w])shared/\w|\bissue \d")
    for file in [
        *PAGES,
        *(ROOT / "rlrt").rglob("*.py"),
        *(ROOT / "conf").rglob("*.yaml"),
        *(ROOT / "tests").rglob("*.py"),
    ]:
        if file != Path(__file__):
            assert not (match := names.search(file.read_text())), f"{file}: {match and match[0]}"


def test_commands_of_the_readme_name_real_modules_and_targets():
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for module in set(re.findall(r"python -m (rlrt\.\w+)", readme)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for target in set(re.findall(r"^ {4}make (\w+)", readme, re.MULTILINE)):
        assert f"\n{target}:" in makefile, target
