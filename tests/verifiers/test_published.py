"""Every published answer equals itself, in usual dress too, and no other answer of its file.

The files are not part of the package; the environment variable ``RLRT_PUBLISHED`` names their folder.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from rlrt.verifiers.answers import boxed
from rlrt.verifiers.forms import form_of
from tests.verifiers.test_pairs import judged

FOLDER = Path(os.environ.get("RLRT_PUBLISHED", "published"))
FILES = {
    "aime24": lambda row: str(row["answer"]),
    "amc23": lambda row: str(row["answer"]),
    "gsm8k_test": lambda row: row["answer"].rpartition("####")[2].strip(),
    "gsm8k_train": lambda row: row["answer"].rpartition("####")[2].strip(),
    "mawps_addsub": lambda row: str(row["target"]),
    "mawps_multiarith": lambda row: str(row["target"]),
    "mawps_singleop": lambda row: str(row["target"]),
    "minerva_math": lambda row: boxed(row["solution"]),
    "svamp": lambda row: str(row["Answer"]),
}


@pytest.mark.parametrize("name", FILES)
def test_published_answers(name):
    file = FOLDER / f"{name}.jsonl"
    if not file.is_file():
        pytest.skip(f"there is no {file.name}; name its folder in RLRT_PUBLISHED")
    answers = [FILES[name](json.loads(line)) for line in file.read_text(encoding="utf-8").split("\n") if line]
    assert len(answers) >= 30
    for answer in dict.fromkeys(answers):
        for text in (answer, f"${answer}$", f"{answer}.", f" {answer} ", f"\\displaystyle {answer}"):
            assert judged(answer, f"So \\boxed{{{text}}}."), (answer, text)
        assert judged(answer, f"\\fbox{{{answer}}}"), answer
    numbers = [a for a in dict.fromkeys(answers) if form_of(a).number is not None]
    assert len(numbers) >= 0.9 * len(set(answers)) or name == "minerva_math"
    for one, other in pairwise(numbers):
        equal = form_of(one).number.value == form_of(other).number.value
        assert judged(one, f"\\boxed{{{other}}}") is equal, (one, other)
