"""Methods, engines and data sets of one's own, by the documentation alone: files and commands are taken as they are printed."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlrt.engines import engine
from rlrt.tasks import base
from tests.conftest import ROOT
from tests.forked import forked

SMALL = (
    "train.steps=1",
    "train.prompts_per_step=2",
    "train.rollouts_per_prompt=2",
    "train.eval_every=0",
    "eval.prompts=2",
    "tracking=none",
)
ENGINE, DATA, METHOD = (
    ("engines.md", "## An engine of one's own"),
    ("data.md", "## A data set of one's own"),
    ("methods.md", "## How to add a method"),
)
FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\b")


@dataclass
class Printed:
    """A section of a page.

    Attributes:
        text: all of it.
        files: the text of every file that it shows, by the path in the comment above the text.
        commands: its command lines (module, what is typed).
    """

    text: str
    files: dict[str, str] = field(default_factory=dict)
    commands: list[tuple[str, list[str]]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        for path, text in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return folder


def printed(page: str, heading: str) -> Printed:
    text = (ROOT / "docs" / page).read_text()
    made = Printed(re.split(r"\n(?=## )", text[text.index(heading) :])[0])
    file = None
    for line in made.text.splitlines():
        code = line.removeprefix("    ")
        if line and code == line:
            file = None  # prose
        elif match := FILE.match(code):
            file = match[1]
            made.files[file] = ""
        elif command := re.match(r"python -m rlrt\.(\w+) (.*)", code):
            file = None
            made.commands.append((command[1], shlex.split(command[2])))
        elif file is not None:
            made.files[file] += code + "\n"
    return made


COMMANDS = [(s, n) for s in (ENGINE, DATA, METHOD) for n in range(len(printed(*s).commands)) if (s, n) != (ENGINE, 0)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder for each section, with the files that the section shows."""
    return {s: printed(*s).write(tmp_path_factory.mktemp(s[0].removesuffix(".md"))) for s in (ENGINE, DATA, METHOD)}


def test_what_is_printed_is_found():
    assert [[*printed(*section).files] for section in (ENGINE, DATA, METHOD)] == [
        ["my_engines.py", "my_conf/engine/mine.yaml"],
        ["my_tasks.py", "my_conf/data/mine.yaml"],
        ["my_methods.py", "my_conf/method/mine.yaml", "my_gate.py", "my_conf/method/outside.yaml"],
    ]
    assert [section[0] for section, _ in COMMANDS] == ["engines.md"] * 2 + ["data.md"] * 6 + ["methods.md"] * 2


@pytest.fixture(scope="module")
def finished(places):
    """Runs of the engine and of the data set, by the first command of each page."""
    for section in (ENGINE, DATA):
        module, typed = printed(*section).commands[0]
        done = forked(module, [*typed, *SMALL, "hydra.run.dir=RUN"], places[section])
        assert done.returncode == 0, done.stderr
    return places


@pytest.mark.parametrize(("section", "number"), COMMANDS, ids=[f"{s[0]}-{n}" for s, n in COMMANDS])
def test_a_command_as_it_is_printed(section, number, finished):
    module, typed = printed(*section).commands[number]
    if module == "evaluate":
        typed = [typed[0], "eval.prompts=2", *typed[1:]]  # overrides stand before options
    else:
        typed += SMALL
    done = forked(module, typed, finished[section])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_engine_draws_what_the_shipped_one_draws(finished):
    """As docs/engines.md says, token by token."""
    done = forked("run", ["engine=hf", *SMALL, "hydra.run.dir=hf"], finished[ENGINE])
    assert done.returncode == 0, done.stderr
    mine, hf = (
        re.findall(r'"token_ids": (\[[^]]*\])', (finished[ENGINE] / name / "samples.jsonl").read_text())
        for name in ("RUN", "hf")
    )
    assert mine
    assert mine == hf


MISTAKES = {
    ENGINE: [
        ("my_engines.py", ("def sample(", "def draw("), []),
        ("my_engines.py", ("    max_new_tokens: int", "    longest: int"), []),
        ("my_engines.py", ("@dataclass\n", ""), []),
        (None, None, ["engine._target_=my_engine.OneByOne"]),
        ("my_conf/engine/mine.yaml", ("temperature: 1.0", "temperature: ???"), []),
        (None, None, ["engine.temperature=0"]),
        (None, None, ["train.sample_ahead=true"]),
    ],
    DATA: [
        ("my_tasks.py", ("def grade(", "def judge("), []),
        ("my_tasks.py", ("@dataclass\n", ""), []),
        (None, None, ["+data.hihgest=9"]),
        ("my_tasks.py", ('id=f"{a}+{b}+{c}"', "id=str(total)"), []),
        (None, None, ["data.highest=3", "train.prompts_per_step=16"]),
        ("my_tasks.py", ("        solution=", "        # solution="), ["method=opsd"]),
    ],
}
"""How to make each mistake of the pages' tables: (a file, what is replaced in it by what, what is typed)."""
ROWS = [(section, n) for section, mistakes in MISTAKES.items() for n in range(len(mistakes))]


def sentences(page: str) -> list[str]:
    """What the page's table of mistakes says that rlrt says, as far as it is written out."""
    table = (ROOT / "docs" / page).read_text().split("| mistake | rlrt says |\n")[1].split("\n\n")[0]
    return [row.rsplit("| `", 1)[1].removesuffix("` |").split("...")[0] for row in table.splitlines()[1:]]


@pytest.mark.parametrize("section", MISTAKES, ids=[s[0] for s in MISTAKES])
def test_every_mistake_of_a_table_is_tried(section):
    assert len(sentences(section[0])) == len(MISTAKES[section])


@pytest.mark.parametrize(("section", "number"), ROWS, ids=[f"{s[0]}-{n}" for s, n in ROWS])
def test_a_mistake_is_answered_as_the_page_says(section, number, tmp_path):
    file, change, typed = MISTAKES[section][number]
    made = printed(*section)
    if file is not None:
        assert change[0] in made.files[file]
        made.files[file] = made.files[file].replace(*change)
    group = "engine" if section is ENGINE else "data"
    small = [word for word in SMALL if word.split("=")[0] not in {w.split("=")[0] for w in typed}]
    done = forked("run", ["--config-dir", "my_conf", f"{group}=mine", *small, *typed], made.write(tmp_path))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {sentences(section[0])[number]}")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("group", "name"), [*(("engine", n) for n in engine.REQUIRED), *(("data", n) for n in base.REQUIRED)]
)
def test_a_required_part_that_is_missing_is_named(group, name, tmp_path):
    made = printed(*{"engine": ENGINE, "data": DATA}[group])
    (file,) = [f for f in made.files if f.endswith(".py")]
    made.files[file] = re.sub(rf"^    (def )?{name}\b", rf"    \1not_{name}", made.files[file], flags=re.MULTILINE)
    done = forked("run", ["--config-dir", "my_conf", f"{group}=mine", *SMALL], made.write(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert re.fullmatch(rf"error: {group}\._target_: \w+\.\w+ cannot be used here: it has no {name}\.\n", done.stderr)
