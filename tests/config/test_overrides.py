"""What was typed and cannot be read: one sentence that names the key, on at most three lines however long the value."""

from __future__ import annotations

import pytest

from rlrt.config.overrides import mapping_opened, newlines_read, parsed, read_back, ungrammatical, written
from rlrt.config.refused import refuse_out_of_place
from rlrt.config.rerun import expand
from rlrt.errors import MOST, UserError, brief, shown
from rlrt.paths import existing, local_folder
from tests.forked import forked
from tests.helpers import settings

SMALL = ("train.steps=1", "train.prompts_per_step=2", "eval.prompts=2", "eval.samples_per_prompt=1", "tracking=none")
LONG = "A" * 5000


def refused(tmp_path, *words):
    done = forked("run", words, tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) <= 3
    assert len(done.stderr) < MOST + 20
    assert not list(tmp_path.iterdir())
    return done.stderr.removeprefix("error: ")


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["train.beta1=${nope}"], "train.beta1: the value '${nope}' cannot be resolved ("),
        (["threads=${seed}", "train.beta1=${nope}"], "train.beta1: the value '${nope}' cannot be resolved"),
        (["threads=${oc.env:NOPE}"], "threads: the value '${oc.env:NOPE}' cannot be resolved"),
        (["seed=${seed}"], "seed: the value '${seed}' cannot be resolved"),
        (["tracking.experiment='x${nope}'"], "tracking.experiment: the value"),
        (["model.stop_tokens=[a,'${nope}']"], "model.stop_tokens: the value"),
        (["train.lr=${foo:1}"], "train.lr: the value '${foo:1}' cannot be resolved"),
        (["train.lr=${train}"], "train.lr: the value '${train}' cannot be resolved"),
        (["train.lr=${a"], "train.lr: expected a value in Hydra's grammar, got '${a'"),
        (["eval.suites={a:{path:'${nope}'}}"], "eval.suites.a.path: the value cannot be resolved"),
        (["hydra.run.dir=${nope}"], "hydra.run.dir: the value '${nope}' cannot be resolved"),
        (["method=${nope}"], "method: "),
        (["-m", "seed=1,${nope}"], "seed: the value '1,${nope}' cannot be resolved"),
        (["-m", "train.beta1=${nope}"], "train.beta1: the value"),
        (["-m", "hydra.sweep.dir=${nope}"], "hydra.sweep.dir: the value"),
        (["-m", "hydra.sweeper.params={seed:['${nope}']}"], "hydra.sweeper.params.seed[0]: the value"),
        (["-m", "hydra/sweeper=optuna", "seed=1,2", "train.beta1=${nope}"], "train.beta1: the value '${nope}'"),
    ],
)
def test_an_interpolation_that_leads_nowhere(tmp_path, words, begins):
    assert refused(tmp_path, *words).startswith(begins)


def test_an_interpolation_that_leads_somewhere(tmp_path):
    done = forked("run", [*SMALL, "train.save_every=${train.steps}"], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("m", [[], ["-m"]])
@pytest.mark.parametrize(
    ("word", "begins"),
    [
        ("model.stop_tokens=[a,b", "model.stop_tokens: expected a value in Hydra's grammar, got '[a,b'; close every bracket"),
        ("seed=1,", "seed: expected a value in Hydra's grammar, got '1,'"),
        ("train.lr='1", "train.lr: expected a value in Hydra's grammar"),
        ("model.prompt_template={prompt}>", "model.prompt_template: expected a value in Hydra's grammar, got '{prompt}>'"),
        ("+train.lr=(1", "train.lr: expected a value in Hydra's grammar"),
        ("method=null", "method: expected the name of an option, got null. Valid: "),
        ("method=5", "method: expected the name of an option, got 5."),
        ("=5", "'=5': expected KEY=VALUE."),
        ("+=5", "'+=5': expected KEY=VALUE."),
        ("a b", "'a b': expected KEY=VALUE."),
        ("tra in=5", "'tra in=5': expected KEY=VALUE with a key of letters"),
        ("method=", "method"),
        ("~nothing", "nothing: there is no such key to take out"),
        ("~method", "method: "),
        ("~train.lr", "train.lr: this key has no value"),
        ("model.lora_targets={a:1}", "model.lora_targets: the value '{a:1}' does not fit here"),
        ("seed={a:1}", "seed: expected a whole number, got {'a': 1} (dict)"),
        ("train={lrr:1}", "train.lrr: there is no such key. Did you mean 'train.lr'"),
    ],
)  # fmt: skip
def test_what_the_grammar_does_not_have_names_the_override(tmp_path, m, word, begins):
    assert refused(tmp_path, *m, word).startswith(begins)


@pytest.mark.parametrize(
    "word",
    [
        f"distributed.strategy={LONG}", f"method={LONG}", f"engine={LONG}", f"experiment={LONG}", f"device={LONG}",
        f"data._target_={LONG}", f"method.credit={LONG}", f"threads={LONG}", f"tracking.uri={LONG}", f"nokey={LONG}",
        f"{LONG}=1", LONG, f"+method.{LONG}=1", f"threads={'9' * 5000}", f"train.lr={'9' * 5000}", f"seed=-{'9' * 400}",
        f"model.stop_tokens=[{','.join(['a'] * 3000)}", f"hydra.run.dir={LONG}", f"+sweep={LONG}", f"train.lr=[{LONG}]",
        f"train={LONG}", f"eval.suites.{'a' * 50}={LONG}", f"method.auxiliary={LONG}", f"resume={LONG}",
        "teacher.template='" + "a\n" * 99 + "'", "device='" + "a\n" * 99 + "'",
    ],
    ids=lambda w: w[:30].replace("\n", " "),
)  # fmt: skip
def test_a_long_value_makes_no_long_message(tmp_path, word):
    said = refused(tmp_path, word)
    assert word[:20].split("=")[0].lstrip("+") in said


@pytest.mark.parametrize("word", [f"device={LONG}", f"seed=1,{LONG}", f"method={LONG},grpo", f"hydra.sweep.dir={LONG}"])
def test_nor_in_a_sweep(tmp_path, word):
    assert word.split("=")[0] in refused(tmp_path, "-m", "seed=0", word)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hydra/launcher=slurm"], "hydra/launcher: only a sweep reads it, and this is a single run; add -m"),
        (["hydra.launcher.n_jobs=4"], "hydra.launcher.n_jobs: only a sweep"),
        (["+hydra.launcher.additional_parameters.gres=x"], "hydra.launcher.additional_parameters.gres: only a sweep"),
        (["hydra.launcher={n_jobs:4}"], "hydra.launcher: only a sweep"),
        (["hydra/sweeper=optuna"], "hydra/sweeper: only a sweep"),
        (["hydra/sweeper/sampler=grid"], "hydra/sweeper/sampler: only a sweep"),
        (["hydra.sweeper.n_trials=4"], "hydra.sweeper.n_trials: only a sweep"),
        (["hydra.sweep.dir=x"], "hydra.sweep.dir: only a sweep"),
        (["hydra.mode=MULTIRUN"], "hydra.mode: a sweep begins with -m"),
        (["-m", "hydra.mode=RUN"], "hydra.mode: a sweep begins with -m"),
        (
            ["-m", "hydra.run.dir=x"],
            "hydra.run.dir: a sweep does not read it; give the sweep's folder as hydra.sweep.dir",
        ),
        (["-m", "hydra.sweep.subdir=x"], "hydra.sweep.subdir: a sweep does not read it"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, words, says):
    assert refused(tmp_path, *SMALL, *words).startswith(says)


@pytest.mark.parametrize(
    "words",
    [["hydra/launcher=slurm", "--cfg", "job"], ["--cfg=hydra", "hydra.launcher.n_jobs=4"], ["-m", "hydra.launcher.n_jobs=4"],
     ["hydra.run.dir=x"], ["hydra.job.chdir=false"], ["--help", "hydra/sweeper=optuna"]],
)  # fmt: skip
def test_what_is_read_is_not(words):
    refuse_out_of_place(words)


def test_a_mapping_as_typed():
    assert mapping_opened("eval.suites={a:{path:x}}") == "++eval.suites={a:{path:x}}"
    assert mapping_opened("train={lr:1}") == "++train={lr:1}"
    assert mapping_opened("hydra.launcher.additional_parameters={gres: 'gpu:1'}").startswith("++")
    for other in ("method={name:x}", "hydra.job={chdir:true}", "+a={b:1}", "a={b:1},{b:2}", "a={x}>", "a=1", "a"):
        assert mapping_opened(other) == other


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r'model.prompt_template="Q: {prompt}\nA:"', "Q: {prompt}\nA:"),
        (r"data.instruction=Say it\n\nbriefly", "Say it\n\nbriefly"),
        (r"teacher.template='{prompt}\n\boxed{1}\n{solution}'", "{prompt}\n\\boxed{1}\n{solution}"),
        (r'model.stop_tokens=["\n","\n\n",x]', ["\n", "\n\n", "x"]),
        (r"model.prompt_template='$a \neq b$ \ne \nu{prompt}\nuse'", "$a \\neq b$ \\ne \\nu{prompt}\nuse"),
        (r'method.response_template="{solution}\n{answer}"', "{solution}\n{answer}"),
        (r'data.examples=[{question: "a\nb", answer: "7"}]', [{"question": "a\nb", "answer": "7"}]),
        ("data.examples=[{question: a, answer: 7}]", [{"question": "a", "answer": 7}]),
        (r"model.prompt_template='{prompt}\\n'", r"{prompt}\\n"),
        (r"data.path='C:\new'", r"C:\new"),
    ],
)
def test_newlines_of_what_a_model_reads_can_be_typed(typed, meant):
    """But a LaTeX command, what follows two backslashes, and other keys stay as they are; YAML has newlines of its own."""
    (override,) = parsed([newlines_read(typed)])
    assert (override.key_or_group, override.value()) == (typed.split("=")[0], meant)
    assert newlines_read(newlines_read(typed)) == newlines_read(typed)


def test_a_typed_newline_reaches_the_settings_of_a_run_and_of_a_sweeps_job(tmp_path):
    from rlrt.config.compose import composer
    from rlrt.sweep.jobs import planned

    template = r"model.prompt_template='{prompt}\n>'"
    assert settings(*expand([template])).model.prompt_template == "{prompt}\n>"
    typed = expand(["method=grpo", r"model.prompt_template=choice('{prompt}\n>','{prompt}>')", r"data.wording=a\nb"])
    assert typed[2] == r"data.wording=a\nb"  # no text that a model reads
    with composer() as compose:
        jobs, _ = planned(compose([]), typed[:2], tmp_path, compose)
    assert [job.plain["model"]["prompt_template"] for job in jobs] == ["{prompt}\n>", "{prompt}>"]


def test_a_user_without_a_home_and_a_name_that_no_disk_holds(tmp_path):
    for path in ("~nobody-of-that-name/x", LONG, f"{tmp_path}/{LONG}", "a\0b"):
        assert existing(path) is None
        assert local_folder(path) is None
    assert existing(str(tmp_path)) == tmp_path
    assert "model.path: expected a folder or a hub id" in forked("run", [*SMALL, f"model.path={LONG}"], tmp_path).stderr


def test_messages():
    assert shown("a") == "'a'"
    assert shown(LONG) == f"'{'A' * 79}... (5002 characters)"
    assert brief("one\ntwo") == "one\ntwo"
    assert brief("a\nb\n\nc\nd") == "a b c d"
    assert len(brief(LONG)) <= MOST
    assert brief(f"key: {LONG} remedy.").endswith("remedy.")
    assert ungrammatical("x") == "'x': expected KEY=VALUE."
    assert read_back("[1,") is None
    assert written("a") == "a"
    with pytest.raises(UserError, match=r"^seed: expected a value"):
        parsed(["seed=("])
