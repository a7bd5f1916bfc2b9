"""Code outside the package is part of a run's identity, and is read without being run."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from pathlib import Path

import pytest

from rlrt.errors import UserError
from rlrt.records.identity import identity
from rlrt.records.user_code import import_paths, refuse_foreign, sources
from tests.helpers import settings

CREDIT = (
    "from mine_helpers import scale\nfrom rlrt.methods.uniform import UniformCredit as U\nclass Mine(U):\n    pass\n"
)
BOMB = "raise SystemExit('this module was run')\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on Python's path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(folder: Path, **files: str) -> None:
    """Files by dotted name; the clock moves on, so that a change of the same size is seen."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.stat().st_mtime_ns if path.exists() else 0
        path.write_text(text)
        os.utime(path, ns=(before + 10**9, before + 10**9))
    importlib.invalidate_caches()


def method(path: str) -> dict:
    return {"method": {"credit": path, "auxiliary": []}, "data": {}, "engine": {}}


def test_a_change_of_the_module_or_of_what_it_imports_from_beside_it(folder):
    write(folder, mine=CREDIT, mine_helpers="scale = 1\n", other="x = 1\n")
    first = sources(method("mine.Mine"))
    assert set(first) == {"method.credit"}
    write(folder, mine=CREDIT + "# more\n")
    second = sources(method("mine.Mine"))
    write(folder, mine_helpers="scale = 100\n")
    third = sources(method("mine.Mine"))
    assert len({d["method.credit"] for d in (first, second, third)}) == 3
    write(folder, other="x = 2\n", mine_helpers="scale = 100\n")  # nobody imports it; and the same content again
    assert sources(method("mine.Mine")) == third


PACKAGE = {
    "pack/__init__": "",
    "pack/core": "from .parts import deep\nfrom . import sibling\nimport pack.late\n\n\nclass Mine:\n    pass\n",
    "pack/parts/__init__": "",
    "pack/parts/deep": "def f():\n    from ..hidden import value\n    return value\n",
    "pack/hidden": "value = 1\n",
    "pack/sibling": "a = 1\n",
    "pack/late": "b = 1\n",
    "pack/stranger": "c = 1\n",
}


@pytest.mark.parametrize("changed", [n for n in PACKAGE if n != "pack/stranger"])
def test_a_package_with_relative_and_late_imports(folder, changed):
    write(folder, **PACKAGE)
    before = sources(method("pack.core.Mine"))
    write(folder, **{"pack/stranger": "c = 2\n"})
    assert sources(method("pack.core.Mine")) == before
    write(folder, **{changed: PACKAGE[changed] + "# changed\n"})
    assert sources(method("pack.core.Mine")) != before


@pytest.mark.parametrize(
    "config",
    [
        method("mine.Mine"),
        {"method": {"auxiliary": ["rlrt.methods.entropy.EntropyBonus", "mine.Mine"]}},
        {"data": {"_target_": "mine.Mine"}},
        {"engine": {"_target_": "mine.Mine"}},
        {"data": {"verifier": "mine.Mine"}},
        {"eval": {"suites": {"a": {"verifier": "mine.Mine"}}}},
        {"data": {"rewards": [{"function": "mine.Mine", "weight": 2}]}},  # a key of a class of one's own
    ],
)
def test_wherever_a_config_names_it_and_nothing_is_run(folder, config):
    write(folder, mine=BOMB + CREDIT, mine_helpers=BOMB)
    before = sources(config)
    assert len(before) == 1
    write(folder, mine_helpers=BOMB + "# changed\n")
    assert sources(config) != before


def test_texts_that_only_look_like_a_path(folder):
    """A column, a file's name, a folder of that name, a function that the module lacks, the standard library."""
    write(folder, train="x = 1\n")
    (folder / "reward_model").mkdir()
    for text in (
        "reward_model.ground_truth",
        "train.jsonl",
        "os.system",
        "json.loads",
        "rlrt.methods.rlrt.TeacherWeight",
        "a b.c",
    ):
        assert sources({"data": {"answer_field": text}}) == {}


def test_a_module_that_is_not_there_or_no_python(folder):
    """Loading refuses it in a sentence; the identity must not fail before."""
    write(folder, broken="def (:\n")
    assert sources(method("nowhere.Mine")).keys() <= {"method.credit"}
    before = sources(method("broken.Mine"))
    write(folder, broken="def ((:\n")
    assert sources(method("broken.Mine")) != before


def test_two_modules_that_import_each_other(folder):
    write(folder, one="import two\n\n\nclass Mine:\n    pass\n", two="import one\n")
    before = sources(method("one.Mine"))
    write(folder, two="import one\n# changed\n")
    assert sources(method("one.Mine")) != before


def test_shipped_configs_name_no_foreign_code():
    plain = settings("method=srpo", "engine=vllm_server", "eval=paper").plain
    assert sources(plain) == {}
    assert import_paths(plain)["method.auxiliary.0"].endswith("RoutedDistillation")
    refuse_foreign(plain, "somewhere")


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("data._target_", "gift.Task"),
        ("engine._target_", "gift.Engine"),
        ("method.credit", "gift.Credit"),
        ("method.auxiliary", ["gift.Term"]),
        ("data.verifier", "gift.judge"),
        ("data.verifier", "rlrt.tasks.graded.function_at"),  # rlrt's own function, called with somebody's answer
        ("data._target_", "rlrt.engines.hf.HfEngine"),
        ("data._target_", "rlrtx.tasks.Task"),
        ("data.inner", {"_target_": "os.system"}),
    ],
)
def test_foreign_code_of_a_stored_config_is_refused_unless_typed(key, path):
    section, name = key.split(".")
    plain = {section: {name: path}}
    with pytest.raises(UserError, match=r"code from outside rlrt .*--trust") as caught:
        refuse_foreign(plain, "gift")
    assert "\n" not in str(caught.value)
    if not isinstance(path, dict):
        refuse_foreign(plain, "gift", {key})


def test_weights_and_data_enter_by_content_wherever_they_lie(tmp_path):
    """Under a key of one's own too; the same bytes elsewhere are the same run."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "reward.safetensors").write_bytes(b"weights")

    def mine(key, name):
        return identity({"data": {"_target_": "x.Y", key: str(tmp_path / name / "reward.safetensors")}})

    for key in ("reward_path", "weights", "reward_model", "table_file", "path", "corpus", "anything"):
        assert mine(key, "a") == mine(key, "b")
    before = mine("weights", "a")
    (tmp_path / "a" / "reward.safetensors").write_bytes(b"weightz!")
    assert mine("weights", "a") != before == mine("weights", "b")


def test_weights_in_a_folder_named_trainer_count(tmp_path):
    """Only of a checkpoint is that folder left out."""
    model = tmp_path / "model"
    (model / "trainer").mkdir(parents=True)
    (model / "trainer" / "part.safetensors").write_bytes(b"1")
    before = identity({"model": {"path": str(model)}})
    (model / "trainer" / "part.safetensors").write_bytes(b"22")
    assert identity({"model": {"path": str(model)}}) != before
    shutil.rmtree(model / "trainer")


def test_paths_in_lists_and_without_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("t.txt", "u.txt"):
        (tmp_path / name).write_text("1")
    configs = [
        {"data": {"weights": "t.txt"}},
        {"data": {"table_file": "t.txt"}},
        {"data": {"paths": ["t.txt", "./u.txt"]}},
        {"data": {"tables": ["x", "./t.txt"]}},
        {"data": {"rewards": [{"judge_path": "t.txt"}]}},
    ]
    before = [identity(c) for c in configs]
    (tmp_path / "t.txt").write_text("22")
    assert all(identity(c) != b for c, b in zip(configs, before, strict=True))


def test_a_folder_that_a_run_writes_to_and_a_name_that_a_folder_has_do_not_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "old").mkdir()
    configs = [
        {"engine": {"scratch": str(tmp_path / "cache")}},
        {"teacher": {"weights": "old"}},
        {"method": {"gate": "old"}},
    ]
    before = [identity(c) for c in configs]
    (tmp_path / "cache" / "x").write_text("1")
    (tmp_path / "old" / "x").write_text("1")
    assert [identity(c) for c in configs] == before


@pytest.mark.parametrize("name", ["code", "profile", "queue", "test"])
def test_a_module_of_ones_own_with_a_name_of_pythons(folder, name):
    write(folder, **{name: "class Mine:\n    pass\n", "uses": f"import {name}\n\n\nclass Mine:\n    pass\n"})
    before = sources(method(f"{name}.Mine")), sources(method("uses.Mine"))
    assert before[0].keys() == {"method.credit"}
    write(folder, **{name: "class Mine:\n    x = 1\n"})
    assert sources(method(f"{name}.Mine")) != before[0]
    assert sources(method("uses.Mine")) != before[1]


def test_imports_by_a_literal_name_and_names_below_a_condition(folder):
    text = 'from importlib import import_module\nx = import_module("late")\ny = __import__("later")\n'
    text += "if x:\n    class Mine:\n        pass\n"
    write(folder, lazy=text, late="a = 1\n", later="b = 1\n")
    before = sources({"data": {"own_key": "lazy.Mine", "verifier": "lazy.Mine.judge"}})
    assert before.keys() == {"data.own_key", "data.verifier"}
    for changed in ("late", "later"):
        write(folder, **{changed: "c = 2\n"})
        after = sources({"data": {"own_key": "lazy.Mine", "verifier": "lazy.Mine.judge"}})
        assert all(after[key] != before[key] for key in before)
        before = after


def test_a_big_installed_package_costs_once():
    sources(method("transformers.models.qwen3.modeling_qwen3.Qwen3Model"))
    begin = time.monotonic()
    sources(method("transformers.models.qwen3.modeling_qwen3.Qwen3Model"))
    assert time.monotonic() - begin < 0.5
