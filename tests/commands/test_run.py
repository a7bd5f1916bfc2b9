"""``python -m rlrt.run`` as a user types it: exit codes, one sentence, where things end up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.forked import forked

SMALL = ("train.steps=2", "train.prompts_per_step=2", "eval.prompts=4")


def command(*arguments, cwd):
    """In an interpreter of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HYDRA")} | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "rlrt.run", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_one_run_from_any_working_directory(tmp_path):
    done = command(*SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert folder.name.startswith("train.steps=2,")
    names = {p.name for p in folder.iterdir()}
    assert {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "samples.jsonl",
        "tokens",
        "checkpoints",
        "summary.json",
        "log.txt",
        "lease.lock",
        "lease.json",
    } == names
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2]
    assert json.loads((folder / "summary.json").read_text())["state"] == "finished"
    for words in ("avg@8", "pass@8", "greedy", "entropy", "length", "rollout", "finished after 2 steps"):
        assert words in done.stdout
    assert (
        f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/outputs/mlflow.db" in done.stdout
    )  # a path may stand before it
    assert not (tmp_path / "mlruns").exists()
    again = forked("run", SMALL, tmp_path)
    assert again.returncode == 0
    assert "was not run again" in again.stdout


def test_a_local_sweep_gives_every_job_its_folder(tmp_path):
    done = forked("run", ("-m", "method=rlrt,grpo", "seed=0,1", *SMALL, "tracking=none"), tmp_path, report=True)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    folders = sorted(p.parent.name.rsplit("-", 1)[0] for p in sweep.glob("*/summary.json"))
    assert folders == [f"method={m},seed={s}" for m in ("grpo", "rlrt") for s in (0, 1)]  # what tells them apart
    report = forked("report", [str(sweep)], tmp_path)
    assert report.returncode == 0
    assert report.stdout == (sweep / "report.md").read_text() + f"\npage: {sweep}/report.html\n"
    watched = forked("status", ["--watch", str(sweep)], tmp_path)
    assert "4 finished" in watched.stdout
    assert "\x1b" not in watched.stdout + report.stdout + done.stdout  # no colour codes where there is no terminal
    assert max(map(len, watched.stdout.splitlines()[:6])) <= 80


def test_a_method_of_ones_own_as_the_docs_say(tmp_path):
    """The code of docs/methods.md, "How to add a method", word for word."""
    text = (ROOT / "docs" / "methods.md").read_text()
    block = text[text.index("    # my_methods.py") : text.index("    python -m rlrt.run --config-dir my_conf")]
    code, yaml = (part.replace("\n    ", "\n") for part in block[4:].split("    # my_conf/method/mine.yaml\n"))
    (tmp_path / "my_methods.py").write_text(code)
    (tmp_path / "my_conf" / "method").mkdir(parents=True)
    (tmp_path / "my_conf" / "method" / "mine.yaml").write_text(yaml.removeprefix("    "))
    typed = ("--config-dir", "my_conf", "method=mine", "method.scale=0.5", *SMALL, "tracking=none")
    done = forked("run", typed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "finished after 2 steps" in done.stdout
    (tmp_path / "my_methods.py").write_text(code.replace("return self.scale *", "return 100 * self.scale *"))
    again = forked("run", typed, tmp_path)  # the old numbers must not stand under the new code
    assert again.returncode == 0, again.stderr
    assert "was not run again" not in again.stdout
    assert len(list((tmp_path / "outputs" / "runs").iterdir())) == 2


def test_a_sweep_with_a_bad_job_names_it_before_anything_starts(tmp_path):
    done = forked("run", ("-m", "train.rollouts_per_prompt=2,1", *SMALL, "tracking=none"), tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: train.rollouts_per_prompt")
    assert "(in the job train.rollouts_per_prompt=1 " in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["method=nothing"], 2, "error: method=nothing: there is no such method. Valid: "),
        (["method=rlrtt"], 2, "Did you mean 'rlrt'"),
        (["experiment=paper/qwen3_4b_base/rlt"], 2, "Did you mean 'paper/qwen3_4b_base/rlrt'"),
        (["experiment=nothing"], 2, "error: experiment=nothing: there is no such experiment."),
        (["train.lrr=1"], 2, "error: train.lrr: there is no such key. Did you mean 'train.lr'"),
        (["+sweep=nothing"], 2, "sweep"),
        (["+sweep=methods"], 2, "error: +sweep=methods: a study is run with -m"),
        (["train.lr=-1"], 2, "error: train.lr: expected a number above 0, got -1."),
        (["model.path=/nowhere"], 2, "error: model.path: expected a folder or a hub id"),
        (["hydra.run.dir=/dev/null/x"], 2, "cannot be written"),
        (["train.lr="], 2, "error: train.lr: expected a number"),
        (["train.lr=1e-3", "a b"], 2, "error: "),
        (["tuned=zzz"], 2, "error: "),
        (["methd=grpo"], 2, "Did you mean 'method'"),
        (["seed=1,2"], 2, "add -m"),
        (["hydra.run.dir=."], 2, "error: hydra.run.dir: expected a folder of the run's own"),
        (["train.prompts_per_step=50000"], 2, "error: train.prompts_per_step: a step takes 50000 different prompts"),
        (["-m", "hydra.launcher.n_job=1"], 2, "Did you mean 'hydra.launcher.n_jobs'"),
        (["-m", "hydra.sweeper.max_retries=text"], 2, "error: hydra.sweeper.max_retries"),
        (["-m", "seed=0", "--cfg", "nope"], 2, "error: --cfg"),
        (["-m", "seed=0", "--config-dir=nope"], 2, "error: --config-dir: expected a folder"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, code, says):
    done = forked("run", arguments, tmp_path)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("module", "arguments", "code", "says"),
    [
        ("describe", ["method=zzz"], 2, "there is no such method"),
        ("report", ["nowhere"], 2, "found none"),
        ("status", ["nowhere"], 2, "found none"),
        ("cancel", ["nowhere"], 2, "found none"),
        ("sync", ["nowhere"], 2, "expected a folder of runs"),
    ],
)
def test_the_other_commands_too(tmp_path, module, arguments, code, says):
    done = forked(module, arguments, tmp_path)
    assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_sentence_in_an_interpreter_too(tmp_path):
    """Importing says nothing, whatever a fork of an interpreter that has imported may show."""
    done = command("train.lrr=1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: train.lrr: there is no such key. Did you mean 'train.lr'?\n"
    quick, slow = "describe, report, status, cancel, sync, ui", "evaluate, analyze, register"
    code = f"import sys; from rlrt import {quick}; assert 'torch' not in sys.modules; from rlrt import {slow}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_of_the_mission_composes(tmp_path):
    done = forked("run", ("-m", "method=rlrt,sd,grpo", "model=qwen3_1.7b", "--cfg", "job"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("path: Qwen/Qwen3-1.7B") == 3
    assert [f"name: {m}" in done.stdout for m in ("rlrt", "sd", "grpo")] == [True] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, number):
    arguments = [
        sys.executable,
        "-m",
        "rlrt.run",
        "train.steps=4000",
        *SMALL[1:],
        "tracking=none",
        "train.save_every=0",
    ]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    record = None
    for _ in range(600):
        record = next(iter((tmp_path / "outputs").glob("runs/*/metrics.jsonl")), None)
        if record is not None and len(record.read_text().splitlines()) > 2:
            break
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert record is not None
    summary = json.loads((record.parent / "summary.json").read_text())
    assert summary["state"] == "interrupted"
    assert 0 < summary["step"] < 4000
    assert (record.parent / "checkpoints" / f"step_{summary['step']}").is_dir()


def test_processes_that_nobody_would_start(tmp_cwd):
    """A cluster's file asks for eight: a single run without torchrun would quietly be one."""
    done = forked("run", ["cluster=h100x8", "engine=hf", "tracking=none", "train.steps=1"], tmp_cwd)
    assert done.returncode == 2
    assert re.search(r"^error: hydra\.launcher\.tasks_per_node: 8 processes are asked for.*add -m", done.stderr, re.M)
    assert not list(tmp_cwd.glob("outputs/runs/*/summary.json"))
