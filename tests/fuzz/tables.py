"""Data files: tables of odd cells in all formats, under right and wrong names, whole and damaged."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.judge import Case
from tests.fuzz.overrides import SMALL

CELLS: tuple[Any, ...] = (
    "", " ", "7", "x", "What is 3 + 4?", "\\boxed{7}", "#### 7", "#### 1,234", "a\nb", "a\u2028b", "a\x85b", "\ud800", "\0",
    "é" * 40, "<|im_end|>", "<eos>", "{prompt}", "{solution}", "${seed}", "=1+1", "x" * 3000, None, True, 3, 2.5, 1e400, -0.0,
    10**30, [], ["7"], ["a", "b"], {}, {"content": "7"}, {"answer": [1]}, [{"role": "user", "content": "3+4?"}],
    [{"role": "assistant"}], [[["7"]]], "\\frac{1}{0}", "9^{9^{9^9}}", "\\begin{pmatrix}1", "1e999999", "nan", "50\\%", "$",
    "\\(", "\u0661", "½", "(1,2]", "\\infty",
)  # fmt: skip
NAMES = ("prompt", "answer", "solution", "question", "prompt.text", "", "Prompt ", "extra")
MORE = ("data.prompt_field=[prompt,extra]", "data.solution_field=extra", "data.special_tokens=refuse")
FORMATS = ("plain", "plain", "plain", "plain", "hash", "boxed", "number")
PACKS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
}  # fmt: skip


def cell(random_: random.Random) -> Any:
    """A value of a cell: one of the odd ones, or a text of odd letters."""
    if random_.random() < 0.7:
        return random_.choice(CELLS)
    return "".join(
        random_.choice("0123 +-*/=.,:{}[]()\\$%^_<>|\"'\n\té\u200b½π") for _ in range(random_.randint(1, 30))
    )


def rows(random_: random.Random) -> list[dict[str, Any]]:
    """Rows of a table: most have a question of their own and an answer."""
    made = []
    for n in range(random_.choice((0, 1, 5, 9, 20, 20))):
        row: dict[str, Any] = {"prompt": f"{n}+1", "answer": str(n + 1)}
        for _ in range(random_.randint(0, 2)):
            row[random_.choice(NAMES)] = cell(random_)
        if random_.random() < 0.1:
            row.pop(random_.choice(list(row)))
        made.append(row)
    return made


def written(made: list[dict[str, Any]], kind: str, random_: random.Random) -> bytes:
    """The rows as a file's content."""
    if kind == "csv":
        sink, columns = io.StringIO(), list(dict.fromkeys(name for row in made for name in row))
        end, delimiter = random_.choice(("\n", "\r\n", "\r")), random_.choice(",;\t")
        sheet = csv.DictWriter(sink, columns, lineterminator=end, delimiter=delimiter)
        sheet.writeheader()
        sheet.writerows(made)
        text = sink.getvalue()
    elif kind == "json":
        text = json.dumps(random_.choice((made, {"data": made}, {"train": made, "test": made})))
    else:
        escaped = random_.random() < 0.5
        ends = ("\n", "\n", "\r\n", "\n\n")
        text = "".join(json.dumps(row, ensure_ascii=escaped) + random_.choice(ends) for row in made)
    encoding = random_.choice(("utf-8",) * 9 + ("utf-8-sig", "utf-16", "latin-1"))
    return text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")


def damaged(content: bytes, random_: random.Random) -> bytes:
    """The content with a byte changed, cut off, or doubled; mostly as it was."""
    way = random_.randint(0, 9)
    if not content or way > 2:
        return content
    place = random_.randrange(len(content))
    before, after = content[:place], content[place + 1 :]
    return (before, before + bytes([random_.randrange(256)]) + after, content + content[place:])[way]


def cases(seed: int) -> Iterator[Case]:
    """Inputs without end, the same for the same seed."""
    random_ = random.Random(f"tables {seed}")
    while True:
        kind, pack = random_.choice(("jsonl", "jsonl", "json", "csv")), random_.choice(list(PACKS))
        content = damaged(PACKS[pack](written(rows(random_), kind, random_)), random_)
        name = "rows" + random_.choice((f".{kind}{pack}", f".{kind}", ".parquet", ".txt", ".jsonl", ""))

        def prepare(folder: Path, name: str = name, content: bytes = content) -> None:
            (folder / name).write_bytes(content)

        words = (
            "data=file", f"data.path={name}", f"data.answer_format={random_.choice(FORMATS)}", "data.verifier_timeout_s=1",
            f"data.verifier={random_.choice(('exact', 'math'))}", *SMALL,
        )  # fmt: skip
        if random_.random() < 0.2:
            words += (
                random_.choice(
                    ("data.prompt_field=[prompt,extra]", "data.solution_field=extra", "data.special_tokens=refuse")
                ),
            )
        yield Case(
            "tables", words, ("data.", name, "train.prompts_per_step", "engine.max_new_tokens", "teacher."), prepare
        )
