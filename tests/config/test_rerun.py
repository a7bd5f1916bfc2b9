from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.config.overrides import grammar
from rlrt.config.rerun import expand
from rlrt.errors import UserError
from rlrt.execution.execute import execute
from rlrt.records.identity import identity
from tests.forked import forked

SMALL = ("train.steps=2", "train.prompts_per_step=2", "eval.prompts=4", "train.eval_every=0", "tracking=none")
TYPED = ("method=rlrt", "method.lambda_init=0.3", "teacher.template='{prompt}|it\\'s {solution}'", "seed=3", *SMALL)


def config(overrides):
    return OmegaConf.to_container(composed(overrides), resolve=True)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "mine"
    execute(load(composed(TYPED), overrides=TYPED), folder, lambda line: None, lambda: False)
    return folder


@pytest.fixture
def stored(tmp_cwd, once):
    return Path(shutil.copytree(once, tmp_cwd / "outputs" / "runs" / "mine"))


@pytest.mark.parametrize("name", ["mine", "outputs/runs/mine"])
def test_a_stored_config_again(stored, name):
    again = expand([f"+from={name}"])
    assert identity(config(again)) == identity(config(TYPED))


def test_defaults_that_changed_since_do_not_change_the_rerun(stored):
    file = stored / "config.yaml"
    plain = OmegaConf.to_container(OmegaConf.load(file))
    plain["train"]["beta2"], plain["engine"]["max_new_tokens"] = 0.5, 31  # as if these had been the defaults then
    plain["teacher"]["template"] = "a'b\\'c\n{prompt}{solution}\\"
    file.write_text(OmegaConf.to_yaml(plain))
    again = config(expand([f"+from={stored}", "train.beta2=0.7"]))
    assert again["engine"]["max_new_tokens"] == 31
    assert again["train"]["beta2"] == 0.7  # typed
    assert again["method"]["lambda_init"] == 0.3
    assert again["teacher"]["template"] == plain["teacher"]["template"]


def test_another_method_takes_its_own_keys(stored):
    again = config(expand([f"+from={stored}", "method=grpo", "seed=4"]))
    assert (again["method"]["name"], again["seed"], again["train"]["steps"]) == ("grpo", 4, 2)
    assert "lambda_init" not in again["method"]


def test_a_study_is_left_out_and_its_values_kept(stored):
    papers = json.loads((stored / "manifest.json").read_text())
    papers["overrides"].append("+sweep=optuna_rlrt")
    (stored / "manifest.json").write_text(json.dumps(papers))
    assert not any(a.startswith("+sweep") for a in expand([f"+from={stored}"]))


def test_nothing_to_rerun_is_one_sentence(stored):
    for bad in ("nowhere", "outputs", "*"):
        if bad == "*":
            (stored.parent / "other").mkdir()
            for name in ("config.yaml", "manifest.json"):
                (stored.parent / "other" / name).write_text("{}")
        with pytest.raises(UserError, match=r"expected the folder of one run"):
            expand([f"+from={bad}"])
    with pytest.raises(UserError, match="expected one run, got 2"):
        expand(["+from=a", "+from=b"])


def test_the_command_and_a_sweep_over_it(stored, tmp_cwd):
    done = forked("run", ("+from=mine", "seed=9", *SMALL), tmp_cwd)
    assert done.returncode == 0, done.stderr
    assert "finished after 2 steps" in done.stdout
    done = forked("run", ("-m", "+from=mine", "seed=7,8", "--cfg", "job"), tmp_cwd)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lambda_init: 0.3") == 2
    done = forked("run", ["+from=nowhere"], tmp_cwd)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1)


def test_text_survives_the_grammar():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parse = OverridesParser.create().parse_override
    texts = ["a", "a'b", "a\\", "a\\'b", "{x}>", "a\nb", "", "null", "1", "\\n", "a\\\\'"]
    texts += ["${x}", "a${oc.env:HOME}b", "\\${x}", "\\\\${x}", "${", "$x", "'${x}'", "${a}${b}"]
    for text in texts:
        made = config([f"model.prompt_template={grammar(text)}"])
        assert made["model"]["prompt_template"] == text
    (made,) = [
        config([f"++eval.suites={grammar({'a': {'path': '${x}', 'n': 1, 'list': ['x', None]}})}"])["eval"]["suites"]
    ]
    assert made == {"a": {"path": "${x}", "n": 1, "list": ["x", None]}}
    for value in (1e-05, True, None, 3):
        assert parse(f"k={grammar(value)}").value() == value


def test_a_path_with_signs_of_hydras_grammar_needs_no_quotes(tmp_cwd):
    """A run's folder is a model: model.path=RUN, as typed."""
    from rlrt.config.compose import composed

    folder = tmp_cwd / "method=rlrt,seed=0-abc (1)"
    folder.mkdir()
    (typed,) = expand([f"model.path={folder}"])
    assert composed([typed]).model.path == str(folder)
    assert expand(["model.path=a,b", "seed=0,1", f"train.lr={folder}", "-m"]) == [
        "model.path=a,b",
        "seed=0,1",
        f"train.lr={folder}",
        "-m",
    ]
    assert expand([f"data.path='{folder}'"]) == [f"data.path='{folder}'"]


MORE = (
    "train.prompts_per_step=2",
    "train.rollouts_per_prompt=2",
    "eval.prompts=2",
    "eval.samples_per_prompt=1",
    "tracking=none",
)


def ended(words, folder, said=None):
    """The summary of a run in this process."""
    say = [] if said is None else said
    return execute(load(composed(words), overrides=words), folder, say.append, lambda: False)


def numbers(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "eval/"))} for row in rows]


def test_a_finished_run_goes_on_for_more_steps_to_the_bit(tmp_cwd):
    ended(["method=rlrt", "train.steps=2", *MORE], Path("short"))
    ended(["method=rlrt", "train.steps=4", *MORE], Path("whole"))
    said = []
    ended(expand(["+from=short", "train.steps=4", "tracking=none"]), Path("more"), said)
    assert said[0] == f"Going on from {Path('short').resolve()}/checkpoints/step_2"
    assert numbers(Path("more")) == numbers(Path("whole"))
    weights = [Path(name, "checkpoints/step_4/model.safetensors").read_bytes() for name in ("more", "whole")]
    assert weights[0] == weights[1]
    manifest = json.loads(Path("more/manifest.json").read_text())
    assert manifest["origin"]["step"] == 2
    assert manifest["identity"] == json.loads(Path("whole/manifest.json").read_text())["identity"]
    assert len(numbers(Path("short"))) == 3  # steps 0 to 2: the origin stays as it was


@pytest.mark.parametrize(
    ("made", "typed", "says"),
    [
        ((), ("seed=8",), None),  # another run: nothing to say
        ((), ("origin=null",), None),
        (("train.lr_schedule=linear",), (), "its learning rate fell towards its end"),
        (("state",), (), "it has not finished"),
        (("identity",), (), "the code, a library, or the content of the model or the data has changed"),
        (("checkpoint",), (), "it has no good checkpoint of step 1"),
        (("config",), (), "cannot be read as a run's config"),
    ],
)
def test_what_is_not_gone_on_with_starts_at_step_0_and_says_why(tmp_cwd, caplog, made, typed, says):
    overrides = [o for o in made if "=" in o]
    ended(["method=grpo", "train.steps=1", *overrides, *MORE], Path("short"))
    words = expand(["+from=short", "train.steps=2", "tracking=none", *typed])
    if "checkpoint" in made:
        (Path("short") / "checkpoints" / "step_1" / "model.safetensors").write_bytes(b"")
    if "config" in made:
        (Path("short") / "config.yaml").write_text("- 1")
    for name, file, value in (("state", "summary.json", "interrupted"), ("identity", "manifest.json", "0" * 12)):
        if name in made:
            path = Path("short") / file
            path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    said = []
    with caplog.at_level("WARNING", "rlrt"):
        ended(words, Path("more"), said)
    assert not any(line.startswith("Going on") for line in said)
    assert "origin" not in json.loads(Path("more/manifest.json").read_text())
    warned = [r.message for r in caplog.records if r.message.startswith("origin:")]
    assert (warned == []) if says is None else (says in warned[0] and "starts at step 0" in warned[0])
