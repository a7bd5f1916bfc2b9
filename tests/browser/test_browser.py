"""A real headless Chromium on a real sweep of twelve runs: the report, the token view, MLflow's pages. Marked ``browser``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from rlrt.reporting.page import read, write
from rlrt.reporting.token_view import page
from tests.conftest import ROOT
from tests.reporting.test_token_view import long_row, nasty_row

pytestmark = pytest.mark.browser
PICTURES = ROOT / "outputs" / "browser"
SWEEP = ("-m", "method=rlrt,sd,entropy,grpo", "seed=0,1,2", "train.steps=12", "train.eval_every=4", "eval.prompts=64",
         "tracking.samples_every=12", "hydra.sweep.dir=sweep")  # fmt: skip


def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found is not None, "the browser tests need Debian's chromium (apt-get install chromium)"
    return found


def look(tmp_path, url, name, width=1280, height=2400, patience_ms=4000):
    """Open a page: its DOM after scripts ran, what its console said, the hosts that were asked; and a picture is kept."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    log = tmp_path / f"{name}.net.json"
    common = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}",
              f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking", "--disable-component-update",
              "--no-first-run", f"--virtual-time-budget={patience_ms}", "--enable-logging=stderr"]  # fmt: skip
    dumped = subprocess.run(
        [*common, f"--log-net-log={log}", "--dump-dom", url], capture_output=True, text=True, timeout=120, check=False
    )
    subprocess.run([*common, f"--screenshot={PICTURES / name}.png", url], capture_output=True, timeout=120, check=False)
    said = [line for line in dumped.stderr.splitlines() if "CONSOLE" in line]
    hosts = asked_by_pages(log)
    assert (PICTURES / f"{name}.png").stat().st_size > 10_000
    return dumped.stdout, said, hosts


def asked_by_pages(log):
    """Hosts that pages asked for something; what the browser itself wants of its makers (no page's request) apart."""
    text = log.read_text()
    try:
        events = json.loads(text)["events"]
    except ValueError:  # a browser that was ended leaves the list open
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    asked = [e["params"] for e in events if {"url", "initiator"} <= e.get("params", {}).keys()]
    return {
        urlsplit(p["url"]).hostname for p in asked if p["initiator"] != "not an origin" and p["url"].startswith("http")
    }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Twelve runs of four methods, tracked by MLflow."""
    folder = tmp_path_factory.mktemp("browser")
    done = subprocess.run(
        [sys.executable, "-m", "rlrt.run", *SWEEP], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "report: " in done.stdout
    return folder / "sweep"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report(sweep, tmp_path, width):
    dom, said, hosts = look(tmp_path, (sweep / "report.html").as_uri(), f"report_{width}", width, 5200)
    assert said == []
    assert hosts == set()
    for title in (
        "Means",
        "Paired differences",
        "Held out: avg@8",
        "pass@k",
        "Learning curve: entropy",
        "Groups with a signal",
        "Rollouts",
    ):
        assert title in dom
    assert dom.count("<svg") >= 8
    for method in ("rlrt", "sd", "entropy", "grpo"):
        assert f"<td>{method}</td><td>3</td>" in dom


@pytest.fixture(scope="module")
def three_hundred(sweep, tmp_path_factory):
    """A sweep of 30 coefficients and 10 seeds, each job the record of a real run."""
    folder, run = tmp_path_factory.mktemp("many") / "many", next(sweep.glob("method=rlrt,seed=0*"))
    manifest = json.loads((run / "manifest.json").read_text())
    for coefficient in range(30):
        for seed in range(10):
            job = folder / f"{coefficient}-{seed}"
            job.mkdir(parents=True)
            for name in ("config.yaml", "summary.json", "metrics.jsonl", "samples.jsonl"):
                shutil.copy(run / name, job)
            typed = ["method=rlrt", f"method.lambda_init={coefficient / 30:.3f}", f"seed={seed}"]
            (job / "manifest.json").write_text(json.dumps(manifest | {"overrides": typed, "seed": seed}))
    write(read(folder, None))
    return folder


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_of_three_hundred_jobs(three_hundred, tmp_path, width):
    dom, said, hosts = look(tmp_path, (three_hundred / "report.html").as_uri(), f"many_{width}", width, 5200)
    assert said == []
    assert hosts == set()
    assert "300 jobs: 300 finished." in dom
    assert dom.count("<td>10</td>") >= 30
    assert "Figures show 8 of 30 settings" in dom


def test_the_token_view_of_a_run(sweep, tmp_path):
    file = next(sweep.glob("method=rlrt*/tokens/step_000012.html"))
    dom, said, hosts = look(tmp_path, file.as_uri(), "tokens_1280", 1280, 1600)
    assert said == []
    assert hosts == set()
    assert "most self-driven tokens" in dom
    assert "the teacher was shown" in dom
    look(tmp_path, file.as_uri(), "tokens_400", 400, 1600)


@pytest.mark.parametrize("width", [1280, 400])
def test_a_response_of_twenty_thousand_tokens_is_searchable_and_opens_at_its_stretch(tmp_path, width):
    """In a frame, since a headless browser takes no picture of a page that is scrolled."""
    (tmp_path / "long.html").write_text(page([long_row(20_000)], "a long one"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<body style='margin:0'><iframe src='long.html#r-0-10000' style='border:0;width:100vw;height:100vh'>"
    )
    dom, said, hosts = look(tmp_path, (tmp_path / "long.html").as_uri(), f"long_{width}", width, 1600)
    assert said == []
    assert hosts == set()
    assert dom.count("content-visibility:auto") == 1
    assert "word19999" in dom
    assert 'id="r-0-10000"' in dom
    look(tmp_path, frame.as_uri(), f"stretch_{width}", width, 1600)


def test_a_script_that_a_model_wrote_does_not_run(tmp_path):
    file = tmp_path / "nasty.html"
    file.write_text(page([nasty_row()], "a page"))
    dom, _, hosts = look(tmp_path, file.as_uri(), "nasty_1280", 1280, 900)
    assert "<title>a page</title>" in dom  # the stored rollout tries to change it
    assert "owned" in dom  # as text
    assert "<script" not in dom
    assert hosts == set()
    # what the escaping keeps out, the policy would stop too
    file.write_text(page([nasty_row()], "a page").replace("</body>", "<script>document.title='owned'</script></body>"))
    dom, said, _ = look(tmp_path, file.as_uri(), "policy_1280", 1280, 900)
    assert "<title>a page</title>" in dom
    assert any("Content Security Policy" in line for line in said)


def test_a_request_or_a_script_would_be_seen(tmp_path):
    """What the other tests find none of, this page has: so they could fail."""
    file = tmp_path / "talks.html"
    file.write_text(
        "<!doctype html><title>x</title><img src='http://example.com/x.png'><h1>asks and complains</h1>"
        "<script>document.title='ran';console.error('loud')</script>"
    )
    dom, said, hosts = look(tmp_path, file.as_uri(), "talks_1280")
    assert "<title>ran</title>" in dom
    assert any("loud" in line for line in said)
    assert hosts == {"example.com"}


@pytest.fixture(scope="module")
def links(sweep):
    """The addresses that ``rlrt.ui`` prints of the sweep: its view and every run."""
    uri = f"sqlite:///{sweep.parent / 'outputs' / 'mlflow.db'}"
    process = subprocess.Popen(
        [sys.executable, "-m", "rlrt.ui", str(sweep), "--uri", uri, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = (text.strip() for text in process.stdout if text.startswith("http"))
        yield next(found), next(found)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_mlflow_shows_a_sweeps_curves_without_a_click(links, tmp_path, width):
    height = 2600 if width > 1000 else 4600  # a chart is drawn where it is seen
    dom, said, hosts = look(tmp_path, links[0], f"mlflow_view_{width}", width, height, 60_000)
    assert hosts <= {"127.0.0.1"}
    assert [line for line in said if "ERROR" in line and "favicon" not in line] == []
    assert "Learning curves" in dom
    assert "Last values" in dom
    charts = ("eval/avg_at_8", "reward/mean", "policy/entropy", "rollout/length_mean", "rlrt/gap_mean")
    for metric in charts:
        assert dom.count(f">{metric}<") >= (1 if metric == "reward/mean" else 2), metric  # a curve, and a bar
    for method in ("rlrt", "sd", "entropy", "grpo"):
        assert f"{method} (eval/avg_at_8)" in dom
    assert dom.count("js-line") >= 4 * 4 + 1  # four curves of four methods, and D of one
    assert dom.count("js-fill") >= 4 * 4 + 1  # their bands
    assert dom.count("barlayer") >= 4
    assert "Unassigned" not in dom  # the sweep's own run has no curve and no place in a legend


def test_mlflow_shows_the_sweep(sweep, links, tmp_path):
    dom, said, hosts = look(tmp_path, links[1], "mlflow_runs_1280", 1280, 1000, 20_000)
    assert "method=" in dom or sweep.name in dom
    assert hosts <= {"127.0.0.1"}
    assert [line for line in said if "ERROR" in line and "favicon" not in line] == []
    note = json.loads((sweep / "sweep.json").read_text())
    base, experiment = links[1].split("/#/")[0], links[1].split("/experiments/")[1].split("/")[0]
    parent = f"{base}/#/experiments/{experiment}/runs/{note['mlflow_run_id']}"
    dom, said, hosts = look(tmp_path, parent, "mlflow_parent_1280", 1280, 1000, 20_000)
    assert sweep.name in dom
    assert "python -m rlrt.run -m" in dom  # the note: the command
    assert hosts <= {"127.0.0.1"}
    look(tmp_path, f"{parent}/artifacts", "mlflow_artifacts_1280", 1280, 1000, 20_000)
