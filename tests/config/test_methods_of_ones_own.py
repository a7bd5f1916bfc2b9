"""What a method from outside may name: keys, teacher contexts, an ancestor's tuned values. Each is right or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

import rlrt.config.compose
import rlrt.config.options
from rlrt.config.compose import composer, with_tuned
from rlrt.config.options import inherited, options_with_key
from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.methods.contexts import Default, Sibling, context_of
from rlrt.methods.grpo import ClippedLoss
from rlrt.methods.method import Credit
from rlrt.paths import CONFIG
from tests.forked import forked
from tests.helpers import METHODS, MODELS, settings

HERE = "tests.config.test_methods_of_ones_own"


@dataclass
class Steps(Credit):
    """A credit with keys that are named as keys of ``train``."""

    steps: int = key("steps of its own", "steps", least=1)
    lr: float = key("a rate of its own", above=0)


@dataclass
class Bounds(ClippedLoss):
    """A loss derived from GRPO's, with one key more."""

    softness: float = key("of the bounds", least=0)


@dataclass
class NoSuch(ClippedLoss):
    """A loss that wants a key of ``train`` that is not there."""

    train_keys = ("clip_low", "clip_high", "clip_middle")


def test_a_key_named_like_one_of_train_is_the_methods_own():
    made = settings(
        "method=grpo", f"method.credit={HERE}.Steps", "+method.steps=5", "+method.lr=0.25", "train.steps=150"
    )
    assert (made.method.credit.steps, made.method.credit.lr) == (5, 0.25)
    with pytest.raises(UserError, match=r"method\.steps: this key has no value"):
        settings("method=grpo", f"method.credit={HERE}.Steps", "+method.lr=0.25")
    with pytest.raises(UserError, match=r"method\.steps: expected a number of at least 1, got 0"):
        settings("method=grpo", f"method.credit={HERE}.Steps", "+method.lr=0.25", "+method.steps=0")


def test_a_loss_derived_from_grpos_keeps_its_bounds_in_train():
    made = settings("method=grpo", f"method.policy_loss={HERE}.Bounds", "+method.softness=2", "train.clip_low=0.1")
    assert (made.method.policy_loss.clip_low, made.method.policy_loss.softness) == (0.1, 2.0)
    with pytest.raises(UserError, match=r"method\.clip_low: there is no such key"):
        settings("method=grpo", "+method.clip_low=0.1")
    with pytest.raises(UserError, match=r"NoSuch takes 'clip_middle' from train, which has no such key"):
        settings("method=grpo", f"method.policy_loss={HERE}.NoSuch")


@dataclass
class Asked(Credit):
    """A credit whose contexts a test chooses."""

    asked: ClassVar[object] = ("default",)

    def contexts(self):
        return self.asked


NONE = ["refrence", "wrong:x", "correct:-1", "Correct", "wrong: 1", "correct:1:2", "", None, 3, "default "]


@pytest.mark.parametrize("asked", [*([x] for x in NONE), ["default", "wrong:x"], [], "default"])
def test_a_teacher_context_that_nobody_can_show_is_refused_at_once(monkeypatch, asked):
    monkeypatch.setattr(Asked, "asked", asked)
    with pytest.raises(UserError, match=r"method\.credit: Asked") as caught:
        settings("method=grpo", f"method.credit={HERE}.Asked")
    assert "\n" not in str(caught.value)


def test_contexts_that_there_are(monkeypatch):
    monkeypatch.setattr(Asked, "asked", ("default", "correct", "correct:0", "wrong", "wrong:12"))
    settings("method=grpo", f"method.credit={HERE}.Asked")
    assert [context_of(c) for c in Asked.asked] == [
        Default(),
        Sibling(),
        Sibling(correct=True, number=0),
        Sibling(correct=False),
        Sibling(correct=False, number=12),
    ]


def test_a_dense_term_beside_a_credit_that_shows_something_else_first(monkeypatch):
    """Both would be shown the credit's first context, whatever teacher.context says."""
    more = ("+method.distill_alpha=0.5", "+method.distill_top_k=0", "+method.distill_ratio_cap=2")
    with pytest.raises(UserError, match=r"dense .* would be shown Sibling\(share=1.0, correct=True"):
        settings("method=rlcsd", "method.auxiliary=[rlrt.methods.sdpo.Distillation]", *more)


# an ancestor's tuned pair


def derived(parent, name):
    return f"# @package _global_\ndefaults:\n  - {parent}\n  - _self_\nmethod:\n  name: {name}\n"


CHILD, GRANDCHILD = derived("rlrt", "child"), derived("child", "grandchild")
TYPED = (
    "--config-dir", "mine", "method=child", "train.steps=1", "train.prompts_per_step=2", "train.eval_every=0", "eval.prompts=2",
    "tracking=none",
)  # fmt: skip


def folder(tmp_path, **files):
    """A config folder with these methods (and ``tuned__...`` files)."""
    for name, text in files.items():
        group, _, option = name.partition("__")
        file = tmp_path / "mine" / group / f"{option}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "mine"


def epsilon(mine, *overrides):
    with composer([str(mine)]) as compose:
        return compose(overrides).method.epsilon_w


def test_a_method_derived_from_rlrt_has_rlrts_tuned_values(tmp_path, capsys):
    mine = folder(
        tmp_path,
        method__child=CHILD,
        method__grandchild=GRANDCHILD,
    )
    assert epsilon(mine, "method=rlrt") == epsilon(mine, "method=child") == epsilon(mine, "method=grandchild") == 0.2
    said = capsys.readouterr().err
    assert (
        "method=child has no tuned values of its own for model=tiny and takes those of rlrt: method.epsilon_w=0.2"
        in said
    )
    assert epsilon(mine, "method=child", "model=qwen3_4b_instruct") == 0.5
    assert epsilon(mine, "method=child", "model=qwen3_4b_base") == 1.0  # rlrt has no pair there


def test_what_the_child_or_the_command_line_sets_stays(tmp_path):
    own = CHILD + "  epsilon_w: 0.7\n"
    mine = folder(tmp_path, method__child=own, method__grandchild=GRANDCHILD)
    assert epsilon(mine, "method=child") == epsilon(mine, "method=grandchild") == 0.7
    assert epsilon(mine, "method=child", "method.epsilon_w=0.9") == 0.9


def test_a_pair_of_the_childs_own_goes_first(tmp_path, capsys):
    mine = folder(
        tmp_path,
        method__child=CHILD,
        tuned__tiny_child="method:\n  lambda_init: 0.3\n",
    )
    assert epsilon(mine, "method=child") == 1.0
    assert capsys.readouterr().err == ""


def test_an_abstract_parent_and_several_of_them(tmp_path):
    both = "# @package _global_\ndefaults:\n  - /method/rlrt\n  - _mixin\n  - _self_\nmethod:\n  name: child\n"
    mine = folder(tmp_path, method__child=both, method___mixin="# @package _global_\nmethod:\n  lambda_init: 0.4\n")
    assert epsilon(mine, "method=child") == 0.2


PARENTS = [
    "/method/rlrt",
    "rlrt.yaml",
    "../method/rlrt",
    "rlrt@_here_",
    "/method/rlrt@_global_",
    "{/method@_global_: rlrt}",
]


@pytest.mark.parametrize("parent", PARENTS)
def test_every_spelling_of_a_parent(tmp_path, parent):
    mine = folder(tmp_path, method__child=derived(parent, "child"))
    if "_here_" in parent or parent.startswith("/method/rlrt@"):  # what such a spelling means is Hydra's business
        assert inherited("tiny", "child", [CONFIG, mine])[0] == "rlrt"
    else:
        assert epsilon(mine, "method=child") == 0.2


@pytest.mark.parametrize("typed", ["method='child'", 'method="child"', "method=child"])
def test_every_spelling_of_a_choice(tmp_path, typed):
    mine = folder(tmp_path, method__child=CHILD)
    assert "tuned@_global_=tiny_rlrt" in with_tuned(["--config-dir", str(mine), typed])
    assert epsilon(mine, typed) == 0.2


def test_what_stands_after_the_pair_stands_after_the_inherited_one_too(tmp_path):
    """A group of one's own that is added, and a pair that is taken away: the child is as its ancestor."""
    later = "# @package _global_\nmethod:\n  epsilon_w: 0.9\n"
    mine = folder(tmp_path, method__child=CHILD, extra__hi=later)
    for more, value in (("+extra=hi", 0.9), ("~tuned@_global_", 1.0)):
        assert epsilon(mine, "method=rlrt", more) == epsilon(mine, "method=child", more) == value


def test_an_experiment_of_ones_own_that_derives_from_another(tmp_path):
    first = "# @package _global_\ndefaults:\n  - override /method: child\n"
    second = "# @package _global_\ndefaults:\n  - /experiment/first\n"
    mine = folder(tmp_path, method__child=CHILD, experiment__first=first, experiment__second=second)
    assert epsilon(mine, "experiment=second") == 0.2
    assert "tuned@_global_=tiny_rlrt" in with_tuned([f"--config-dir={mine}", "experiment=second"])


def test_a_method_that_names_itself_is_one_sentence(tmp_path):
    folder(
        tmp_path,
        method__child="# @package _global_\ndefaults:\n  - /method: rlrt\n  - _self_\nmethod:\n  name: child\n",
    )
    for words in (TYPED, ("-m", *TYPED, "seed=0,1")):
        done = forked("run", words, tmp_path)
        assert done.returncode == 2, done.stderr[-300:]
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_shipped_pairs_inherit_nothing():
    """Each has its own file, or its YAML sets what its ancestor's pair sets: no figure of the past changes."""
    assert not any(inherited(model, method)[1] for model in MODELS for method in METHODS)


def test_a_single_run_gets_them_too_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(rlrt.config.compose, "_announced", set())  # a fork remembers what this process has said
    folder(tmp_path, method__child=CHILD)
    done = forked("run", (*TYPED, "hydra.run.dir=out"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "takes those of rlrt: method.epsilon_w=0.2" in done.stderr
    assert "epsilon_w: 0.2" in (tmp_path / "out" / "config.yaml").read_text()
    swept = forked("run", ("-m", *TYPED, "seed=0,1", "--cfg", "job"), tmp_path)
    assert swept.stdout.count("epsilon_w: 0.2") == 2, swept.stderr
    assert swept.stderr.count("takes those of rlrt") == 1


def test_the_single_runs_command_line(tmp_path):
    mine = folder(tmp_path, method__child=CHILD)
    words = ["--config-dir", str(mine), "method=child", "seed=1"]
    assert with_tuned(words) == [*words[:2], "tuned@_global_=tiny_rlrt", *words[2:]]
    assert with_tuned([*words, "~tuned@_global_"]) == [*words, "~tuned@_global_"]
    untuned = [f"--config-dir={mine}", "method=child", "model=qwen3_4b_base"]
    assert with_tuned(untuned) == untuned
    assert with_tuned(["seed=1"]) == ["seed=1"]


def test_a_run_of_ones_own_config_groups_is_read_again_with_them(tmp_path):
    """evaluate, preflight and +from= take the folder; without it they take the stored values of its sections."""
    folder(tmp_path, method__child=CHILD, extra__hi="# @package _global_\nmethod:\n  epsilon_w: 0.9\n")
    done = forked("run", (*TYPED, "hydra.run.dir=out"), tmp_path)
    assert done.returncode == 0, done.stderr
    for more in ((), ("--config-dir", "mine")):
        done = forked("evaluate", ["out", *more], tmp_path)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "evaluations").iterdir())) == 1  # both evaluated one config
    done = forked("run", ("+from=out", "seed=5", "hydra.run.dir=alone"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "name: child" in (tmp_path / "alone" / "config.yaml").read_text()
    done = forked("run", ("--config-dir", "mine", "+from=out", "seed=5", "hydra.run.dir=again"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epsilon_w: 0.2" in (tmp_path / "again" / "config.yaml").read_text()
    swept = forked("run", ("-m", *TYPED, "+extra=hi", "seed=0,1", "--cfg", "job"), tmp_path)
    assert swept.stdout.count("epsilon_w: 0.9") == 2, swept.stderr  # a group of one's own is a group under -m too


# a key that another option has


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["method=grpo", "+method.lambda_init=0.3"],
            "method.lambda_init: method grpo has no such key; rlrt and rlsd have.",
        ),
        (["method=sd", "+method.entropy_coef=1"], "method.entropy_coef: method sd has no such key; entropy has."),
        (["+engine.url=x"], "engine.url: engine HfEngine has no such key; vllm_server has."),
        (["+data.heldout_share=.1"], "data.heldout_share: data Countdown has no such key; "),
        (["method=grpo", "+method.lambda_int=0.3"], "method.lambda_int: there is no such key."),
    ],
)
def test_a_key_of_another_option_says_whose_it_is(overrides, says):
    with pytest.raises(UserError) as caught:
        settings(*overrides)
    assert str(caught.value).startswith(says)


def test_every_option_of_every_key_is_found_by_composing_too():
    """Against the composed configs: what the files say is what Hydra makes of them."""
    composed = {name: set(settings(f"method={name}").plain["method"]) for name in METHODS}
    for name in sorted({k for keys in composed.values() for k in keys}):
        assert options_with_key("method", name) == [m for m in METHODS if name in composed[m]], name
    assert rlrt.config.options.options_with_key("method", "name", (CONFIG,)) == METHODS
