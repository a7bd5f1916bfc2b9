"""A dozen secrets, planted where secrets come from; every file and stream of a finished and of a failed sweep is searched."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import sys
import threading
import warnings
from pathlib import Path
from urllib.parse import quote

import pytest

from rlrt.execution.execute import execute
from rlrt.records import secrets
from rlrt.records.secrets import masked, redacted, remember
from rlrt.records.streams import MaskedStream
from tests.conftest import ROOT
from tests.forked import forked
from tests.helpers import ONE_STEP, settings
from tests.sweep.test_driver import run

ENVIRONMENT = {
    "HF_TOKEN": "hf_planted0001",
    "AWS_SECRET_ACCESS_KEY": "aws/planted+0002",
    "WANDB_API_KEY": "wandb-planted0003",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-planted0004",
    "MLFLOW_TRACKING_TOKEN": "bearer-planted0005",
    "RLRT_SERVER_TOKEN": "server-planted0006",
    "HTTP_PROXY_OF_OURS": "http://me:proxy-planted0007@proxy:1",
    "DATABASE_URL": "mysql+pymysql://me:p%40nted%2F0008@[::1]:3306/db",
}
TYPED = {
    "tracking.uri": "'http://user:uri-planted0009@127.0.0.1:9'",
    "hydra.launcher.gpus_per_node": "0",
    "+data.hf_token": "typed-planted0010",
}
TOKEN_URI = "HTTPS://token-planted0011@127.0.0.1:9"
ESCAPED = r"http\://u\:escaped-planted0012@127.0.0.1\:9"
SECRETS = [
    "hf_planted0001", "planted+0002", "wandb-planted0003", "mlflow-planted0004", "bearer-planted0005", "server-planted0006",
    "proxy-planted0007", "p%40nted", "p@nted/0008", "uri-planted0009", "typed-planted0010", "token-planted0011",
    "escaped-planted0012",
]  # fmt: skip
TASK = """
import os, sys, threading, warnings
from dataclasses import dataclass

from rlrt.tasks.countdown import Countdown


@dataclass
class Loud(Countdown):
    hf_token: str

    def __post_init__(self):
        words = " ".join([self.hf_token, *(v for k, v in os.environ.items() if "planted" in v or "0008" in v)])
        print("printed", words)
        print("to the other stream", words, file=sys.stderr)
        warnings.warn("warned " + words)
        thread = threading.Thread(target=lambda: int(words))
        thread.start()
        thread.join()
"""


@pytest.fixture(autouse=True)
def nothing_known():
    """What one test makes known is nothing to the next."""
    secrets.REMEMBERED.clear()
    yield
    secrets.REMEMBERED.clear()


def holders(folder: Path) -> dict[Path, list[str]]:
    """Files, by the secrets in their bytes or in their names."""
    found = {}
    for path in folder.rglob("*"):
        text = os.fsencode(path.name) + (path.read_bytes() if path.is_file() else b"")
        held = [s for s in SECRETS if s.encode() in text or quote(s, safe="").encode() in text]
        if held:
            found[path] = held
    return found


def planted(tmp_path, *more, report=False):
    (tmp_path / "loud.py").write_text(TASK)
    typed = [f"{k}={v}" for k, v in TYPED.items()]
    done = forked(
        "run",
        ["-m", "method=grpo", "data._target_=loud.Loud", *typed, *ONE_STEP, "hydra.sweep.dir=s", *more],
        tmp_path,
        report=report,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        **ENVIRONMENT,
    )
    (tmp_path / "loud.py").unlink()
    (tmp_path / "stdout").write_text(done.stdout)
    (tmp_path / "stderr").write_text(done.stderr)
    return done


def check(tmp_path):
    found = holders(tmp_path)
    assert {path.name for path in found} <= {"job.json"}, found  # what a job must know to run, for its owner alone
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in found)


def test_a_finished_sweep_shows_no_secret(tmp_path):
    """With real processes: the streams of a job are files of submitit; and with a store, whose bytes are searched too."""
    (tmp_path / "loud.py").write_text(TASK)
    typed = [
        *ONE_STEP,
        "+data.hf_token=typed-planted0010",
        f"tracking.uri=sqlite:///{tmp_path}/m.db",
        "hydra.sweep.dir=s",
    ]
    code, output = run(tmp_path, "-m", "method=grpo", "data._target_=loud.Loud", *typed, **ENVIRONMENT)
    (tmp_path / "loud.py").unlink()
    (tmp_path / "output").write_text(output)
    assert code == 0, output
    logs = [f.read_text() for f in (tmp_path / "s" / "submitit").glob("*.out")]
    assert any("printed ***" in text and "warned ***" in text and "base 10: '***" in text for text in logs), logs
    assert (tmp_path / "m.db").is_file()
    check(tmp_path)


def test_nor_does_a_failed_one(tmp_path):
    """A path that is a URI with a token, a prompt that repeats a secret, and a name made of it: folders are named after it."""
    done = planted(
        tmp_path,
        f"model.path='{TOKEN_URI}/m',embedded",
        "model.prompt_template='wandb-planted0003 {prompt}'",
        report=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "expected a folder or a hub id" in done.stdout
    assert (tmp_path / "s" / "report.html").is_file()
    check(tmp_path)


@pytest.mark.parametrize("how", [("seed=0", "method.lambda_init=nan"), ("-m", "seed=0,1", "no.such=1"), ("--nope",)])
def test_nor_does_one_that_is_refused(tmp_path, how):
    typed = [f"{k}={v}" for k, v in TYPED.items() if "launcher" not in k]
    done = forked("run", [*how, *typed, f"tracking.artifacts={ESCAPED}", *ONE_STEP], tmp_path, **ENVIRONMENT)
    assert done.returncode == 2
    assert not [s for s in SECRETS if s in done.stdout + done.stderr], done.stderr


def test_a_run_that_is_named_after_one(tmp_path, monkeypatch):
    """Its name stands in pages and in MLflow; of its folder's own name nothing can be taken away."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "wandb-planted0003"
    how = settings("method=grpo", *ONE_STEP, f"tracking.uri=sqlite:///{tmp_path}/m.db", "tracking.samples_every=1")
    execute(how, folder, lambda line: None, lambda: False, progress=False)
    assert (folder / "tokens" / "step_000001.html").is_file()
    with contextlib.closing(sqlite3.connect(tmp_path / "m.db")) as store:
        assert store.execute("SELECT name FROM runs").fetchall() == [("***",)]
    assert {path.name for path in holders(tmp_path)} == {folder.name}


COMMANDS = sorted(p.stem for p in (ROOT / "rlrt").glob("*.py") if "def main(" in p.read_text())


@pytest.mark.parametrize("command", [*COMMANDS, "preflight", "pretrain"])
def test_every_command_masks_what_it_prints(tmp_path, command):
    """argparse and Hydra repeat what they do not know."""
    done = forked(
        command, [f"--nope={TOKEN_URI}", "--api_key=typed-planted0010", "x=hf_planted0001"], tmp_path, **ENVIRONMENT
    )
    assert done.returncode != 0
    assert not [s for s in SECRETS if s in done.stdout + done.stderr], done.stdout + done.stderr


def test_what_is_printed_is_masked_by_line_and_otherwise_unchanged(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted0001")
    stream = MaskedStream(sys.stdout)
    stream.write("one hf_plan")
    stream.write("ted0001 two\nand\rprogress")
    assert capsys.readouterr().out == "one *** two\nand\r"
    stream.flush()
    assert capsys.readouterr().out == "progress"
    assert stream.encoding == sys.stdout.encoding
    assert not stream.isatty()


def test_threads_warnings_and_uncaught_errors_pass_the_same_stream(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted0001")
    monkeypatch.setattr(sys, "stderr", MaskedStream(sys.stderr))
    thread = threading.Thread(target=lambda: int(os.environ["HF_TOKEN"]))
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    thread.start()
    thread.join()
    sys.stderr.write(warnings.formatwarning("hf_planted0001", UserWarning, "f", 1))  # pytest records what is warned of
    try:
        raise OSError(os.environ["HF_TOKEN"])
    except OSError:
        sys.__excepthook__(*sys.exc_info())
    shown = capsys.readouterr().err
    assert shown.count("***") == 3
    assert "planted" not in shown


LINES = [
    "export HF_TOKEN=typed-planted0010",
    "authorization: Basic dXNlcjp0eXBlZA==",
    "{'Authorization': 'Bearer abc.def'}",
]


@pytest.mark.parametrize("line", LINES)
def test_shell_lines_and_headers(line):
    secret = line.split("=", 1)[-1] if "TOKEN" in line else line.split()[-1].strip("'}")
    assert secret not in masked(line)


def test_a_setup_line_is_masked_where_it_is_stored():
    typed = "hydra.launcher.setup=['export HF_TOKEN=typed-planted0010','module load x']"
    assert "planted" not in redacted([typed])[0]
    assert "module load x" in redacted([typed])[0]


def test_short_words_and_files_are_not_taken_for_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("DB_PASSWORD", "method")
    monkeypatch.setenv("SECRET_KEY", "7")
    monkeypatch.setenv("X_PASSWORD_FILE", str(tmp_path))
    assert masked(f"method=grpo 7 {tmp_path}") == f"method=grpo 7 {tmp_path}"


def test_a_value_that_repeats_a_secret_is_masked_whole():
    """Else it would be taken over with *** in the middle of a prompt."""
    remember(["+data.hf_token=typed-planted0010"])
    assert redacted({"prompt_template": "typed-planted0010 {prompt}"}) == {"prompt_template": "***"}
    assert redacted({"prompt_template": "token=abc {prompt}"}) == {"prompt_template": "token=abc {prompt}"}


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_files_have_the_rights_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    sweep = umask == 0o027
    try:
        how = ("-m", "hydra.sweep.dir=s") if sweep else ("hydra.run.dir=s",)
        done = forked("run", ["method=grpo", *ONE_STEP, "tracking=none", *how], tmp_path)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "s").rglob("job.json"))) == sweep
    for path in (tmp_path / "s").rglob("*"):
        rights = stat.S_IMODE(path.stat().st_mode)
        wanted = 0o600 if path.name == "job.json" else (0o777 if path.is_dir() else 0o666) & ~umask
        assert rights == wanted, (path, oct(rights))
