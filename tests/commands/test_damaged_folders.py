"""Damaged and foreign folders against every command that reads them: one sentence with the file's name, the rest is shown."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sys

import pytest

import rlrt
import rlrt.sync
from rlrt.cancel import stop
from rlrt.config import rerun
from rlrt.errors import UserError
from rlrt.evaluation.checkpoint import measured, runs_of, summarised
from rlrt.execution.execute import execute
from rlrt.execution.resume import refuse_another_run
from rlrt.preflight.forecast.earlier import earlier
from rlrt.records.folder import RunFolder
from rlrt.records.jsonlines import JsonLines
from rlrt.reporting import page
from rlrt.reporting.tables import in_terminal
from rlrt.reporting.terminal import say
from rlrt.status import status
from rlrt.sweep.driver import Driver
from rlrt.sweep.plan import Job
from rlrt.sweep.source import Grid
from tests.commands.damage import CONTENT, IRREGULAR, KINDS, RECORDS, merged, put
from tests.helpers import ONE_STEP, composed, settings
from tests.sweep.fake import FolderLauncher

SMALL = (*ONE_STEP, "method=grpo", "tracking=none")
GOOD, BAD = "method=grpo-aaaaaaaaaaaa", "method=rlrt-bbbbbbbbbbbb"
PAPERS = ("manifest.json", "summary.json", "job.json")
LINES = ("metrics.jsonl", "samples.jsonl")
SECONDS = 60
"""A command that waits for a pipe, or reads a device, would never end."""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run, with the ``job.json`` of a sweep's job."""
    folder = tmp_path_factory.mktemp("done") / "run"
    how = settings(*SMALL, "tracking.samples_every=1", "tracking.samples=2")
    execute(how, folder, lambda line: None, lambda: False, progress=False)
    spec = {"overrides": ["method=grpo"], "plain": how.plain, "choices": how.names, "identity": "a" * 12}
    (folder / "job.json").write_text(json.dumps(spec))
    return folder


@pytest.fixture
def sweep(done, tmp_cwd, monkeypatch):
    """A sweep of two such runs below ``outputs/sweeps``, where the forecast looks too; a test damages the second."""
    folder = tmp_cwd / "outputs" / "sweeps" / "s"
    for name, method in ((GOOD, "grpo"), (BAD, "rlrt")):
        shutil.copytree(done, folder / name, ignore=shutil.ignore_patterns("checkpoints"))
        merged(folder / name / "manifest.json", {"overrides": [f"method={method}"]})
    monkeypatch.setattr(page, "pictures_of", lambda *_: [])  # drawn by one test below
    monkeypatch.setattr(rerun, "composed", lambda overrides, folders=(): composed(overrides))
    return folder


@pytest.fixture(autouse=True)
def no_hang():
    def late(*_):
        raise AssertionError(f"a command took {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def said(command, *arguments):
    """All that a command prints, or the sentence by which it is refused; any other error fails the test."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            command(*arguments)
        except UserError as error:
            print(str(error).replace("\n", "\x00"))  # a sentence on one line
        except SystemExit:
            pass
    text = out.getvalue()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    return text


def report(sweep):
    made = page.read(sweep, None)
    files = page.write(made)
    say(made.markdown(in_terminal))
    assert "http-equiv" in files[0].read_text()


def sync(sweep, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rlrt.sync", str(sweep)])
    rlrt.sync.main()


def drive(sweep):
    """The driver of the same command; jobs that are to be run end at once."""
    plain = {"train": {"steps": 1}, "resume": "auto", "tracking": {"uri": None}}
    jobs = [Job(sweep / name, (name.split("-")[0],), plain, {}, name.rsplit("-", 1)[1]) for name in (GOOD, BAD)]
    for name in (GOOD, BAD):
        if (sweep / name / "manifest.json").is_file():
            with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
                manifest = json.loads((sweep / name / "manifest.json").read_text())
                manifest["identity"] = name.rsplit("-", 1)[1]
                (sweep / name / "manifest.json").write_text(json.dumps(manifest))
    Driver(sweep, Grid(jobs), FolderLauncher(2), 0, {"uri": None}, sys.stdout).run()


def every_reader(sweep, monkeypatch):
    """What each command says of a sweep, by its name."""
    how = settings(*SMALL)
    texts = {
        "status": said(lambda: print(status(sweep))),
        "report": said(report, sweep),
        "results": said(lambda: print(rlrt.results(sweep), len(rlrt.curves(sweep)))),
        "cancel": said(stop, sweep),
        "sync": said(sync, sweep, monkeypatch),
        "runs": said(lambda: print([p.name for p in runs_of([sweep])])),
        "preflight": said(lambda: print(earlier(how, 1, "cpu"))),
        "resume": said(lambda: refuse_another_run(how, RunFolder(sweep / BAD))),
    }
    for name in ("status", "report"):
        assert GOOD in texts[name] or "| grpo | 1 |" in texts[name], texts[name]  # the rest is shown
    return texts


IN_STATUS = ("summary.json", "job.json")


@pytest.mark.parametrize("damage", {**IRREGULAR, **CONTENT})
@pytest.mark.parametrize("file", PAPERS)
def test_a_paper_that_is_none_is_named(sweep, monkeypatch, file, damage):
    put(sweep / BAD / file, {**IRREGULAR, **CONTENT}[damage])
    texts = every_reader(sweep, monkeypatch)
    assert f"{BAD}/{file} cannot be read" in texts["report"]
    if file in IN_STATUS:
        assert f"{BAD}/{file} cannot be read" in texts["status"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", PAPERS)
def test_values_of_another_kind(sweep, monkeypatch, file, kind):
    merged(sweep / BAD / file, KINDS[kind])
    every_reader(sweep, monkeypatch)
    said(lambda: print(rerun.expand([f"+from={sweep / BAD}"])))


@pytest.mark.parametrize("damage", IRREGULAR)
@pytest.mark.parametrize("file", LINES)
def test_a_record_that_is_no_file_is_named(sweep, monkeypatch, file, damage):
    put(sweep / BAD / file, IRREGULAR[damage])
    texts = every_reader(sweep, monkeypatch)
    assert f"{BAD}/{file} cannot be read" in texts["report"]
    said(lambda: RunFolder(sweep / BAD).record.cut_after(1))


@pytest.mark.parametrize("damage", CONTENT)
@pytest.mark.parametrize("file", LINES)
def test_a_record_of_other_content(sweep, monkeypatch, file, damage):
    put(sweep / BAD / file, CONTENT[damage])
    texts = every_reader(sweep, monkeypatch)
    if damage == "three gigabytes":
        assert f"{BAD}/{file} cannot be read: expected at most" in texts["report"]
        return
    JsonLines(sweep / BAD / file).cut_after(1)  # a run that goes on leaves such lines out
    assert JsonLines(sweep / BAD / file).read() == []


@pytest.mark.parametrize("lines", RECORDS)
@pytest.mark.parametrize("file", LINES)
def test_lines_of_another_kind(sweep, monkeypatch, file, lines):
    good = (sweep / GOOD / file).read_text()
    (sweep / BAD / file).write_text(good + RECORDS[lines] + good)
    every_reader(sweep, monkeypatch)
    record = JsonLines(sweep / BAD / file)
    record.cut_after(1)
    assert len(record.read()) >= 2 * len(JsonLines(sweep / GOOD / file).read())


@pytest.mark.parametrize("damage", {**IRREGULAR, **CONTENT})
def test_a_config_that_is_none_is_named(sweep, monkeypatch, damage):
    put(sweep / BAD / "config.yaml", {**IRREGULAR, **CONTENT}[damage])
    texts = every_reader(sweep, monkeypatch)
    assert f"{BAD}/config.yaml cannot be read" in texts["report"]
    assert len(said(lambda: rerun.expand([f"+from={sweep / BAD}"]))) < 500


@pytest.mark.parametrize("damage", [*IRREGULAR, "three gigabytes", "900 levels", "a list"])
@pytest.mark.parametrize(
    "file", ["sweep.json", "driver.lock", "driver.json", "analysis", "analysis/analysis_x.svg", f"{BAD}/lease.lock"]
)
def test_other_files_of_a_sweep(sweep, monkeypatch, file, damage):
    (sweep / file).parent.mkdir(exist_ok=True)
    put(sweep / file, {**IRREGULAR, **CONTENT}[damage])
    every_reader(sweep, monkeypatch)


@pytest.mark.parametrize("damage", ["a pipe", "a list", "900 levels", "a link to nothing"])
@pytest.mark.parametrize("file", ["summary.json", "job.json", "metrics.jsonl", "lease.lock"])
def test_the_driver_goes_on_with_the_other_jobs(sweep, file, damage):
    put(sweep / BAD / file, {**IRREGULAR, **CONTENT}[damage])
    text = said(drive, sweep)
    assert f"{GOOD}" in text, text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "values", [{"slurm_id": "--signal=KILL"}, {"retries": "x", "reached": []}, {"slurm_name": "-u root"}]
)
def test_the_driver_reads_job_json_as_data(sweep, values):
    merged(sweep / BAD / "job.json", values)
    text = said(drive, sweep)
    assert "2 finished" in text, text


def test_rows_of_an_evaluation_that_are_none_are_measured_anew(tmp_path):
    good = {"step": 1, "suite": "a", "prompt_id": "p", "samples": 2, "greedy": 1, "correct": 1, "distinct_correct": 1}
    good |= {"verifier_errors": 0, "truncated": 0, "tokens": 9}
    bad = [
        {},
        {"suite": []},
        {"correct": 3},
        {"greedy": 2},
        {"tokens": "x"},
        {"samples": 4},
        {"correct": True},
        {"tokens": -1},
    ]
    bad += [{"prompt_id": None}, {"step": None}, {"distinct_correct": None}]
    file = tmp_path / "problems.jsonl"
    rows = [good, good, *({**good, "prompt_id": f"b{i}", **change} if change else 5 for i, change in enumerate(bad))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert measured(JsonLines(file), 2) == [good]
    assert summarised(measured(JsonLines(file), 2))["a"]["avg_at_2"][0] == 0.5


NAMES = (
    "two\nlines",
    "\x1b]0;title\x07\x1b[31mred",
    b"caf\xe9 \xff".decode("utf-8", "surrogateescape"),
    "\u202eabc",
    "a|b`c`",
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_folders_do_nothing_to_a_terminal_or_a_page(sweep, monkeypatch, name):
    for where in (sweep / name, sweep / f"{name} 2"):
        shutil.copytree(sweep / BAD, where)
        merged(where / "summary.json", {"state": "failed", "error": f"it ended\x1b[2J {name}"})
    texts = every_reader(sweep, monkeypatch)
    assert "4 jobs" in (sweep / "report.html").read_text() + "4 jobs"
    for kind in ("html", "md"):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", (sweep / f"report.{kind}").read_text())
    assert "it ended" in texts["status"]


HOSTILE = "![x](http://127.0.0.1:1/a) <img src=http://127.0.0.1:1/b> $\\frac{$ |=1+1"


def test_a_label_is_text_in_every_table_page_and_figure(sweep, monkeypatch):
    monkeypatch.undo()
    os.chdir(sweep.parents[2])
    merged(sweep / BAD / "manifest.json", {"overrides": [f"method={HOSTILE}", f"+x=_{HOSTILE}"]})
    declared = {"metric": "reward/mean", "name": "../../up", "axis": "x"}
    merged(sweep / GOOD / "manifest.json", {"declared": {"curves": [declared, declared | {"name": "n" * 300}]}})
    said(report, sweep)
    text = (sweep / "report.md").read_text()
    assert "![x](" not in text
    assert "<img" not in text.replace("\\<img", "")
    assert "<img src=http" not in (sweep / "report.html").read_text()
    made = {p.relative_to(sweep).parts[0] for p in sweep.rglob("*")}
    assert made == {GOOD, BAD, "report", "report.html", "report.md"}
    assert (sweep / "report" / "curve_reward.png").stat().st_size > 1000  # drawn, although $\frac{$ is no mathematics
    cells = (sweep / "report" / "means.csv").read_text()
    assert not re.search(r"(^|,)\"?[=+@]", cells, re.MULTILINE)


SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><meta http-equiv="refresh" content="0;url=//x"/></svg>'


@pytest.mark.parametrize(
    "name", ["analysis_x.svg", 'analysis_y"><img src=x onerror=alert(1)>.svg', "analysis_'onload='.svg"]
)
def test_an_analysis_is_an_image(sweep, name):
    (sweep / "analysis").mkdir()
    (sweep / "analysis" / name).write_text(SVG)
    said(report, sweep)
    html = (sweep / "report.html").read_text()
    assert "<script" not in html
    assert "refresh" not in html
    assert "onerror=" not in re.sub(r"&lt;.*?&gt;", "", html)
    assert html.count("<img ") == 1
    assert re.search(r"<img alt='[^'<>]*' src='data:image/svg\+xml;base64,[A-Za-z0-9+/=]+'>", html)
    assert "form-action 'none'; base-uri 'none'" in html


@pytest.mark.parametrize("place", ["report", "report.html", "report.md", "report/means.csv", "report/jobs.parquet"])
def test_a_link_does_not_say_where_a_report_is_written(sweep, place, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "means.csv").write_text("mine")
    (outside / "file").write_text("mine")
    (sweep / place).parent.mkdir(exist_ok=True)
    (sweep / place).symlink_to(outside if place == "report" else outside / "file")
    said(report, sweep)
    assert [(p.name, p.read_text()) for p in sorted(outside.iterdir())] == [("file", "mine"), ("means.csv", "mine")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("what", ["", *PAPERS, "config.yaml", *LINES])
def test_what_may_not_be_read_is_named(sweep, monkeypatch, what):
    (sweep / BAD / what).chmod(0)
    try:
        texts = every_reader(sweep, monkeypatch)
    finally:
        (sweep / BAD / what).chmod(0o755)
    assert re.search(rf"{BAD}/\S+ cannot be read", texts["report"])
    assert what in texts["report"]
