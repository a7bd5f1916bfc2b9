"""``rlrt.preflight --teacher``: templates side by side on the embedded model."""

from __future__ import annotations

import re

import pytest

from rlrt.preflight.__main__ import main

FEW = ("--teacher", "tracking=none", "train.rollouts_per_prompt=4")


def row(text: str, name: str) -> list[str]:
    """The cells of a row of the table."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name}  "))
    return re.split(r"\s{2,}", line)


def test_templates_in_one_table(tmp_cwd, capsys):
    """The embedded model reads its own template, and none that is made of words; 12 prompts are more than two steps have."""
    more = ("teacher.context=reference", "teacher.probe_prompts=12", "train.prompts_per_step=2")
    assert main([*FEW, *more]) == 0
    said = capsys.readouterr().out
    assert "12 prompts x 4 rollouts of embedded; method rlrt, teacher.context=reference" in said
    own, foreign = row(said, "teacher.template"), row(said, "instruction last")
    assert own[1] == foreign[1]
    assert 0.8 < float(own[1]) < 1  # a context for every rollout but those that are the reference word for word
    assert own[4] == foreign[4]  # the same rollouts
    assert float(own[3]) > float(own[4]) + 0.2
    assert float(foreign[3]) < float(foreign[4])
    assert (own[-1], foreign[-1]) == ("yes", "worse")
    assert "instruction last: '{prompt}\\nCorrect solution:" in said
    assert not re.search(r"^bar ", said, re.MULTILINE)  # it is the run's own here
    assert "warning" not in said
    assert said.endswith("nothing was trained\n")
    assert not list(tmp_cwd.iterdir())


def test_a_template_that_hurts_is_warned_of_and_one_that_is_refused_is_named(tmp_cwd, capsys):
    """A prompt without an end of its own: student and teacher then end alike only where the question stands last."""
    own = 'teacher.template="Solution: {solution} {prompt}"'
    assert (
        main([*FEW, "teacher.probe_prompts=8", own, 'model.prompt_template="{prompt}"', "teacher.context=reference"])
        == 0
    )
    said = capsys.readouterr().out
    assert row(said, "bar")[1:3] == ["refused", "-"]
    assert re.search(
        r"^bar: .*: teacher\.template: the teacher's prompt for problem .* both must end alike", said, re.MULTILINE
    )
    assert len(row(said, "question last")) == 9
    assert re.search(r"^warning teacher: ", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["method=grpo"], "method grpo shows no teacher anything that should help"),
        (["-m", "seed=0,1"], "--teacher looks at one run"),
        (["teacher.probe_prompts=0"], "teacher.probe_prompts: --teacher asks at least one prompt"),
    ],
)
def test_what_it_cannot_look_at(tmp_cwd, capsys, words, sentence):
    assert main(["--teacher", "tracking=none", *words]) == 2
    assert sentence in capsys.readouterr().err
