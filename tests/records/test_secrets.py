"""What is masked, what is not, and that a masked command can be typed again."""

from __future__ import annotations

import json
import logging
import subprocess

import pytest

from rlrt.errors import UserError
from rlrt.records.mlflow_uri import check_uri
from rlrt.records.secrets import MaskingFormatter, command_line, is_secret, masked, redacted, without_password
from tests.conftest import ROOT
from tests.forked import forked
from tests.helpers import ONE_STEP

SECRET = "hunter2"


def test_secrets_are_masked():
    plain = {
        "tracking": {"uri": "http://me:pw@h/x", "api_key": "k"},
        "train": {"token_budget": 5},
        "l": ["http://u:p@h"],
    }
    shown = json.dumps(redacted(plain))
    assert "pw" not in shown
    assert "u:p" not in shown
    assert redacted(plain)["tracking"]["api_key"] == "***"
    assert redacted(plain)["train"]["token_budget"] == 5
    assert redacted({"engine": {"max_new_tokens": "9"}}) == {"engine": {"max_new_tokens": "9"}}


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("train.token_budget", False),
        ("token_budget", False),
        ("engine.max_new_tokens", False),
        ("model.stop_tokens", False),
        ("method.mask_special_tokens", False),
        ("data.secretary", False),
        ("data.monkey", False),
        ("data.api_key", True),
        ("data.apiKey", True),
        ("HF_TOKEN", True),
        ("engine.token", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("user.password", True),
        ("x.password_file", True),
        ("db.sslpassword", True),
        ("url.pass", True),
        ("data.eos_token", False),
        ("data.pad_token", False),
        ("data.bypass", False),
        ("", False),
    ],
)
def test_which_names_are_secret(name, secret):
    assert is_secret(name) == secret


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("data.api_key=abc", "data.api_key=***"),
        ("tracking.uri=http://u:p@ss@host/x", "tracking.uri=http://***@host/x"),
        ("engine.max_new_tokens=48", "engine.max_new_tokens=48"),
        ("method.mask_special_tokens=true", "method.mask_special_tokens=true"),
        ("+data.auth={password:hunter2,user: me}", "+data.auth={password:***,user: me}"),
        ("+data.sep_token='<eos>'", "+data.sep_token='<eos>'"),
        (
            "model.prompt_template='token=abc http://a:b@c {prompt}'",
            "model.prompt_template='token=abc http://a:b@c {prompt}'",
        ),
        ("train.token_budget=2048", "train.token_budget=2048"),
        ("+data.hf_token='abc def\nghi'", "+data.hf_token=***"),
        (r"tracking.uri=http\://user\:hunter2@127.0.0.1\:1", r"tracking.uri=http\://***@127.0.0.1\:1"),
        ("tracking.uri='postgresql+psycopg2://u:p@h/db'", "tracking.uri='postgresql+psycopg2://***@h/db'"),
        ("tracking.uri=http://u:p/w@h", "tracking.uri=http://***@h"),
        ("data.path=http://host:8000/a@b", "data.path=http://host:8000/a@b"),
    ],
)
def test_secrets_in_what_was_typed(text, safe):
    assert redacted([text]) == [safe]


@pytest.mark.parametrize(
    "text",
    [
        "HTTPConnectionPool: http://user:hunter2@127.0.0.1:1/api failed",
        "password hunter2 refused",
        "API request to http://user:hunter2@h:1/x, again http://user:hunter2@h:1/y",
        "sent hunter2, and as bytes b'hunter2'",
        "python -m rlrt.run --password=hunter2",
    ],
)
def test_a_librarys_message_about_a_uri(text):
    assert SECRET not in masked(text, "http://user:hunter2@127.0.0.1:1")


@pytest.mark.parametrize("spelled", ["p%40ss%2Fword", "p@ss/word", r"p@ss\/word"])
def test_a_password_in_another_spelling(spelled):
    text = masked("no: p@ss/word, p%40ss%2Fword", f"http://u:{spelled}@h")
    assert text == "no: ***, ***"


SPELLED = [
    "http://u:hunter2@[::1", "http://u:hunter2@h:port/x", "http://u:hun'ter2@h", 'http://u:hun"ter2@h', "http://u:hun ter2@h",
    "https:///u:hunter2@h", "http:/u:hunter2@h", "u:hunter2@h/x", "http:\\\\u:hunter2@h", "http://u:hunter2/x@h",
    "http://u:hunter2?x@h", "http://u:hunter2#x@h", "postgresql://h/db?sslpassword=hunter2", "http://h/?pass=hunter2",
    "sqlite://u:hunter2@h", "http://hunter2@h", "http://u:hunter2@evil@h/x",
]  # fmt: skip


@pytest.mark.parametrize("uri", SPELLED)
def test_an_address_shows_no_password_however_it_is_spelled(uri):
    for shown in (without_password(uri), redacted({"uri": uri})["uri"], redacted([f"tracking.uri='{uri}'"])[0]):
        assert "***" in shown
        assert not any(part in shown for part in ("hunter2", "hun'ter2", 'hun"ter2', "hun ter2"))


REFUSED_URIS = [
    "http://u:hunter2@[::1",
    "http://u:hunter2@h:port/x",
    "u:hunter2@h/x",
    "http:/u:hunter2@h",
    "x://u:hunter2@h",
]


@pytest.mark.parametrize("uri", REFUSED_URIS)
def test_nor_does_the_sentence_that_refuses_it(uri):
    with pytest.raises(UserError) as caught:
        check_uri(uri)
    assert SECRET not in str(caught.value)


CLEAN = [
    "sqlite:////home/me@host/x.db",
    "outputs/mlflow.db",
    "http://h:80/a@b",
    "http://[::1]:5000/a@b",
    "https://h/x?y=1",
]


@pytest.mark.parametrize("uri", CLEAN)
def test_an_address_without_a_user_stays(uri):
    assert without_password(uri) == uri


def test_a_traceback_in_a_log_is_masked():
    formatter = MaskingFormatter("%(message)s")
    try:
        raise ValueError("no answer from http://u:hunter2@h")
    except ValueError as error:
        record = logging.LogRecord(
            "rlrt", logging.ERROR, "f", 1, "failed", (), (type(error), error, error.__traceback__)
        )
    shown = formatter.format(record)
    assert "Traceback" in shown
    assert SECRET not in shown


NASTY = ['p="a\nb  c"', "it's", r"back\slash", "tab\there", "bell\x07", "é{}$HOME `id` !x", "", "a=[1,2]", "\r\n'\\"]


def test_a_command_can_be_typed_again():
    """Through a real shell, and as one line: pages and terminals change control characters."""
    line = command_line(NASTY)
    assert line.isprintable()
    code = "import sys, json; print(json.dumps(sys.argv[1:]))"
    done = subprocess.run(
        ["bash", "-c", f"python3 -c '{code}' {line}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == NASTY


URI = "http://user:hunter2@127.0.0.1:9"  # nobody listens there
RUN = ("hydra.run.dir=out",)
SWEEP = ("-m", "method=grpo,rlrt", "hydra.sweep.dir=out")
REFUSED = ("-m", "seed=0", "hydra.sweep.dir=out", "method.lambda_init=nan")


@pytest.mark.parametrize("spelled", [URI, f"'{URI}'", "'http://hunter2:hunter2@127.0.0.1:9/x?token=hunter2'"])
@pytest.mark.parametrize("words", [RUN, SWEEP, REFUSED], ids=["run", "sweep", "refused"])
def test_a_password_shows_nowhere(tmp_path, spelled, words):
    """Terminal, log, manifest, record: of a run, of a sweep, of a sweep that is refused, while MLflow is away."""
    done = forked(
        "run",
        [*words, *ONE_STEP, f"tracking.uri={spelled}"],
        tmp_path,
        report=True,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert done.returncode == (2 if words == REFUSED else 0), done.stderr
    assert SECRET not in done.stdout + done.stderr
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    holding = {p for p in files if SECRET.encode() in p.read_bytes()}
    assert {p.name for p in holding} <= {"job.json"}  # what a job must know to run, for its owner alone
    assert all(p.stat().st_mode & 0o077 == 0 for p in holding)
    if done.returncode == 0:
        assert "MLflow at http://***@127.0.0.1:9" in done.stderr
        assert any("***" in p.read_text() for p in files if p.name == "manifest.json")


def test_a_uri_that_is_none_is_refused_at_once(tmp_path):
    done = forked("run", [*ONE_STEP, "tracking.uri='http://u:hunter2@[::1'"], tmp_path)
    assert done.returncode == 2
    assert SECRET not in done.stderr
    assert done.stderr.startswith("error: tracking.uri: expected HOST:PORT")
    assert not (tmp_path / "outputs").exists()
