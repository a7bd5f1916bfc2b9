"""rlrt.ui: the right store, on 127.0.0.1 only, the experiment in front; every refusal one sentence."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from rlrt.errors import UserError
from rlrt.execution.execute import execute
from rlrt.ui import free_port, page_of, store
from tests.helpers import settings


def test_it_serves_the_experiment_to_this_machine_alone(tmp_cwd, uri):
    small = ("train.steps=1", "train.prompts_per_step=2", "eval.prompts=2")
    made = settings(*small, f"tracking.uri={uri}", "tracking.experiment=mine")
    execute(made, tmp_cwd / "run", lambda line: None, lambda: False, progress=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "rlrt.ui", "--uri", uri, "--experiment", "mine", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = next(text for text in process.stdout if text.startswith("http"))
        match = re.fullmatch(
            r"http://127\.0\.0\.1:(\d+)/#/experiments/(\d+)/runs\?workflowType=machine_learning\n", line
        )
        assert match is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{match[1]}/health", timeout=10) as answer:
            assert answer.status == 200
        outside = next(
            (
                a[4][0]
                for a in socket.getaddrinfo(socket.gethostname(), None)
                if not a[4][0].startswith(("127.", "::1"))
            ),
            None,
        )
        if outside is not None:
            with pytest.raises(OSError):
                urllib.request.urlopen(f"http://{outside}:{match[1]}/health", timeout=5)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", int(match[1])), timeout=2).close()
    assert os.path.exists(uri.removeprefix("sqlite:///"))


def test_refusals(tmp_cwd):
    with pytest.raises(UserError, match=r"expected a store of runs in .*nothing\.db, found none"):
        store("sqlite:///nothing.db")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"--port: \d+ is in use"):
            free_port(taken.getsockname()[1])


def test_an_experiment_that_is_not_there_yet_shows_the_front_page(uri):
    assert page_of(uri, "nothing") == ("/", None)
