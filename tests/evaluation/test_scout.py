"""rlrt.scout: combinations of models, prompts and tasks, each as rlrt.evaluate finds it, side by side, to read."""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rlrt.evaluate import evaluate_model
from rlrt.evaluation.kept import KeptModel
from rlrt.paths import EMBEDDED
from rlrt.reporting.scouted import Cell, clipped, has_room, page, table_of, verdict
from rlrt.scout import evaluations_of, main
from tests.forked import forked
from tests.helpers import settings
from tests.hub import jsonl

SMALL = ["eval.prompts=6", "eval.samples_per_prompt=4", "engine.max_new_tokens=16"]
TYPED = [
    "model.path=embedded,other", "data.path=own/p.jsonl,none.jsonl", "data=file", "data.heldout_share=0.5",
    "data.instruction='Say x'", *SMALL,
]  # fmt: skip
NASTY = "</div></pre><script>alert(1)</script>"


def other_model(folder):
    """The embedded model with weights that are a little smaller: another model for an identity."""
    shutil.copytree(EMBEDDED, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v * 0.9 for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def scouted(tmp_path_factory):
    """A scout of two models on two tasks, one of which has no such file: its folder, and what main gave and printed."""
    place = tmp_path_factory.mktemp("scouted")
    other_model(place / "other")
    rows = [{"prompt": f"{n}:3 4 5", "answer": f"{NASTY}{n}"} for n in range(9, 29)]
    jsonl(place / "own" / "p.jsonl", rows)
    return place, forked("scout", TYPED, place)


CRASHING = """
from dataclasses import dataclass
from rlrt.tasks.countdown import Countdown
@dataclass
class Mine(Countdown):
    def prepare(self):
        if self.numbers == 2:
            raise MemoryError("no room")
        super().prepare()
"""


def test_a_cell_that_crashes_leaves_the_others_their_results(tmp_path):
    (tmp_path / "crashing.py").write_text(CRASHING)
    done = forked("scout", ["data._target_=crashing.Mine", "data.numbers=2,3", "--show", "0", *SMALL], tmp_path)
    assert done.returncode == 1
    assert "cell 1" in done.stderr
    assert "MemoryError: no room" in done.stderr
    (folder,) = (tmp_path / "outputs" / "scouts").iterdir()
    rows = list(csv.DictReader((folder / "scout.csv").read_text().splitlines()))
    assert [row["problems"] for row in rows] == ["failed", "6"]
    assert "MemoryError: no room" in (folder / "scout.html").read_text()


def test_fewer_samples_than_none_cannot_be_shown(tmp_path):
    done = forked("scout", ["model=tiny", "--show", "-3"], tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "expected a number of at least 0, got -3" in done.stderr


def test_every_combination_is_a_row_and_what_fails_says_why(scouted):
    place, done = scouted
    assert done.returncode == 2
    assert re.findall(r"^error: cell (\d): data\.path", done.stderr, re.MULTILINE) == ["2", "4"]
    (folder,) = (place / "outputs" / "scouts").iterdir()
    rows = list(csv.DictReader((folder / "scout.csv").read_text().splitlines()))
    assert [(r["model.path"], r["data.path"]) for r in rows] == [
        (model, data) for model in ("embedded", "other") for data in ("own/p.jsonl", "none.jsonl")
    ]
    assert [r["problems"] for r in rows] == ["6", "failed", "6", "failed"]
    assert [r["avg@4"] for r in rows] == ["0.000", "-", "0.000", "-"]
    assert len(list((place / "outputs" / "evaluations").iterdir())) == 2
    assert "no cell has room to learn" in done.stdout


def test_the_page_shows_samples_and_runs_nothing_of_them(scouted):
    place, _ = scouted
    (file,) = (place / "outputs" / "scouts").glob("*/scout.html")
    text = file.read_text()
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert html.escape(NASTY) in text  # the expected answer
    sent = re.findall(r"<div class='text sent'>(.*?)</div>", text)
    assert len(sent) == 10  # five problems for each cell that could be measured
    assert all(html.unescape(s).startswith("<bos>") and html.unescape(s).endswith(">") for s in sent)
    assert text.count("expected: <code>") == 10
    (command,) = re.findall(r"<pre class='command'>(.*?)</pre>", text)
    assert shlex.split(html.unescape(command)) == ["python", "-m", "rlrt.scout", *TYPED]


def test_a_scout_finds_what_evaluate_finds_and_measures_nothing_twice(tmp_cwd, capsys):
    other_model(tmp_cwd / "other")
    typed = ["data.numbers=2,3", "model.path=embedded,other", *SMALL]
    assert main(typed) == 0
    first = capsys.readouterr().out
    assert first.count("6 problems, 0 of them measured before") == 4
    assert "cell 1, " in first
    (page_file,) = Path("outputs/scouts").glob("*/scout.html")
    whole = page_file.read_text()
    assert main(typed) == 0
    assert capsys.readouterr().out.count("6 problems, 6 of them measured before") == 4
    assert page_file.read_text() == whole
    results = {f: f.read_text() for f in Path("outputs/evaluations").glob("*/results.json")}
    assert len(results) == 4
    one = next(f for f in results if "data.numbers=3,model.path=embedded" in str(f)).parent
    shutil.rmtree(one)
    evaluate_model(["data.numbers=3", "model.path=embedded", *SMALL])
    assert (one / "results.json").read_text() == results[one / "results.json"]
    assert json.loads(results[one / "results.json"])["suites"]["heldout"]["greedy"][0] > 0


def test_a_model_is_read_once_and_keeps_no_stop_token_of_another_prompt(tmp_cwd):
    other_model(tmp_cwd / "other")
    kept = KeptModel()
    model, tokenizer = kept(settings("model.stop_tokens=[';']", *SMALL))
    assert model.generation_config.eos_token_id == [tokenizer.get_vocab()[";"]]
    again, _ = kept(settings("model.prompt_template='{prompt}:'", "data.numbers=2", *SMALL))
    assert (again is model, kept.loads) == (True, 1)
    assert again.generation_config.eos_token_id == tokenizer.eos_token_id
    third, _ = kept(settings("model.path=other", *SMALL))
    assert (third is model, kept.loads) == (False, 2)


def figures(average, best, cut=0.0):
    nothing = (0.0, 0.0, 0.0)
    shares = {
        "mixed_share": 0.5,
        "truncated_share": cut,
        "verifier_error_share": 0.0,
        "length_mean": 7.4,
        "problems": 8,
    }
    return {"greedy": nothing, "avg_at_8": (average, 0.0, 1.0), "pass_at": {1: nothing, 8: (best, 0.0, 1.0)}, **shares}


@pytest.mark.parametrize(
    ("average", "best", "room"),
    [
        (0.05, 0.1, True),
        (0.049, 0.333, False),
        (0.3, 0.59, False),
        (0.3, 0.6, True),
        (0.375, 1.0, True),
        (0.6, 1.0, False),
    ],
)
def test_where_there_is_room_to_learn_by_hand(average, best, room):
    """The rule: right in 5 % of the samples or more, and twice as often in one of eight."""
    cell = Cell({"data": "x"}, 8, "f", {"heldout": figures(average, best)})
    assert has_room(cell, cell.results["heldout"]) is room
    assert verdict([Cell({}, 8, "g"), cell]).startswith("room to learn" if room else "no cell has room to learn")
    assert not room or verdict([Cell({}, 8, "g"), cell]).endswith("cell 2")


def test_where_all_samples_are_cut_the_remedy_is_another():
    cut = Cell({}, 8, "f", {"heldout": figures(0.0, 0.0, cut=0.96)})
    assert "raise engine.max_new_tokens" in verdict([cut])
    assert verdict([Cell({}, 8, "f", error="x")]) == "no cell was measured"
    assert "worked examples before the question (model.examples)" in verdict(
        [cut, Cell({}, 8, "f", {"heldout": figures(0.0, 0.0)})]
    )


def test_suites_are_rows_and_several_k_have_one_heading():
    cells = [Cell({"eval": "paper"}, 8, "f", {name: figures(0.1, 0.4) for name in ("aime24", "amc23", "mean")})]
    assert [row[2] for row in table_of(cells).rows] == ["aime24", "amc23", "mean"]
    assert "avg@8" in table_of(cells).headings
    assert "avg@k" in table_of([*cells, Cell({}, 4, "g")]).headings
    assert clipped("/a/very/long/folder/of/data/sets/one.jsonl") == "/a/very/long/fol...a/sets/one.jsonl"
    assert NASTY not in page(NASTY, NASTY, [Cell({NASTY: NASTY}, 8, NASTY, error=NASTY, texts=[{"response": NASTY}])])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["modle=a,b"], r"modle: there is no such key"),
        (["model=tiny,nope"], r"model=nope: there is no such model"),
        (["train.lr=interval(0,1)"], r"needs hydra/sweeper=optuna|leave hydra/sweeper out"),
        (["hydra/sweeper=optuna", "data.numbers=2,3"], r"hydra/sweeper: a scout compares the combinations of a grid"),
        (["data.numbers=2,0"], r"data\.numbers: .* \(in the cell data\.numbers=0\)"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, words, says):
    done = forked("scout", words, tmp_path)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


def test_axes_are_those_of_a_sweep(tmp_cwd):
    from rlrt.config.rerun import OWN, expand

    typed = [r"model.prompt_template=choice('{prompt}>','{prompt}\n>')", "data.numbers=range(2,4)", *SMALL]
    found = [(e.settings.model.prompt_template, e.settings.data.numbers) for e in evaluations_of(expand(typed), OWN)]
    assert found == [("{prompt}>", 2), ("{prompt}>", 3), ("{prompt}\n>", 2), ("{prompt}\n>", 3)]
