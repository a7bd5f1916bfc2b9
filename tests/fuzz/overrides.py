"""Inputs for every key of every section: values of the wrong type, out of range, at its edges, and no values at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from rlrt.config.overrides import grammar
from rlrt.describe import rows_of, sections
from rlrt.sweep.launchers import LocalLauncher, SlurmLauncher
from rlrt.sweep.settings import GridKeys, RaceKeys, SearchKeys, with_shipped
from tests.fuzz.judge import Case
from tests.helpers import METHODS, settings

SMALL = (
    "train.steps=1", "train.prompts_per_step=2", "train.rollouts_per_prompt=2", "eval.prompts=2", "eval.samples_per_prompt=1",
    "tracking=none", "engine.max_new_tokens=8", "threads=1",
)  # fmt: skip
LONG = "A" * 5000
ODD = (
    "", "text", "null", "true", "nan", "inf", "-inf", "[]", "[1,a]", "[[]]", "{}", "{a:1}", "{a:{b:[1]}}", "[a,b", "{a", "'a",
    "a,b", "1,", ",", "=", "a=b", "(", "@x", "\\", "${nope}", "${seed}", "${oc.env:NOPE}", "${", "'${nope}'", "range(3)",
    "glob(*)", "interval(0,1)", "choice(1,2)", "shuffle(1,2)", "???", "é", "'a\nb'", "' '", "'1'", "'null'", "/", "..",
    "~nobody/x", "a b", "--help=1",
    "0x10", "1_000", "--x", LONG, f"[{LONG}]", f"'{LONG}\n{LONG}'", "9" * 400, "9" * 5000, "1e400", "-0.0", "1e-400",
)  # fmt: skip
"""Values that no key, or few keys, can have."""
NUMBERS = (
    "-1", "0", "1", "2", "-2147483648", "2147483648", "99999999999999999999", "1.5", "0.1", "1e-300", "1e300", "-0.1",
)  # fmt: skip
FORMS = (
    "{key}={value}",
    "{key}={value}",
    "{key}={value}",
    "+{key}={value}",
    "++{key}={value}",
    "~{key}",
    "{key}",
    "{key}.more={value}",
)
"""Ways to type a key and a value; the first is the usual one, and comes more often."""


@cache
def keys() -> tuple[tuple[tuple[str, ...], str, str], ...]:
    """(words that the key needs, the key, its type) of every key that a run or a sweep has."""
    found: dict[str, tuple[tuple[str, ...], str, str]] = {}
    for method in METHODS:
        choice = (f"method={method}",)
        for rows in sections(settings(*choice)).values():
            for name, kind, _, _ in rows:
                found.setdefault(name, (choice if name.startswith("method.") else (), name, kind))
    slurm = ("-m", "hydra/launcher=slurm", "hydra.launcher.dry_run=true")
    search = (*slurm, "hydra/sweeper=optuna", "train.lr=1e-3,1e-4")
    for cls, group, option, words in (
        (LocalLauncher, "launcher", "local", ("-m",)),
        (SlurmLauncher, "launcher", "slurm", slurm),
        (GridKeys, "sweeper", "grid", (*slurm, "seed=0,1")),
        (SearchKeys, "sweeper", "optuna", search),
        (RaceKeys, "sweeper", "race", (*slurm, "hydra/sweeper=race", "train.lr=1e-3,1e-4")),
    ):
        shown = with_shipped(group, option, {"sampler": {}, "pruner": {}} if option == "optuna" else {})
        for name, kind, _, _ in rows_of(cls, f"hydra.{group}.", shown):
            found[f"{option} {name}"] = (words, name, kind)
    return tuple(found.values())


def value_for(kind: str, random_: random.Random) -> str:
    """A value for a key of a type: mostly of that type, at an edge or beyond it, often of another."""
    if random_.random() < 0.5:
        return random_.choice(ODD)
    if " / " in kind:
        option = random_.choice(kind.split(" / "))
        return random_.choice([option, f"{option}x", option.upper(), option[:-1], f"[{option}]"])
    if "int" in kind or "float" in kind:
        return random_.choice(NUMBERS)
    if kind == "bool":
        return random_.choice(["yes", "off", "True", "2", "TRUE", "f"])
    return grammar(
        "".join(random_.choice("ab{}[]()'\"\\$%,:=#@ \n\té\u2028/.-_0") for _ in range(random_.randint(1, 12)))
    )


def cases(seed: int) -> Iterator[Case]:
    """Inputs without end, the same for the same seed; every key comes once before one comes twice."""
    random_ = random.Random(seed)
    while True:
        every = list(keys())
        random_.shuffle(every)
        for words, key, kind in every:
            typed = random_.choice(FORMS).format(key=key, value=value_for(kind, random_))
            line = (*words, *SMALL, typed) if random_.random() < 0.5 else (*words, typed, *SMALL[:-1])
            if random_.random() < 0.2 and "-m" not in words:
                line = ("-m", *line, "seed=0,1")
            typed_keys = [w.split("=", 1)[0].lstrip("+~") for w in line if w != "-m"]
            yield Case("overrides", line, (key, *(k[:60] for k in typed_keys if k), repr(typed[:20])[:-1]))
