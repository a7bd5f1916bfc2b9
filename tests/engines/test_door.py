"""Who does not send a server's token gets no answer, on any route; and who may see the token."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from rlrt import serve_vllm
from rlrt.config.rerun import refuse_to_send_token
from rlrt.engines import vllm_common
from rlrt.engines.door import TOKEN, TOKEN_FILE, Door, given_token
from rlrt.errors import UserError
from rlrt.records.secrets import redacted

SECRET = "a-token-of-30-characters-it-is"


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    for name in (TOKEN, TOKEN_FILE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def answer(scope, monkeypatch, given=SECRET):
    """What the door sends, and whether a request came through."""
    monkeypatch.setenv(TOKEN, given)
    passed, sent = [], []

    async def app(scope, receive, send):
        passed.append(scope)

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    asyncio.run(Door(app)(scope, receive, send))
    return sent, bool(passed)


ROUTES = """/collective_rpc /start_weight_update /update_weights /finish_weight_update /init_weight_transfer_engine
/abort_requests /version /weight_info /inference/v1/generate /v1/models /health /metrics /docs /nowhere"""


@pytest.mark.parametrize("path", ROUTES.split())
def test_no_route_answers_without_the_token(path, monkeypatch):
    for method in ("GET", "POST", "OPTIONS", "HEAD"):
        scope = {"type": "http", "path": path, "method": method, "headers": []}
        (start, body), passed = answer(scope, monkeypatch)
        assert (start["status"], passed) == (401, False)
        assert SECRET.encode() not in body["body"]
        right = {**scope, "headers": [(b"authorization", f"Bearer {SECRET}".encode())]}
        assert answer(right, monkeypatch) == ([], True)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + SECRET[:-1].encode())],
        [(b"authorization", SECRET.encode())],
        [(b"authorization", b"Basic " + SECRET.encode())],
        [(b"authorization", b"Bearer \xff\xfe")],
        [(b"authorization", b"")],
        [(b"x-api-key", SECRET.encode())],
        [(b"authorization", b"Bearer " + SECRET.encode())] * 2,
    ],
)
def test_what_is_almost_the_token_is_none(headers, monkeypatch):
    (start, _), passed = answer({"type": "http", "path": "/version", "headers": headers}, monkeypatch)
    assert (start["status"], passed) == (401, False)


def test_websockets_are_closed_and_the_servers_own_start_passes(monkeypatch):
    sent, passed = answer({"type": "websocket", "path": "/v1/realtime", "headers": []}, monkeypatch)
    assert (sent, passed) == ([{"type": "websocket.close", "code": 1008}], False)
    assert answer({"type": "lifespan"}, monkeypatch) == ([], True)


@pytest.mark.parametrize(
    "given", ["", "short", "with a space in the middle", "ümlauts-are-no-header-text", "new\nline-in-the-token"]
)
def test_a_door_without_a_good_token_is_no_door(given, monkeypatch):
    with pytest.raises(UserError, match="expected a token of at least 16 printable ASCII characters") as caught:
        answer({"type": "lifespan"}, monkeypatch, given)
    assert not given or given not in str(caught.value)


# who is given it


def test_a_token_comes_by_the_environment_or_by_a_file_of_ones_own(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    assert given_token(None, {}) is None
    assert given_token(None, {TOKEN: SECRET}) == SECRET
    assert given_token(None, {TOKEN_FILE: str(file)}) == SECRET
    assert given_token(str(file), {}) == SECRET
    file.chmod(0o640)
    with pytest.raises(UserError, match=r"--token-file: .* may be read by others \(mode 640\); chmod 600"):
        given_token(str(file), {})
    with pytest.raises(UserError, match=r"RLRT_SERVER_TOKEN_FILE: expected a file with a token, got .*nowhere"):
        given_token(None, {TOKEN_FILE: str(tmp_path / "nowhere")})


@pytest.fixture
def vllm_is_here(monkeypatch):
    monkeypatch.setattr(vllm_common, "installed_version", lambda: "0.32.0")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", ""])
def test_other_machines_are_served_with_a_token_alone(vllm_is_here, host):
    with pytest.raises(
        UserError, match=r"--host: .* needs a token; set RLRT_SERVER_TOKEN or --token-file, or leave --host"
    ):
        serve_vllm.command("embedded", 0, "float32", [], host)


def test_a_token_makes_the_server_ask_for_it_and_is_on_no_command_line(vllm_is_here):
    words, environment = serve_vllm.command("embedded", 0, "float32", [], "0.0.0.0", SECRET)
    assert words[words.index("--middleware") + 1] == "rlrt.engines.door.Door"
    assert words[words.index("--host") + 1] == "0.0.0.0"
    assert environment[TOKEN] == SECRET
    assert SECRET not in " ".join(words)
    words, environment = serve_vllm.command("embedded", 0, "float32", [])
    assert "--middleware" not in words
    assert TOKEN not in environment


def test_a_token_is_masked_where_it_is_named():
    assert json.dumps(redacted({TOKEN: SECRET, "engine": {"server_token": SECRET}})).count(SECRET) == 0


def test_a_strangers_run_does_not_get_this_environments_token(tmp_path, monkeypatch):
    plain = {"engine": {"url": "http://stranger:1"}}
    refuse_to_send_token(plain, tmp_path, set())
    monkeypatch.setitem(os.environ, TOKEN, SECRET)
    with pytest.raises(
        UserError, match=r"engine\.url: .* http://stranger:1, which would be sent RLRT_SERVER_TOKEN .*--trust"
    ):
        refuse_to_send_token(plain, tmp_path, set())
    refuse_to_send_token(plain, tmp_path, {"engine.url"})
    refuse_to_send_token({"engine": {"url": None}}, tmp_path, set())
    refuse_to_send_token({"engine": {}}, tmp_path, set())
