"""The token view: values, white space and special tokens can be seen, and nothing that a model wrote can run."""

from __future__ import annotations

import json
import re

from rlrt.execution.execute import execute
from rlrt.records.folder import RunFolder
from rlrt.reporting import token_view
from rlrt.reporting.token_view import BLOCK, LEVELS, STRETCH, cards, colour, level, mark_of, page, stretch, visible
from tests.helpers import settings

NASTY = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "\0",
    "</style><b>",
    "&lt;",
    " ",
    "\n",
    "\x1b[31m",
    "<eos>",
]


def nasty_row():
    count = len(NASTY)
    return {
        "step": 3, "sample": 1, "prompt": "<script>document.title='owned'</script>\0", "reward": 1.0, "correct": True,
        "context": "</div><script>document.title='owned'</script>", "asked": "<script>", "expected": "<script>",
        "extracted": "</code><script>document.title='owned'</script>", "pieces": NASTY, "token_ids": list(range(count)),
        "tokens": {"gap": [0.5, -0.5, "nan", 2.0, 0, 0, 0, 0, 1.0], "weight": [1.2] * count, "advantage": [0.1] * count,
                   "entropy": [0.3] * count},
    }  # fmt: skip


def test_everything_is_escaped():
    text = page([nasty_row()], "<script>x</script>")
    assert "<script" not in text
    assert "<img" not in text
    assert "onerror=alert(2)&gt;" in text
    assert "\0" not in text
    assert "\x1b" not in text
    for title in re.findall(r'title="([^"]*)"', text):
        assert "<" not in title
    assert "default-src 'none'" in text


def test_white_space_and_special_tokens_can_be_seen():
    assert [visible(p) for p in (" ", "\n", "\t", "\0", "\x07", "<eos>", "")] == [
        "␣",
        "⏎<br>",
        "⇥",
        "␀",
        "\\x07",
        "&lt;eos&gt;",
        "·",
    ]


def test_colours_by_hand():
    assert colour(0) == "#ffffff"
    assert colour(None) == "#eeeeee"
    assert colour(LEVELS) == "#e08640"  # 255 - .75 * (255 - c) of (213, 94, 0)
    assert colour(-LEVELS) == "#4095c5"
    assert colour(LEVELS // 2) == "#efc39f"  # 255 - .375 * (255 - c)


def test_shades_by_hand():
    assert [level(v, 2.0) for v in (2.0, 9.0, -9.0, 1.0, 0.124, 0.0)] == [LEVELS, LEVELS, -LEVELS, LEVELS // 2, 1, 0]
    assert level(None, 2.0) is None
    assert level(0.0, 0.0) == 0


def test_the_most_self_driven_tokens_come_first():
    text = cards([nasty_row()], "r")
    rows = re.findall(r"<tr><td><a href='#(r-0-\d+)'>(\d+)</a></td><td>.*?</td><td>([\d.]+)</td></tr>", text)
    assert rows == [("r-0-3", "3", "2.000"), ("r-0-8", "8", "1.000"), ("r-0-0", "0", "0.500")]
    assert all(text.count(f'id="{target}"') == 1 for target, _, _ in rows)


def test_a_rollout_without_teacher_or_values():
    text = cards([{"step": 1, "prompt": "p", "token_ids": [5, 6], "tokens": {}}], "r")
    assert "no teacher" in text
    assert "[5]" in text


def two_of_a_group():
    row = {"step": 1, "prompt_id": "a", "prompt": "3 + 4?", "asked": "<|user|>3 + 4?", "expected": "7", "tokens": {}}
    first = row | {"sample": 0, "response": "it is 7", "extracted": "7", "pieces": ["it", " is", " ", "7"]}
    second = row | {"sample": 1, "response": "12", "extracted": "12", "pieces": ["1", "2"]}
    return [first | {"tokens": {"gap": [0.5, 0, 0, 0]}}, second | {"tokens": {"gap": [-2.0, 0]}}]


def test_a_group_is_one_card_with_its_question_and_answers():
    rows = [*two_of_a_group(), {"step": 1, "prompt_id": "b", "prompt": "other", "extracted": " ", "pieces": ["x"]}]
    text = cards(rows, "r")
    assert text.count('class="group"') == 2
    assert text.count('class="rollout"') == 3
    assert text.count("3 + 4?</div>") == 2  # as the problem, and as it was sent
    assert "&lt;|user|&gt;3 + 4?</div></details>" in text
    assert text.count("expected: <code>7</code>") == 1
    assert "sample 0: wrong, reward -</strong>; read: <code>7</code>" in text
    assert "sample 1: wrong, reward -</strong>; read: the whole response" in text
    assert "sample 0: wrong, reward -</strong>; no answer was found in it" in text


def test_one_colour_is_one_value_on_the_whole_page():
    text = cards(two_of_a_group(), "r")
    assert text.count('type="radio"') == 1
    assert "darkest: 0 ± 2" in text
    quarter, coldest = mark_of("a", LEVELS // 4), mark_of("a", -LEVELS)
    assert f'<i class="{quarter}" id="r-0-0" title="0: gap 0.5">it</i>' in text
    assert f'<i class="{coldest}" title="0: gap -2">1</i>' in text
    for mark, shade in ((quarter, LEVELS // 4), (coldest, -LEVELS)):
        assert f"#r-gap:checked~.group .{mark}{{background:{colour(shade)}}}" in text


def test_a_space_before_a_word_is_a_space_and_one_alone_is_seen():
    text = cards(two_of_a_group(), "r")
    assert [re.sub("<.*?>", "", p) for p in re.findall(r"<i class.*?</i>", text)][:4] == ["it", " is", "␣", "7"]


def test_every_line_break_of_a_token_is_one():
    assert visible(".\n\n") == ".⏎<br>⏎<br>"


def test_the_most_self_driven_stretch_by_hand():
    gaps = [0.1] * 200
    gaps[50:60] = [1.0] * 10
    gaps[150] = 20.0  # one token is more than the ten, and a stretch holds it at its end first
    assert stretch(gaps) == (150 - STRETCH + 1, 151)
    assert stretch([None, *gaps[1:60], *[-1.0] * 140]) == (60 - STRETCH, 60)
    assert stretch([-0.1] * 200) == (0, 0)
    assert stretch([1.0] * (4 * STRETCH - 1)) == (0, 0)
    assert stretch([]) == (0, 0)


def long_row(count):
    """A response of words, lines, and one stretch against the teacher."""
    pieces = [f" word{t}" + ("\n" if t % 30 == 29 else "") for t in range(count)]
    gaps = [0.01 * (t % 7) for t in range(count)]
    gaps[count // 2 : count // 2 + STRETCH] = [2.0] * STRETCH
    return {"step": 1, "prompt_id": "a", "prompt": "p", "sample": 0, "pieces": pieces, "response": "".join(pieces),
            "context": "shown <b>", "tokens": {"gap": gaps, "weight": [1.0] * count, "advantage": [0.5] * count,
                                               "entropy": [0.3] * count}}  # fmt: skip


def test_a_long_response_is_in_blocks_that_end_with_lines_and_leads_to_its_stretch():
    text = cards([long_row(5000)], "r")
    blocks = re.findall(r'<div class="block">(.*?)</div>', text)
    assert [b.count("<i ") for b in blocks[:-1]] == [-(-BLOCK // 30) * 30] * (len(blocks) - 1)
    assert sum(b.count("<i ") for b in blocks) == 5000
    assert "tokens 2500 to 2523: <a href='#r-0-2500'>the most self-driven stretch</a>" in text
    assert text.count(" peak") == STRETCH
    assert text.count("shown &lt;b&gt;") == 2  # beside the tokens, and below them
    assert len(text) / 5000 < 200  # bytes a token


def test_a_page_has_room_for_so_many_tokens(monkeypatch):
    monkeypatch.setattr(token_view, "MOST_ON_PAGE", 150)
    text = cards([long_row(100), long_row(100)], "r")
    assert text.count("<i ") == 100
    assert text.count("The page is full; the tokens are in samples.jsonl.") == 1
    assert text.count(" word99") == 2


def test_a_run_stores_contexts_pieces_and_a_page(tmp_path):
    more = ("method=rlrt", "train.steps=2", "train.prompts_per_step=8", "eval.prompts=4", "tracking=none",
            "tracking.samples_every=2", "tracking.samples=64")  # fmt: skip
    execute(settings(*more), tmp_path, lambda line: None, lambda: False, progress=False)
    rows = RunFolder(tmp_path).samples.read()
    assert {r["step"] for r in rows} == {1, 2}
    assert sorted(p.name for p in (tmp_path / "tokens").iterdir()) == ["step_000001.html", "step_000002.html"]
    shown = [r for r in rows if r["context"] is not None]
    assert shown
    for row in rows:
        assert "".join(row["pieces"]).removesuffix("<eos>") == row["response"]
        assert len(row["pieces"]) == row["length"]
        assert row["asked"].replace(" ", "") == f"<bos>{row['prompt'].replace(' ', '')}>"
        assert row["extracted"] == row["response"].split(";")[-1]
        assert (row["context"] is not None) == any(v != "nan" for v in row["tokens"].get("gap", []))
    for row in shown:
        others = [
            r["response"]
            for r in rows
            if r["prompt_id"] == row["prompt_id"] and r["step"] == row["step"] and r["correct"]
        ]
        assert row["context"] in others
        assert row["correct"]
        for a, w in zip(row["tokens"]["advantage"], row["tokens"]["weight"], strict=True):
            assert w == "nan" or 0.89 <= w <= 1.11  # lam .5, eps_w .2 on the embedded model
            del a
    assert json.dumps(rows[0])
