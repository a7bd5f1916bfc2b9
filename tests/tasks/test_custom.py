"""A data set and a verifier from outside the package, by import path, through the command line."""

from __future__ import annotations

import json

from tests.forked import forked

MODULE = '''
from dataclasses import dataclass, field

from rlrt.keys import key
from rlrt.types import Grade, Prompt


@dataclass
class Mine:
    """Write the first number back."""

    size: int = key("how many problems", least=1)
    train: list = field(default_factory=list, init=False)
    heldout: list = field(default_factory=list, init=False)

    def prepare(self):
        made = [Prompt(str(i), f"{i}:3 4 5", str(i)) for i in range(1, self.size + 5)]
        self.train, self.heldout = made[:-4], made[-4:]

    def grade(self, prompt, text):
        good = prompt.answer in text
        return Grade(good, float(good))

    def canonical(self, prompt, text):
        return text


def equal(expected, response):
    return expected in response
'''
SMALL = ("train.steps=1", "train.prompts_per_step=4", "train.eval_every=0", "eval.prompts=4", "tracking=none")


def run(folder, *words):
    (folder / "my_tasks.py").write_text(MODULE)
    return forked("run", (*SMALL, "hydra.run.dir=out", *words), folder)


def test_a_class_of_ones_own(tmp_path):
    done = run(tmp_path, "data=custom", "data._target_=my_tasks.Mine", "+data.size=8")
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["reward/mean"] <= 1


def test_its_keys_are_checked_like_all_others(tmp_path):
    done = run(tmp_path, "data=custom", "data._target_=my_tasks.Mine", "+data.size=0")
    assert done.returncode == 2
    assert "data.size: expected a number of at least 1, got 0" in done.stderr
    done = run(tmp_path, "data=custom", "data._target_=my_tasks.Mine", "+data.sise=3")
    assert "data.sise: there is no such key" in done.stderr
    assert "Did you mean 'data.size'" in done.stderr


def test_a_function_of_ones_own_as_verifier_in_a_killable_process(tmp_path):
    rows = [{"prompt": f"{i}:3 4 5", "answer": str(i)} for i in range(7, 27)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = run(tmp_path, "data=file", "data.path=a.jsonl", "data.verifier=my_tasks.equal", "data.verifier_workers=1")
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["reward/mean"] <= 1
    assert last["reward/verifier_error_share"] == 0


def test_a_verifier_that_is_not_there_is_one_sentence(tmp_path):
    rows = [{"prompt": f"{i}:3 4 5", "answer": str(i)} for i in range(7, 27)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = run(tmp_path, "data=file", "data.path=a.jsonl", "data.verifier=my_tasks.equals")
    assert done.returncode == 2
    assert "expected exact, math or the import path of a function" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
