"""The documentation says what is there."""

from __future__ import annotations

import re

import pytest

from rlrt.describe import full_page
from tests.conftest import ROOT
from tests.helpers import METHODS, MODELS

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


def test_commands_of_the_readme_name_real_modules_and_targets():
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for module in set(re.findall(r"python -m (rlrt\.\w+)", readme)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for target in set(re.findall(r"^ {4}make (\w+)", readme, re.MULTILINE)):
        assert f"\n{target}:" in makefile, target
