"""Model folders: a small model in the hub's format with one or two of its files changed, damaged or taken away."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz.judge import Case
from tests.fuzz.overrides import SMALL
from tests.hub import model_folder

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 10**9, 1.5, "", "x", "../x", "/etc/passwd", "auto", [], [0], [2, 900], {}, {"a": 1}, "nan",
)  # fmt: skip
TEMPLATES = (
    "", "{% for", "{{ messages }}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}", "{{ messages[0]['content'] }}", "{{ x }}", 3,
    None, [],
)  # fmt: skip
NAMED = ("chat_template", "bos_token", "eos_token", "tokenizer_class")
INDICES: tuple[Any, ...] = (
    {}, {"weight_map": {"a": "../b.safetensors"}}, {"weight_map": {"a": "no.safetensors"}}, [], {"weight_map": 3},
)  # fmt: skip
Change = Callable[[Path], None]


@cache
def template() -> Path:
    """The model's folder, made once."""
    return model_folder(Path(tempfile.mkdtemp(prefix="fuzz-model")) / "m", "hybrid")


def edited(file: str, edit: Callable[[dict[str, Any]], Any]) -> Change:
    """Edit what a JSON file holds; one that an earlier harm took away or damaged stays as it is."""

    def change(folder: Path) -> None:
        path = folder / file
        with contextlib.suppress(OSError, ValueError):
            values = json.loads(path.read_text())
            edit(values)
            path.write_text(json.dumps(values))

    return change


def entry(file: str, key: str, value: Any) -> Change:
    """Set a key of a JSON file."""
    return edited(file, lambda values: values.__setitem__(key, value))


def bytes_of(file: str, cut: float, byte: int | None) -> Change:
    """Cut a file, or change one byte, at a part of its length."""

    def change(folder: Path) -> None:
        path = folder / file
        if path.exists() and (content := path.read_bytes()):
            place = int(cut * (len(content) - 1))
            path.write_bytes(
                content[:place] if byte is None else content[:place] + bytes([byte]) + content[place + 1 :]
            )

    return change


def gone(file: str) -> Change:
    """Take a file away."""
    return lambda folder: (folder / file).unlink(missing_ok=True)


def index(value: Any) -> Change:
    """Put an index of shards beside the weights."""
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps(value))


def renumbered(by: int) -> Change:
    """Shift the ids of a tokenizer's vocabulary."""

    def shift(values: dict[str, Any]) -> None:
        values["model"]["vocab"] = {token: i + by for token, i in values["model"]["vocab"].items()}

    return edited("tokenizer.json", shift)


def change(random_: random.Random) -> Change:
    """One of many harms, or none that matters."""
    files = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")
    config = json.loads((template() / "config.json").read_text())
    way = random_.randint(0, 8)
    if way <= 2:
        return entry("config.json", random_.choice(sorted(config)), random_.choice(ODD))
    if way == 3:
        return entry("generation_config.json", "eos_token_id", random_.choice(ODD))
    if way == 4:
        return entry("tokenizer_config.json", random_.choice(NAMED), random_.choice((*TEMPLATES, *ODD)))
    if way == 5:
        return bytes_of(random_.choice(files), random_.random(), random_.choice((None, 0, 255, 65)))
    if way == 6:
        return gone(random_.choice(files))
    if way == 7:
        return index(random_.choice(INDICES))
    return renumbered(random_.choice((1, 1000, -1)))


def cases(seed: int) -> Iterator[Case]:
    """Inputs without end, the same for the same seed."""
    random_ = random.Random(f"models {seed}")
    while True:
        harms = [change(random_) for _ in range(random_.choice((1, 1, 2)))]

        def prepare(folder: Path, harms: list[Change] = harms) -> None:
            shutil.copytree(template(), folder / "m")
            for harm in harms:
                harm(folder / "m")

        style = random_.choice(("chat", "chat", "plain"))
        words = ("model=hf", "model.path=m", f"model.style={style}", "device=cpu", *SMALL)
        yield Case("models", words, ("model.", "m/", "teacher.template", "engine.max_new_tokens"), prepare)
