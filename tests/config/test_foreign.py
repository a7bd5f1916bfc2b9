"""Reading somebody's run runs none of that person's code and resolves nothing of its config."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlrt.config.compose import composed
from rlrt.config.rerun import expand
from rlrt.errors import UserError
from rlrt.execution.execute import execute
from rlrt.preflight.plan import plan
from rlrt.records.stored_config import config_text, stored_config
from tests.forked import forked
from tests.helpers import ONE_STEP, settings

SECRET = "s3cr3t-of-this-machine"
SMALL = (*ONE_STEP, "tracking=none")
EVIL = """
from pathlib import Path
Path("MARK").touch()
from rlrt.tasks.countdown import Countdown as Task
from rlrt.engines.hf import HfEngine as Engine
from rlrt.methods.rlrt import TeacherWeight as Credit
def judge(expected, response):
    return True
"""


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "gift"
    execute(settings("method=rlrt", *SMALL), folder, lambda line: None, lambda: False, progress=False)
    return folder


@pytest.fixture
def gift(once, tmp_cwd):
    """A copy of a run with a module beside its papers that leaves a mark when it is imported."""
    folder = Path(shutil.copytree(once, tmp_cwd / "gift"))
    (folder / "evil.py").write_text(EVIL.replace("MARK", str(tmp_cwd / "ran")))
    return folder


def change(folder: Path, key: str, value: object) -> None:
    """Set a value of the stored config."""
    plain = stored_config(folder)
    section, name = key.split(".")
    plain[section][name] = value
    (folder / "config.yaml").write_text(config_text(plain))


CODE = {
    "data._target_": "gift.evil.Task",
    "engine._target_": "gift.evil.Engine",
    "method.credit": "gift.evil.Credit",
    "method.auxiliary": ["gift.evil.Credit"],
}
READERS = {
    "evaluate": ["gift"],
    "analyze": ["gift"],
    "run": ["+from=gift", "seed=3"],
}


@pytest.mark.parametrize("reader", READERS)
def test_its_code_is_not_run(gift, tmp_cwd, reader):
    change(gift, "data._target_", CODE["data._target_"])
    done = forked(reader, READERS[reader], tmp_cwd)
    assert done.returncode == 2, done.stdout
    assert not (tmp_cwd / "ran").exists()
    assert "data._target_=gift.evil.Task" in done.stderr
    assert "--trust" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_preflight_runs_none_either(gift, tmp_cwd):
    change(gift, "data._target_", CODE["data._target_"])
    with pytest.raises(UserError, match="code from outside rlrt"):
        plan(["+from=gift"], several=False)
    assert not (tmp_cwd / "ran").exists()


@pytest.mark.parametrize("key", CODE)
def test_wherever_it_is_named(gift, tmp_cwd, key):
    change(gift, key, CODE[key])
    with pytest.raises(UserError, match="code from outside rlrt"):
        expand(["+from=gift"])
    assert not (tmp_cwd / "ran").exists()


def test_a_verifier_too_of_the_data_and_of_a_suite(gift, tmp_cwd):
    for key, value in (("data.verifier", "gift.evil.judge"), ("eval.suites", {"a": {"verifier": "gift.evil.judge"}})):
        change(gift, key, value)
        with pytest.raises(UserError, match="judge"):
            expand(["+from=gift"])


def test_what_was_typed_for_it_names_none_either(gift, tmp_cwd):
    """The manifest's overrides count only as far as the stored config has them."""
    papers = json.loads((gift / "manifest.json").read_text())
    papers["overrides"] += [
        "data._target_=gift.evil.Task",
        "+data.evil=gift.evil.Task",
        "data=../../gift/evil",
        5,
        None,
    ]
    (gift / "manifest.json").write_text(json.dumps(papers))
    again = expand(["+from=gift"])
    assert "evil" not in " ".join(again)
    assert OmegaConf.to_container(composed(again))["data"]["_target_"] == "rlrt.tasks.countdown.Countdown"


def test_code_that_one_knows_is_run_on_request(gift, tmp_cwd):
    change(gift, "data._target_", CODE["data._target_"])
    done = forked("evaluate", ["gift", "--trust"], tmp_cwd)
    assert done.returncode == 0, done.stderr
    assert (tmp_cwd / "ran").exists()
    (tmp_cwd / "ran").unlink()
    done = forked("run", ["+from=gift", "seed=3", "--trust", "hydra.run.dir=again"], tmp_cwd)
    assert done.returncode == 0, done.stderr
    assert (tmp_cwd / "ran").exists()


def test_what_is_typed_now_replaces_it(gift, tmp_cwd):
    change(gift, "data._target_", CODE["data._target_"])
    assert "data._target_=rlrt.tasks.countdown.Countdown" in expand(
        ["+from=gift", "data._target_=rlrt.tasks.countdown.Countdown"]
    )
    assert "data=countdown" in expand(["+from=gift", "data=countdown"])
    assert not (tmp_cwd / "ran").exists()


def test_sync_needs_no_class_of_it(gift, tmp_cwd, uri):
    for key, value in CODE.items():
        change(gift, key, value)
    change(gift, "tracking.uri", uri)
    (gift / "summary.json").write_text(json.dumps({"state": "finished", "mlflow_complete": False}))
    done = forked("sync", ["gift"], tmp_cwd)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs" in done.stdout
    assert not (tmp_cwd / "ran").exists()


SUITE = "a:{{path:'gift/p.jsonl',verifier:'gift.evil.judge',instruction:'{text}'}},b"


@pytest.mark.parametrize("way", ["++eval.suites={a:1}", "eval.suites={a:1}", "+eval.suites.x=1"])
def test_a_key_that_is_grammar_smuggles_nothing_in(gift, tmp_cwd, monkeypatch, way):
    """A mapping's key cannot be quoted in Hydra's grammar: written as it is, one key would become several."""
    monkeypatch.setenv("RLRT_TEST_SECRET", SECRET)
    change(gift, "eval.suites", {SUITE.format(text=PLANTED): {"path": "p.jsonl", "verifier": "exact"}})
    papers = json.loads((gift / "manifest.json").read_text())
    papers["overrides"] += [way]
    (gift / "manifest.json").write_text(json.dumps(papers))
    try:
        again = json.dumps(OmegaConf.to_container(composed(expand(["+from=gift"])), resolve=True))
    except UserError as error:
        again = str(error)
    assert "gift.evil" not in again or "names code from outside" in again or "expected keys of letters" in again
    assert SECRET not in again
    done = forked("evaluate", ["gift"], tmp_cwd, RLRT_TEST_SECRET=SECRET)
    assert not (tmp_cwd / "ran").exists()
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("reader", ["sync", "evaluate", "register"])
def test_a_server_of_its_choice_gets_no_credentials(gift, tmp_cwd, listener, reader):
    change(gift, "tracking.uri", f"http://127.0.0.1:{listener}")
    (gift / "summary.json").write_text(json.dumps({"state": "finished", "mlflow_complete": False}))
    words = {"register": ["gift", "m"]}.get(reader, ["gift"])
    done = forked(reader, words, tmp_cwd, MLFLOW_TRACKING_TOKEN=SECRET)
    assert done.returncode == (1 if reader == "sync" else 2), done.stderr
    assert "MLFLOW_TRACKING_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Listener.asked
    if reader != "register":  # which has nothing to say of a run that MLflow never knew
        uri = ["--uri", f"http://127.0.0.1:{listener}"] if reader == "sync" else ["--trust"]
        forked(reader, [*words, *uri], tmp_cwd, MLFLOW_TRACKING_TOKEN=SECRET, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        assert Listener.asked  # on request it is spoken to


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("manifest.json", {"choices": []}), ("manifest.json", {"choices": "x"}), ("manifest.json", {"seed": "x"}),
        ("manifest.json", {"overrides": 5}), ("summary.json", {"changed": "abc"}), ("summary.json", {"changed": None}),
        ("job.json", {"plain": []}), ("job.json", {"plain": {"tracking": 5, "train": []}}), ("job.json", {"tags": []}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reader", ["sync", "report", "status", "evaluate"])
def test_papers_of_a_wrong_shape_are_no_traceback(gift, tmp_cwd, uri, reader, file, values):
    sweep = tmp_cwd / "sweep"
    shutil.copytree(gift, sweep / "job")
    (sweep / "job" / "job.json").write_text(json.dumps({"plain": {}, "identity": "x"}))
    change(sweep / "job", "tracking.uri", uri)
    path = sweep / "job" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    done = forked(reader, [str(sweep / "job" if reader == "evaluate" else sweep)], tmp_cwd)
    assert "Traceback" not in done.stderr, done.stderr[-2000:]


class Listener(http.server.BaseHTTPRequestHandler):
    """Keeps what it is asked for."""

    asked: list[str] = []  # noqa: RUF012

    def answer(self) -> None:
        self.asked.append(
            self.path + str(self.headers) + str(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        )
        self.send_error(404)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def listener():
    Listener.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


PLANTED = "${oc.env:RLRT_TEST_SECRET}"


@pytest.mark.parametrize("reader", ["sync", "evaluate"])
def test_the_environment_is_not_read_for_it(gift, tmp_cwd, listener, reader):
    change(gift, "tracking.uri", f"http://127.0.0.1:{listener}/{PLANTED}")
    change(gift, "tracking.experiment", PLANTED)
    change(gift, "teacher.template", "{prompt}|{solution}" + PLANTED)
    (gift / "summary.json").write_text(json.dumps({"state": "finished", "mlflow_complete": False}))
    done = forked(reader, ["gift"], tmp_cwd, RLRT_TEST_SECRET=SECRET, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr + "".join(Listener.asked)
    assert Listener.asked  # it was spoken to, so the test could fail
    left = [p.read_bytes() for p in tmp_cwd.rglob("*") if p.is_file()]
    assert not any(SECRET.encode() in content for content in left)


@pytest.mark.parametrize("text", [PLANTED, "a${nope}b", "\\${seed}", "${", "${seed}${seed}", "'${seed}'"])
def test_its_texts_stay_texts(gift, tmp_cwd, monkeypatch, text):
    monkeypatch.setenv("RLRT_TEST_SECRET", SECRET)
    change(gift, "teacher.template", "{prompt}{solution}" + text)
    again = OmegaConf.to_container(composed(expand(["+from=gift"])), resolve=True)
    assert again["teacher"]["template"] == "{prompt}{solution}" + text


def test_an_override_of_ones_own_run_that_interpolates_comes_back_as_it_ran(tmp_cwd):
    typed = ("teacher.sync_steps=${train.steps}", *SMALL)
    execute(settings(*typed), tmp_cwd / "mine", lambda line: None, lambda: False, progress=False)
    assert "teacher.sync_steps=1" in expand(["+from=mine"])


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text", ["a: [1", "- 1\n", "5", "", BOMB, "a: 1\n" * 300_000, "\x00", "!!python/object:os.system {}"]
)
def test_a_config_that_is_none_is_one_sentence(gift, text):
    (gift / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml cannot be read as a run's config") as caught:
        expand(["+from=gift"])
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
