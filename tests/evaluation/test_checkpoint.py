"""rlrt.evaluate: a checkpoint on suites, problem by problem, cut and gone on with, with intervals, in MLflow once."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil

import pytest

from rlrt.errors import UserError
from rlrt.evaluate import evaluate, evaluate_model
from rlrt.evaluation.checkpoint import chosen, measure, of_model, read_problems, runs_of, summarised, texts_of
from rlrt.evaluation.results import carried_out
from rlrt.execution.execute import execute
from rlrt.execution.parts import parts_of
from rlrt.records.folder import RunFolder
from rlrt.records.jsonlines import JsonLines
from rlrt.records.stored_config import stored_config
from rlrt.reporting import terminal
from rlrt.training.evaluation import Suite
from rlrt.training.evaluation import evaluate as in_training
from tests.forked import forked
from tests.helpers import settings
from tests.hub import jsonl

SMALL = ("train.steps=2", "train.prompts_per_step=4", "train.eval_every=0", "eval.prompts=12", "train.lr=1e-3")
"""Written as typed: evaluate composes a run's config from its manifest."""


@pytest.fixture(scope="module")
def once(tmp_path_factory, empty_store):
    """A run and its store, to be copied."""
    place = tmp_path_factory.mktemp("once")
    shutil.copy(empty_store, place / "store.db")
    typed = [*SMALL, f"tracking.uri=sqlite:///{place / 'store.db'}"]
    execute(settings(*typed), place / "run", lambda line: None, lambda: False, progress=False)
    return place


@pytest.fixture
def run(tmp_cwd, uri, once):
    shutil.copy(once / "store.db", tmp_cwd / "store.db")
    shutil.copytree(once / "run", tmp_cwd / "run")
    for name in ("config.yaml", "manifest.json"):
        file = tmp_cwd / "run" / name
        file.write_text(file.read_text().replace(f"sqlite:///{once / 'store.db'}", uri))
    return tmp_cwd / "run"


def suite_file(folder, name, targets):
    rows = [{"problem": f"{t}:3 4 5", "answer": f"{t}", "url": "x"} for t in targets]
    return jsonl(folder / name / "test.jsonl", rows)


SUITES = (
    "eval=paper", "~eval.suites.aime25", "~eval.suites.aime26", "~eval.suites.hmmt26", "~eval.suites.math500",
    "eval.suites.aime24.problems=5", "eval.suites.amc23.problems=3", "eval.suites.amc23.prompt_field=problem",
    "eval.suites.aime24.files='*'", "eval.suites.amc23.files='*'", "eval.samples_per_prompt=4",
    f"eval.suites.aime24.verifier={__name__}.ends_on", f"eval.suites.amc23.verifier={__name__}.ends_on",
)  # fmt: skip


def ends_on(expected, response):
    """A verifier of our own, found by its import path."""
    return response.endswith(f"={expected}")


def test_the_final_evaluation_again_is_the_same_to_the_bit(run, capsys, monkeypatch):
    """Held-out problems under the run's own keys: the numbers that the run recorded at its last step."""
    recorded = RunFolder(run).record.read()[-1]
    monkeypatch.setattr(terminal, "PRINTED_S", 0.0)
    evaluate(run, None, [])
    text = capsys.readouterr().out
    shown = [line for line in text.splitlines() if line.startswith("heldout  [")]
    assert len(shown) == 12 * 9  # a greedy response and eight samples of each
    assert shown[-1] == "heldout  [####################]  12/12 problems  0s left"
    (folder,) = (run / "evaluations").iterdir()
    found = json.loads((folder / "results.json").read_text())["suites"]["heldout"]
    assert found["problems"] == 12
    assert found["greedy"][0] == pytest.approx(recorded["eval/greedy"], abs=1e-15)
    assert found["avg_at_8"][0] == pytest.approx(recorded["eval/avg_at_8"], abs=1e-15)
    for k in (1, 2, 4, 8):
        assert found["pass_at"][str(k)][0] == pytest.approx(recorded[f"eval/pass_at_{k}"], abs=1e-15)
    assert found["distinct_correct"] == pytest.approx(recorded["eval/distinct_correct"], abs=1e-15)
    assert found["length_mean"] == pytest.approx(recorded["eval/length_mean"], abs=1e-12)
    low, high = found["avg_at_8"][1:]
    assert low < found["avg_at_8"][0] < high
    assert "heldout: 12 problems, 0 of them measured before" in text


def test_suites_from_folders_a_verifier_of_ones_own_and_the_mean_of_suites(run):
    a, b = suite_file(run.parent, "aime", [17, 23, 12, 19, 35]), suite_file(run.parent, "amc", [27, 60, 7])
    typed = [*SUITES, f"eval.suites.aime24.path={a.parent}", f"eval.suites.amc23.path={b.parent}"]
    evaluation = chosen(run, None, typed)
    rows = measure(evaluation, lambda line: None)
    found = summarised(rows)
    assert list(found) == ["aime24", "amc23", "mean"]
    assert [m["problems"] for m in found.values()] == [5, 3, 8]
    assert found["aime24"]["avg_at_4"][0] > 0
    for name in ("greedy", "avg_at_4"):
        mean = (found["aime24"][name][0] + found["amc23"][name][0]) / 2
        assert found["mean"][name][0] == pytest.approx(mean, abs=1e-15)  # each suite counts alike, whatever its size
    # a run in training reports the same mean under the bare names
    made = evaluation.settings
    parts = parts_of(made)
    read_problems(parts)
    suites = [Suite(n, s, p) for n, s, p in ((x.name, x.sampler, x.prompts) for x in built(made, parts))]
    metrics = in_training(suites, 4, sampling(made))
    assert metrics["eval/avg_at_4"] == pytest.approx(found["mean"]["avg_at_4"][0], abs=1e-15)
    assert metrics["eval/amc23/avg_at_4"] == pytest.approx(found["amc23"]["avg_at_4"][0], abs=1e-15)
    parts.close()


def built(made, parts):
    from rlrt.execution.build import load_model, prompt_builder, suites_of
    from rlrt.model.policy import Policy

    model, tokenizer = load_model(made)
    return suites_of(made, parts, Policy(model, tokenizer, None, 1.0), prompt_builder(made, tokenizer))


def sampling(made):
    from rlrt.types import Sampling

    return Sampling(made.eval.temperature, made.eval.top_p, made.eval.top_k)


def test_a_cut_evaluation_goes_on_and_ends_the_same(run):
    typed = ["eval.prompts=10", "engine.max_rows=16"]
    evaluate(run, None, typed)
    (folder,) = (run / "evaluations").iterdir()
    whole = (folder / "problems.jsonl").read_text()
    results = (folder / "results.json").read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 10
    (folder / "problems.jsonl").write_text("".join(lines[:4]) + lines[4][:20] + "\n")  # torn in its fifth line
    (folder / "results.json").unlink()
    said = []
    measure(chosen(run, None, typed), said.append)
    assert said == ["heldout: 10 problems, 4 of them measured before"]
    evaluate(run, None, typed)
    kept = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines() if line.endswith("}")]
    by_id = lambda rows: sorted(rows, key=lambda r: r["prompt_id"])  # noqa: E731
    assert by_id(kept) == by_id(json.loads(line) for line in lines)
    again = json.loads((folder / "results.json").read_text())["suites"]["heldout"]
    for name, value in json.loads(results)["suites"]["heldout"].items():
        if name == "pass_at":
            continue
        means = (again[name], value) if isinstance(value, (int, float)) else (again[name][0], value[0])
        assert means[0] == pytest.approx(means[1], abs=1e-12)


def test_two_folders_with_files_of_one_name_lose_no_problem(run):
    """A cut evaluation knows problems by their ids: those of file name and row came twice here, and 12 problems became 10."""
    for folder, first in (("a", 12), ("b", 40)):
        rows = [{"prompt": f"{n}:3 4 5", "answer": "x"} for n in range(first, first + 12)]
        jsonl(run.parent / "data" / folder / "test.jsonl", rows)
    typed = ["data=file", f"data.path={run.parent / 'data'}", "data.heldout_share=0.5", "eval.samples_per_prompt=2"]
    rows = measure(chosen(run, None, typed), lambda line: None)
    (folder,) = (run / "evaluations").iterdir()
    lines = (folder / "problems.jsonl").read_text().splitlines(keepends=True)
    assert len(rows) == len(lines) == len({row["prompt_id"] for row in rows}) == 12
    (folder / "problems.jsonl").write_text("".join(lines[:6]))
    again = measure(chosen(run, None, typed), lambda line: None)
    by_id = lambda rows: sorted(rows, key=lambda r: r["prompt_id"])  # noqa: E731
    assert by_id(again) == by_id(rows)
    assert summarised(again)["heldout"]["problems"] == 12


def test_rows_of_other_ids_count_for_nothing(run):
    """Left by an earlier version, or by a data file that has changed since."""
    typed = ["eval.prompts=4", "eval.samples_per_prompt=2"]
    rows = measure(chosen(run, None, typed), lambda line: None)
    (folder,) = (run / "evaluations").iterdir()
    with (folder / "problems.jsonl").open("a") as file:
        file.write(json.dumps(rows[0] | {"prompt_id": "test:1"}) + "\n")
    assert measure(chosen(run, None, typed), lambda line: None) == rows


def test_another_checkpoint_other_keys_and_the_start_are_other_evaluations(run):
    folders = {chosen(run, step, typed).folder for step, typed in
               ((None, []), (2, []), (0, []), (None, ["eval.temperature=0.5"]), (None, ["eval.seed=3"]))}  # fmt: skip
    assert len(folders) == 4
    assert chosen(run, 0, []).settings.model.path == "embedded"
    with pytest.raises(UserError, match=r"expected the checkpoint of step 7, found 2; see --step"):
        chosen(run, 7, [])


def test_every_k_is_in_the_table_and_pass_at_k_rises(run):
    evaluate(run, None, ["eval.samples_per_prompt=32", "eval.prompts=6"])
    (folder,) = (run / "evaluations").iterdir()
    rows = list(csv.DictReader((folder / "pass_at_k.csv").read_text().splitlines()))
    assert [int(r["k"]) for r in rows] == list(range(1, 33))
    values = [float(r["pass_at_k"]) for r in rows]
    assert values == sorted(values)
    assert all(float(r["low"]) <= float(r["pass_at_k"]) <= float(r["high"]) for r in rows)
    per_problem = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
    by_hand = [1 - math.comb(32 - r["correct"], 8) / math.comb(32, 8) for r in per_problem]
    assert values[7] == pytest.approx(sum(by_hand) / 6, abs=1e-12)


def test_mlflow_has_the_figures_once_at_the_checkpoints_step(run, uri):
    from mlflow import MlflowClient

    evaluate(run, None, ["eval.samples_per_prompt=4"])
    evaluate(run, None, ["eval.samples_per_prompt=4"])
    client = MlflowClient(uri)
    run_id = RunFolder(run).manifest()["mlflow_run_id"]
    history = client.get_metric_history(run_id, "eval/heldout/avg_at_4")
    assert [m.step for m in history] == [2]
    assert {"eval/heldout/avg_at_4_low", "eval/heldout/pass_at_2"} <= set(client.get_run(run_id).data.metrics)
    assert client.get_run(run_id).info.status == "FINISHED"
    (folder,) = (run / "evaluations").iterdir()
    assert {f.path.rsplit("/", 1)[1] for f in client.list_artifacts(run_id, f"evaluations/{folder.name}")} == {
        "results.json",
        "pass_at_k.csv",
    }


def test_a_sweeps_folder_means_its_finished_runs(run, capsys):
    other = run.parent / "other"
    RunFolder(other).set_state("failed")
    (other / "config.yaml").write_text("")
    (other / "manifest.json").write_text("{}")
    assert runs_of([run.parent]) == [run]
    assert "left out, not finished" in capsys.readouterr().err
    with pytest.raises(UserError, match="expected a run's folder"):
        runs_of([run.parent / "nowhere"])


WITHOUT = ("model=tiny", "eval.prompts=7", "eval.samples_per_prompt=4")


def test_a_model_without_a_run_is_what_a_run_finds_before_training(run, capsys):
    """The overrides of the run, evaluated by themselves and at the run's step 0: one row for each problem, the same."""
    evaluate(run, 0, ["eval.prompts=7", "eval.samples_per_prompt=4"])
    (of_run,) = (run / "evaluations").iterdir()
    evaluate_model([*SMALL, *WITHOUT])
    (folder,) = (run.parent / "outputs" / "evaluations").iterdir()
    assert (folder / "problems.jsonl").read_text() == (of_run / "problems.jsonl").read_text()
    mine, theirs = (json.loads((f / "results.json").read_text()) for f in (folder, of_run))
    assert mine["suites"] == theirs["suites"]
    assert mine["overrides"] == [*SMALL, *WITHOUT]
    assert stored_config(folder)["eval"]["prompts"] == 7
    assert "embedded, without a run" in capsys.readouterr().out


def test_a_cut_evaluation_without_a_run_goes_on_under_any_order_of_words(tmp_cwd):
    evaluation = of_model(WITHOUT)
    carried_out(evaluation, lambda line: None)
    file = evaluation.folder / "problems.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]))
    said = []
    again = of_model(WITHOUT[::-1])
    carried_out(again, said.append)
    assert (again.folder, said) == (evaluation.folder, ["heldout: 7 problems, 3 of them measured before"])
    assert sorted(file.read_text().splitlines(keepends=True)) == sorted(lines)


def test_samples_to_read_have_the_prompt_as_sent_and_a_sample_of_each_verdict(tmp_cwd):
    evaluation = of_model([*WITHOUT[:2], "eval.samples_per_prompt=2"])
    results = carried_out(evaluation, lambda line: None)
    problems = {r["prompt_id"]: r for r in JsonLines(evaluation.folder / "problems.jsonl").read()}
    texts = texts_of(evaluation)
    assert list(dict.fromkeys(t["prompt_id"] for t in texts)) == list(problems)[:5]
    for name, row in list(problems.items())[:5]:
        verdicts = {t["correct"] for t in texts if t["prompt_id"] == name}
        assert verdicts == ({True} if row["correct"] == 2 else {False} if row["correct"] == 0 else {True, False})
    assert all(t["prompt"].startswith("<bos>") and t["prompt"].endswith(">") for t in texts)
    mixed = sum(r["correct"] == 1 for r in problems.values())
    assert 0 < mixed < 7
    assert results["heldout"]["mixed_share"] == pytest.approx(mixed / 7, abs=1e-15)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["nowhere"],
            r"got nowhere; a model without a run is evaluated by overrides alone, as in rlrt.evaluate model=hf ",
        ),
        (["model=tiny,hf"], r"model=tiny,hf: several values are compared by python -m rlrt\.scout"),
        (["model=tiny", "--step", "0"], r"--step 0: only a run has steps"),
        (["modle=tiny"], r"modle: there is no such key. Did you mean 'model'"),
        (["hydra.run.dir=x"], r"hydra\.run\.dir: an evaluation does not read it"),
        (["data=file", "data.path=nowhere.jsonl"], r"data\.path"),
    ],
)
def test_what_is_neither_a_run_nor_a_model_is_one_sentence(tmp_path, words, says):
    done = forked("evaluate", words, tmp_path)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["eval=paper"],
            r"eval\.suites\.aime24\.path: the data set HuggingFaceH4/aime_2024 could not be downloaded from the hub",
        ),
        (["eval=pepar"], r"eval=pepar: there is no such eval\..*Did you mean 'paper'"),
        (["--step", "9"], r"expected the checkpoint of step 9, found 2"),
        (["eval.suites.mine.path=x"], r"eval\.suites\.mine"),
        (["+eval.suites.mine={path: x, pth: y}"], r"eval\.suites\.mine\.pth: there is no such key"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, words, says):
    done = forked("evaluate", [str(run), *words], run.parent)
    assert done.returncode in (1, 2)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert not (run / "evaluations").exists()


def test_a_benchmark_with_another_number_of_problems_is_refused(run):
    file = suite_file(run.parent, "aime", [17, 23, 23])
    typed = ["eval=aime24", f"eval.suites.aime24.path={file}"]
    with pytest.raises(UserError, match=r"expected 30 questions in .*, found 2 \(1 x repeated question\)"):
        measure(chosen(run, None, typed), lambda line: None)


def test_a_problem_that_a_suite_holds_is_not_trained_on(tmp_cwd, caplog):
    from rlrt.execution.data import prepare_data

    rows = [{"prompt": f"{t}:3 4 5", "answer": str(t)} for t in range(7, 27)]
    data, suite = jsonl(tmp_cwd / "train.jsonl", rows), suite_file(tmp_cwd, "aime", [17, 23, 90])
    made = settings(
        "data=file",
        f"data.path={data}",
        "eval=aime24",
        f"eval.suites.aime24.path={suite}",
        "eval.suites.aime24.problems=3",
    )
    parts = parts_of(made)
    prepare_data(parts)
    held = {"17:3 4 5", "23:3 4 5"}
    assert not held & {p.text for p in parts.task.train}
    lost = len(held - {p.text for p in parts.task.heldout})
    assert f"dropped {lost} problems that the evaluation suites hold" in caplog.text
