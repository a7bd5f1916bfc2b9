"""Hours of a sweep as preflight says them: by measured rates before assumed ones, and what a time limit makes impossible."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from rlrt.preflight import slurm
from rlrt.preflight.__main__ import main
from rlrt.preflight.forecast.earlier import Earlier, earlier
from rlrt.preflight.forecast.rates import rates_file
from rlrt.records.stored_config import config_text
from tests.conftest import ROOT
from tests.helpers import composed, settings

ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.dry_run=true", "hydra.launcher.tasks_per_node=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Qwen3-1.7B's config, without weights and tokenizer."""
    made = tmp_path_factory.mktemp("models") / "qwen3_1.7b"
    made.mkdir()
    shutil.copy(ROOT / "tests" / "model" / "hub_configs" / "qwen3_1.7b.json", made / "config.json")
    return made


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_cwd):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)


def big(folder, *more):
    return ["model=qwen3_1.7b", f"model.path={folder}", "tracking=none", "engine.max_rows=128", *more]


def ran(place, words, steps, evaluated=(), gpus=(), processes=1, method="rlrt", model="tiny"):
    """The folder of an earlier run: seconds of its steps, and of those with an evaluation the evaluation's."""
    from omegaconf import OmegaConf

    place.mkdir(parents=True)
    choices = {"method": method, "model": model, "data": "countdown"}
    manifest = {"choices": choices, "processes": processes, "hardware": {"gpus": list(gpus)}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    plain = OmegaConf.to_container(composed(words), resolve=True)
    (place / "config.yaml").write_text(config_text(plain))
    rows = [{"step": 0, "eval/greedy": 0.5}]
    rows += [{"step": n, "time/step_s": s} for n, s in enumerate(steps, 1)]
    rows += [
        {"step": 90 + n, "time/step_s": whole, "time/evaluation_s": part, "eval/greedy": 0.5}
        for n, (whole, part) in enumerate(evaluated)
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def times(capsys):
    return re.findall(r"^(\w+) +time: (.*)$", capsys.readouterr().out, re.MULTILINE)


def test_a_sweep_of_six_jobs_by_what_an_earlier_run_took(tmp_cwd, capsys):
    """150 steps of 2 s and 4 evaluations of 6 s are 324 s; steps with an evaluation count without it."""
    ran(tmp_cwd / "outputs" / "runs" / "a", ["method=rlrt"], [1.0, 2.0, 30.0], [(8.0, 6.0), (8.5, 6.5), (7.0, 5.0)])
    assert main(["-m", "seed=0,1,2,3,4,5", "method=rlrt", "tracking=none", "hydra.launcher.n_jobs=2"]) == 0
    assert times(capsys) == [
        (
            "ok",
            "6 jobs, 5m24s each (150 steps of 2.0 s, 4 evaluations of 6.0 s, 3 checkpoints of 0.01 s), 32m24s in all, 2 at a "
            "time; measured (median of 6 steps of 1 earlier run here)",
        )
    ]


def test_gpu_hours_and_lives_of_six_jobs_on_four_gpus(folder, tmp_cwd, capsys):
    """150 x 360 s, 4 evaluations of 600 s and 30 checkpoints (every 30 min) of 103 s: 59,497 s, x 4 GPUs x 6 = 396.6 hours."""
    words = big(folder, *ON_SLURM, "method=rlrt")
    job = [word for word in words if not word.startswith("hydra")]
    place = tmp_cwd / "outputs" / "sweeps" / "s" / "a"
    ran(place, job, [360.0], [(960.0, 600.0)], ["NVIDIA H100"] * 4, 4, model="qwen3_1.7b")
    main(["-m", "seed=0,1,2,3,4,5", *words])
    ((state, said),) = times(capsys)
    assert state == "ok"
    assert said.startswith(
        "6 jobs, 16h31m each (150 steps of 6m00s, 4 evaluations of 10m00s, 30 checkpoints of 1m43s), 397 GPU-hours in all; "
        "measured (median of 2 steps of 1 earlier run here)"
    )
    assert said.endswith("; a job needs 5 lives of 240 min (hydra.launcher.timeout_min) and is queued again 4 times")


def test_without_measurements_the_table_is_taken_and_said(folder, capsys):
    main(["-m", "method=rlrt,grpo", "seed=0,1,2", *big(folder, *ON_SLURM)])
    rlrt, grpo, whole = times(capsys)
    each = [
        re.search(r"^3 jobs like method=(\w+) .*: (\S+) each \(150 steps of (\S+ s), 4 eval", x[1])
        for x in (rlrt, grpo)
    ]
    assert [match[1] for match in each] == ["rlrt", "grpo"]
    assert ["a probe of the teacher of" in x[1] for x in (rlrt, grpo)] == [True, False]
    assert float(each[0][3].split()[0]) > float(each[1][3].split()[0])  # GRPO has no teacher and scores nothing
    for state, said in (rlrt, grpo):
        assert state == "ok"
        assert (
            "by assumed rates of an H100, never measured; 32 rows at once, responses of 205 tokens on average (ass"
            in said
        )
        assert re.search(r"\(assumed\); (\w+) if all have 1024$", said)
    hours = [float(re.search(r"([\d.]+) GPU-hours in all", x[1])[1]) for x in (rlrt, grpo)]
    assert float(re.match(r"([\d.]+) GPU-hours of all 6 jobs together", whole[1])[1]) == pytest.approx(
        sum(hours), abs=0.11
    )


def test_jobs_of_a_search_are_counted(capsys):
    assert main(["-m", "+sweep=optuna_rlrt", "tracking=none", "--step-seconds", "1"]) == 0
    ((_, said),) = times(capsys)
    jobs = int(re.match(r"(\d+) jobs, ", said)[1])
    assert jobs >= 20
    assert "measured (--step-seconds), evaluations not counted" in said


def test_what_was_typed_goes_before_earlier_runs_and_those_before_the_table(folder, tmp_cwd, capsys):
    words = big(folder, "method=rlrt", "--memory-gb", "85.5")
    job = [word for word in words if not word.startswith("--") and word != "85.5"]
    main([*words])
    assert "assumed rates" in times(capsys)[0][1]
    ran(tmp_cwd / "outputs" / "runs" / "a", job, [50.0], gpus=["NVIDIA H100"], model="qwen3_1.7b")
    main([*words])
    said = times(capsys)[0][1]
    assert "150 steps of 50.0 s" in said
    assert said.endswith(
        "measured (median of 1 step of 1 earlier run here), evaluations by assumed rates of an H100, never measured"
    )
    main([*words, "--step-seconds", "70"])
    said = times(capsys)[0][1]
    assert "150 steps of 1m10s" in said
    assert "measured (--step-seconds)" in said


def test_rows_that_do_not_fit_are_said(folder, capsys):
    assert main([*big(folder, "method=rlrt", "--memory-gb", "16")]) == 2
    assert "; 8 rows at once as if they fitted, responses of 205 tokens" in times(capsys)[0][1]


def test_measured_rates_of_a_card(folder, tmp_cwd, capsys):
    slow = {"linear_bf16": 3e12, "causal_bf16": 1e12}
    (tmp_cwd / "rates.json").write_text(
        json.dumps(rates_file("NVIDIA H100", slow, "python -m benchmarks.gpu", "2026-12-01"))
    )
    found = []
    for more in ([], ["--rates", "rates.json"]):
        main([*big(folder, "method=rlrt", "--memory-gb", "85.5"), *more])
        found.append(times(capsys)[0][1])
    assert "by rates of an H100, 2 of 6 measured and the others assumed" in found[1]
    assert main([*big(folder), "--rates", "nowhere.json"]) == 2
    assert "--rates: expected the file that" in capsys.readouterr().err


def test_on_a_cpu_nothing_is_invented(capsys):
    assert main(["tracking=none", "method=rlrt"]) == 0
    ((state, said),) = times(capsys)
    assert state == "skipped"
    assert said.startswith(
        "no rate is known for a CPU, and no earlier run here is like this one; run a few steps here first"
    )


def test_sizes_that_are_not_known(capsys):
    main(["model=qwen3_1.7b", "tracking=none", "--memory-gb", "80"])
    assert times(capsys)[0][1].startswith("the model's sizes are not known here")
    main(["model=qwen3_1.7b", "tracking=none", *ON_SLURM])
    ((state, said),) = times(capsys)
    assert (state, said.startswith("the model's sizes are not known here")) == ("skipped", True)
    main(["model=qwen3_1.7b", "tracking=none", *ON_SLURM, "--step-seconds", "60"])
    ((state, said),) = times(capsys)
    assert (state, "measured (--step-seconds), evaluations not counted" in said) == ("ok", True)


def test_a_limit_under_which_no_checkpoint_can_be_written_is_refused(folder, capsys):
    """A step of 50 min and 103 s of checkpoint, of 50 min less 2: the key that it names is typed back in, and it is enough."""
    words = big(folder, *ON_SLURM, "method=rlrt", "--step-seconds", "3000")
    assert main([*words, "hydra.launcher.timeout_min=50"]) == 2
    found = times(capsys)
    assert [state for state, _ in found] == ["ok", "problem"]
    assert found[1][1] == (
        "no life of a job could write a checkpoint: a step (50m00s) and a checkpoint (1m43s) take 51m43s, 48m00s come before "
        "the signal; set hydra.launcher.timeout_min=54 or more, or a smaller train.prompts_per_step"
    )
    main([*words, "hydra.launcher.timeout_min=54"])
    assert [state for state, _ in times(capsys)] == ["ok"]
    main([*words, "hydra.launcher.timeout_min=53"])
    assert [state for state, _ in times(capsys)] == ["ok", "problem"]


def test_the_first_evaluation_counts_where_it_was_measured(folder, tmp_cwd, capsys):
    words = big(folder, *ON_SLURM, "method=rlrt", "hydra.launcher.timeout_min=50")
    job = [word for word in words if not word.startswith("hydra")]
    place = tmp_cwd / "outputs" / "runs" / "a"
    ran(place, job, [1200.0], [(3200.0, 2000.0)], ["NVIDIA H100"] * 4, 4, model="qwen3_1.7b")
    assert main(words) == 2
    found = times(capsys)
    assert [state for state, _ in found] == ["ok", "problem"]
    assert "the first evaluation (33m20s), a step (20m00s) and a checkpoint (1m43s) take 55m03s" in found[1][1]


def test_assumed_rates_alone_are_never_a_problem(folder, capsys):
    words = big(folder, *ON_SLURM, "method=rlrt", "train.prompts_per_step=4096", "hydra.launcher.timeout_min=11")
    main(words)
    found = times(capsys)
    assert [state for state, _ in found] == ["ok", "warning"]
    assert found[1][1].endswith("(by assumed rates of an H100, never measured)")


def test_earlier_runs_that_are_not_like_this_one(tmp_cwd):
    made = settings("method=rlrt")
    made.names.update({"method": "rlrt", "model": "tiny", "data": "countdown"})
    place = tmp_cwd / "outputs" / "runs"
    ran(place / "other_method", ["method=sd"], [9.0], method="sd")
    ran(place / "other_prompts", ["method=rlrt", "train.prompts_per_step=4"], [9.0])
    ran(place / "longer", ["method=rlrt", "engine.max_new_tokens=40"], [9.0])
    ran(place / "two_processes", ["method=rlrt"], [9.0], processes=2)
    ran(place / "on_a_gpu", ["method=rlrt", "device=auto"], [9.0], gpus=["NVIDIA H100"])
    ran(place / "unreadable", ["method=rlrt"], [9.0])
    (place / "unreadable" / "config.yaml").write_text("a: &x 1\nb: *x\n")
    ran(place / "no_steps", ["method=rlrt"], [])
    (place / "no_steps" / "metrics.jsonl").write_text('[1]\n"x"\n')
    assert earlier(made, 1, "cpu") is None
    ran(place / "cpu_beside_a_gpu", ["method=rlrt", "device=cpu"], [1.0, 3.0], gpus=["NVIDIA H100"])
    ran(place / "other_evaluation", ["method=rlrt", "eval.prompts=9"], [4.0], [(10.0, 5.0)])
    assert earlier(made, 1, "cpu") == Earlier(
        step_s=3.5, slowest_s=5.0, evaluation_s=None, probe_s=None, steps=4, runs=2
    )
    ran(place / "like_it", ["method=rlrt"], [], [(10.0, 8.0)])
    assert earlier(made, 1, "cpu") == Earlier(
        step_s=3.0, slowest_s=5.0, evaluation_s=8.0, probe_s=None, steps=5, runs=3
    )
    for name, words, took in (("asked", [], 0.5), ("asked_less", ["teacher.probe_prompts=4"], 0.1)):
        ran(place / name, ["method=rlrt", "eval.prompts=9", *words], [3.0])
        with (place / name / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 0, "time/probe_s": took}) + "\n")
    assert earlier(made, 1, "cpu") == Earlier(step_s=3.0, slowest_s=5.0, evaluation_s=8.0, probe_s=0.5, steps=7, runs=5)
