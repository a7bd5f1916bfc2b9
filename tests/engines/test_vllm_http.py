"""engine=vllm_server against a server that says what it is told, and the command that starts a real one."""

from __future__ import annotations

import http.server
import json
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlrt import serve_vllm
from rlrt.engines import vllm_common
from rlrt.engines.vllm_common import shape_of
from rlrt.errors import UserError
from rlrt.model.load import load
from tests.conftest import ROOT
from tests.helpers import settings


@pytest.fixture(scope="module")
def model():
    return load("embedded", None, "sdpa")[0]


# a server


class Fake:
    """A server that answers as it is told: path -> (status, value), or a function of the body that gives them."""

    def __init__(self, model):
        shape = shape_of(model.config)
        about = {
            "shape": shape,
            "dtype": "float32",
            "logprobs": "processed_logprobs",
            "backend": "rlrt_sent",
            "max_model_len": 60,
            "broken": False,
        }
        self.about, self.asked, self.label = about, [], "default"
        self.answers = {
            "/version": (200, {"version": "0.32.0+cpu"}),
            "/collective_rpc": lambda body: (200, {"results": [self.about]}),
            "/start_weight_update": (200, {}),
            "/update_weights": (200, {}),
            "/finish_weight_update": self.finish,
            "/reset_prefix_cache": (200, {"success": True}),
            "/weight_info": lambda body: (200, {"weight_version": self.label}),
            "/inference/v1/generate": self.generate,
            "/abort_requests": (200, {}),
        }

    def finish(self, body):
        self.label = body["weight_version"]
        return 200, {}

    def generate(self, body):
        content = [{"token_id": 5, "logprob": -0.25}, {"token_id": 2, "logprob": -0.5}]
        spans = [{"version": self.label, "start": 0, "end": 2}]
        choice = {
            "token_ids": [5, 2],
            "logprobs": {"content": content},
            "finish_reason": "stop",
            "weight_versions": spans,
        }
        return 200, {"choices": [choice]}

    def answer(self, path, body):
        self.asked.append(path)
        found = self.answers.get(path, (404, {"detail": "Not Found"}))
        return found(body) if callable(found) else found


@pytest.fixture
def fake(model):
    made = Fake(model)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
            status, value = made.answer(self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(value.encode() if isinstance(value, str) else json.dumps(value).encode())

        do_POST = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def engine_of(url, *more):
    return settings("engine=vllm_server", f"engine.url={url}", *more).engine


def test_weights_travel_in_a_private_file_that_does_not_stay(fake, model, tmp_path):
    seen = []

    def update(body):
        file = Path(body["update_info"]["path"])
        seen.append((file, stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)))
        return 200, {}

    fake.answers["/update_weights"] = update
    engine = engine_of(fake.url, f"engine.transfer_dir={tmp_path}")
    assert engine.longest() is None
    engine.load(model, [2], 3)
    assert engine.longest() == 60  # as the server says
    ((file, mode, folder_mode),) = seen
    assert (mode, folder_mode, file.parent.parent) == (0o600, 0o700, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert fake.label.endswith("-3")
    asked = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache", "/weight_info"]
    assert fake.asked == ["/version", "/collective_rpc", *asked]
    engine.load(model, [2], 3)
    assert len(fake.asked) == 7
    ((_, _, found),) = engine.sample([[1, 3]], [[9]])
    assert (found.token_ids, found.logp_T.tolist(), found.truncated) == ([5, 2], [-0.25, -0.5], False)


def test_nobody_answers(model):
    with pytest.raises(UserError, match=r"got no answer \(\[Errno 111\] .*start one with python -m rlrt\.serve_vllm"):
        engine_of("http://127.0.0.1:9").load(model, [2], 0)


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("/version", (200, {"version": "0.31.2"}), r"expected a vLLM 0\.32 server at .*, found 0\.31\.2; start one"),
        (
            "/version",
            (200, "<html>"),
            r"expected a vLLM 0\.32 server at .*, found an answer that is not vLLM's \(.*no JSON",
        ),
        ("/version", (404, {}), r"found an answer that is not vLLM's \(/version: HTTP 404"),
        (
            "/collective_rpc",
            (404, {}),
            r"runs without the routes for training .*start it with python -m rlrt\.serve_vllm",
        ),
        ("/collective_rpc", (500, {}), r"runs without rlrt's worker extension"),
        (
            "/update_weights",
            (500, {"detail": "boom"}),
            r"an update .* failed \(/update_weights: HTTP 500.*boom.*restart it",
        ),
        ("/reset_prefix_cache", (200, {"success": False}), r"an update .* failed \(vLLM kept its prefix cache"),
    ],
)
def test_a_server_of_no_use_is_refused(fake, model, path, answer, says):
    fake.answers[path] = answer
    with pytest.raises(UserError, match=says):
        engine_of(fake.url).load(model, [2], 0)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"dtype": "bfloat16"}, r"expected dtype=float32 of the vLLM server at .*, found bfloat16; .*--dtype float32"),
        ({"backend": None}, r"expected backend=rlrt_sent of the vLLM server"),
        ({"logprobs": "raw_logprobs"}, r"expected logprobs=processed_logprobs"),
        ({"shape": {"vocab_size": 9}}, r"has another model: expected vocab_size=112 as in model\.path, found 9"),
        ({"broken": True}, r"was cut off, which leaves them undefined; restart it"),
    ],
)
def test_a_server_for_something_else_is_refused(fake, model, about, says):
    fake.about |= about
    with pytest.raises(UserError, match=says):
        engine_of(fake.url).load(model, [2], 0)


def test_a_failed_update_is_not_tried_again(fake, model):
    engine = engine_of(fake.url)
    engine.load(model, [2], 0)
    fake.answers["/finish_weight_update"] = (500, {})
    for _ in range(2):
        with pytest.raises(UserError, match="which leaves them undefined; restart it"):
            engine.load(model, [2], 1)
    assert fake.asked.count("/finish_weight_update") == 2


def test_responses_by_other_weights_and_errors_end_the_step(fake, model):
    engine = engine_of(fake.url)
    engine.load(model, [2], 0)
    fake.label = "somebody-7"
    with pytest.raises(UserError, match="vLLM's are by somebody-7"):
        list(engine.sample([[1, 3]] * 2, [[1, 2], [3, 4]]))
    fake.answers["/inference/v1/generate"] = (400, {"error": "too long"})
    with pytest.raises(RuntimeError, match=r"/inference/v1/generate: HTTP 400.*too long"):
        list(engine.sample([[1, 3]], [[1, 2]]))


# the server's command


@pytest.mark.parametrize(
    ("version", "words", "says"),
    [
        (None, ("embedded", 0), r"rlrt\.serve_vllm needs vLLM 0\.32, which is not installed"),
        ("0.31.0", ("embedded", 0), r"needs vLLM 0\.32, and 0\.31\.0 is installed"),
        (
            "0.32.1",
            ("/nowhere/at/all", 0),
            r"--model: expected a folder with a config\.json, or a hub id, got '/nowhere",
        ),
        ("0.32.1", ("embedded", 70000), r"--port: 70000 on 127\.0\.0\.1 cannot be used"),
    ],
)
def test_the_command_refuses_before_anything_is_loaded(monkeypatch, version, words, says):
    monkeypatch.setattr(vllm_common, "installed_version", lambda: version)
    with pytest.raises(UserError, match=says):
        serve_vllm.command(*words, "float32", [])


def test_the_command_is_vllms_own_with_what_training_needs(monkeypatch):
    monkeypatch.setattr(vllm_common, "installed_version", lambda: "0.32.0")
    words, environment = serve_vllm.command("embedded", 0, "bfloat16", ["--tensor-parallel-size", "2"])
    assert words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert words[-6:] == ["--tensor-parallel-size", "2", "--host", "127.0.0.1", "--port", "0"]
    assert words[words.index("--hf-overrides") + 1] == '{"head_dtype": "float32"}'
    assert "--enforce-eager" not in words
    assert (words[words.index("--host") + 1], words[words.index("--dtype") + 1]) == ("127.0.0.1", "bfloat16")
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    monkeypatch.setattr(vllm_common, "installed_version", lambda: "0.32.0+cpu")
    assert "--enforce-eager" in serve_vllm.command("embedded", 0, "float32", [])[0]
    for other in (["--hos", "0.0.0.0"], ["--host=0.0.0.0"], ["--config", "file.yaml"]):  # the last word is ours
        assert serve_vllm.command("embedded", 0, "float32", other)[0][-4:] == ["--host", "127.0.0.1", "--port", "0"]


@pytest.mark.skipif(vllm_common.installed_version() is not None, reason="vLLM is here")
def test_the_command_says_it_in_one_sentence():
    words = [sys.executable, "-m", "rlrt.serve_vllm", "--model", "embedded"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: python -m rlrt.serve_vllm needs vLLM 0.32")
    assert done.stderr.count("\n") == 1
