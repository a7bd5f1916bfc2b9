"""``python -m rlrt.serve_vllm --model FOLDER``: vLLM's own server on 127.0.0.1, as ``engine=vllm_server`` needs it.

Any further option of ``vllm serve`` may follow, for example ``--tensor-parallel-size 2``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rlrt.config.refused import guarded
from rlrt.distributed.ports import probed
from rlrt.engines.vllm_common import EXTENSION, FILE, LOGPROBS, check_installed
from rlrt.errors import UserError
from rlrt.paths import resolve_path

HOST = "127.0.0.1"
"""Nobody but this machine is served: the routes for training have no password."""
CPU = ["--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(2**30)]
"""Options of a vLLM without a GPU."""


def check_port(port: int) -> None:
    """Refuse a port in use.

    Raises:
        UserError: naming it.
    """
    try:
        probed(HOST, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port: {port} on {HOST} cannot be had ({error}); give another one.") from None


def command(model: str, port: int, dtype: str, more: list[str]) -> tuple[list[str], dict[str, str]]:
    """The server's command and its environment.

    Raises:
        UserError: for a model that is not there, a vLLM that is missing or of another release, a port in use.
    """
    version = check_installed("python -m rlrt.serve_vllm")
    source = resolve_path(model)
    if not (Path(source) / "config.json").is_file() and source.count("/") != 1:
        raise UserError(f"--model: expected a folder with a config.json, or a hub id, got {model!r}.")
    check_port(port)
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    words += ["--model", source, "--host", HOST, "--port", str(port), "--dtype", dtype, "--generation-config", "vllm"]
    words += ["--logprobs-mode", LOGPROBS, "--worker-extension-cls", EXTENSION, "--enable-scale-out"]
    words += ["--weight-transfer-config", json.dumps({"backend": FILE}), "--enable-prefix-caching"]
    words += ["--disable-uvicorn-access-log", *(CPU if "cpu" in version else []), *more]
    wanted = {"VLLM_SERVER_DEV_MODE": "1"}  # the routes for training
    return words, {"VLLM_NO_USAGE_STATS": "1", **os.environ, **wanted}


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(prog="python -m rlrt.serve_vllm", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or hub id, as model.path; 'embedded' is the tiny one")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="the run's dtype")
    given, more = parser.parse_known_args()

    def act() -> None:
        words, environment = command(given.model, given.port, given.dtype, more)
        os.execve(words[0], words, environment)

    sys.exit(guarded(act))


if __name__ == "__main__":
    main()
