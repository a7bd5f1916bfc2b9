"""What the terminal shows."""

from __future__ import annotations

import io
from types import SimpleNamespace

from rlrt.errors import amount
from rlrt.reporting import terminal
from rlrt.reporting.terminal import Bar, Progress, before_after, table, to_read


def test_progress_without_a_terminal_has_no_control_codes():
    out = io.StringIO()
    progress = Progress(3, out)
    progress.show(0, {"eval/greedy": 0.5, "eval/avg_at_8": 0.25, "eval/pass_at_8": 0.75})
    progress.show(3, {"reward/mean": 0.5, "rollout/length_mean": 12.0, "policy/entropy": 0.3})
    progress.end()
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert "avg@8 0.250" in out.getvalue()
    assert all(len(line) < 80 for line in out.getvalue().splitlines())


def test_progress_on_given_responses_shows_the_loss_and_not_the_references_reward():
    out = io.StringIO()
    Progress(3, out).show(3, {"reward/mean": 1.0, "rollout/length_mean": 12.0, "policy/loss": 2.4359})
    assert "loss 2.436  length 12.0" in out.getvalue()
    assert "reward" not in out.getvalue()


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


def after(monkeypatch, out, total, calls, each_s, **given):
    """What a bar has written after some calls, each of which took so many seconds; the second text is its end's."""
    clock = iter(each_s * n for n in range(calls + 1))
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Bar("heldout", total, out=out, **given) as bar:
        for _ in range(calls):
            bar.one()
        written = out.getvalue()
    return written, out.getvalue()[len(written) :]


def test_a_bar_is_redrawn_in_a_terminal_and_erased(monkeypatch):
    written, end = after(monkeypatch, Screen(), 4, 6, 2.0, each=3)
    lines = written.split("\r")
    assert [len(line) for line in lines] == [0, *[79] * 6]
    assert lines[3].rstrip() == "heldout  [#####...............]  1/4 problems  18s left"
    assert lines[6].rstrip() == "heldout  [##########..........]  2/4 problems  12s left"
    assert end == "\r" + " " * 79 + "\r"


def test_a_bar_without_a_terminal_prints_a_line_every_five_seconds(monkeypatch):
    written, end = after(monkeypatch, io.StringIO(), 20, 8, 2.0)
    assert end == ""
    assert written.splitlines() == [
        "heldout  [###.................]  3/20 problems  34s left",
        "heldout  [######..............]  6/20 problems  28s left",
    ]
    assert after(monkeypatch, io.StringIO(), 20, 4, 1.0) == ("", "")  # what is quick says nothing


def test_a_bar_of_bytes_and_one_without_an_end(monkeypatch):
    written, _ = after(monkeypatch, io.StringIO(), 4e6, 1, 5.0, unit="", form=amount, each=1e-6)
    assert written == "heldout  [#####...............]  1.0 MB/4.0 MB  15s left\n"
    written, _ = after(monkeypatch, io.StringIO(), None, 1, 5.0, unit="more", form=amount, each=1e-6)
    assert written == "heldout  1.0 MB more\n"


def test_tables_line_up():
    lines = table([["a", "long heading"], ["longer", "1"]]).splitlines()
    assert lines == ["a       long heading", "------  ------------", "longer             1"]
    assert "avg@8" in before_after({"eval/avg_at_8": 0.1}, {"eval/avg_at_8": 0.2}, 8)
    assert "nan" in before_after({"eval/avg_at_8": 0.1}, {"eval/avg_at_8": "nan"}, 8)  # as a record holds it


def test_rollouts_to_read_are_of_the_last_step_and_of_different_problems():
    def row(step, problem, number, **more):
        return {
            "step": step,
            "prompt_id": problem,
            "prompt": f"{problem}?",
            "response": f"r{number}\n",
            "correct": number == 2,
            **more,
        }

    rows = [row(1, "a", 0), row(6, "a", 1, expected=None), row(6, "a", 2), row(6, "b", 3, expected="7", truncated=True)]
    assert to_read(rows, 2).splitlines() == [
        "2 rollouts of step 6:",
        "",
        "  a?",
        "  -> r1\\n",
        "  wrong",
        "",
        "  b?",
        "  -> r3\\n",
        "  wrong, cut at the longest (expected 7)",
    ]
    assert to_read(rows, 9).splitlines()[-1] == "  correct"
    assert to_read([], 5) == "no rollout is stored"
