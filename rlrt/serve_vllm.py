"""``python -m rlrt.serve_vllm --model FOLDER``: start vLLM's own server on 127.0.0.1 for ``engine=vllm_server``.

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
from rlrt.engines.vllm_common import EXTENSION, FILE, LOGPROBS, check_installed, head_overrides
from rlrt.errors import UserError
from rlrt.paths import resolve_path
from rlrt.records.streams import mask_streams

HOST = "127.0.0.1"
"""The server accepts connections only from this machine, since the routes for training have no password."""
CPU = ["--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(2**30)]
"""Options for a vLLM without a GPU."""


def check_port(port: int) -> None:
    """Refuse a port that cannot be used.

    Raises:
        UserError: naming the port.
    """
    try:
        probed(HOST, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port: {port} on {HOST} cannot be used ({error}); give another one.") from None


def command(model: str, port: int, dtype: str, more: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the server's command and its environment.

    Raises:
        UserError: for a model that does not exist, a vLLM that is missing or of another release, or a port in use.
    """
    version = check_installed("python -m rlrt.serve_vllm")
    source = resolve_path(model)
    if not (Path(source) / "config.json").is_file() and source.count("/") != 1:
        raise UserError(f"--model: expected a folder with a config.json, or a hub id, got {model!r}.")
    check_port(port)
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", source, "--host", HOST, "--port", str(port), "--dtype", dtype, "--generation-config", "vllm"]
    argv += ["--logprobs-mode", LOGPROBS, "--worker-extension-cls", EXTENSION, "--enable-scale-out"]
    argv += ["--weight-transfer-config", json.dumps({"backend": FILE}), "--enable-prefix-caching"]
    if overrides := head_overrides(dtype):
        argv += ["--hf-overrides", json.dumps(overrides)]
    argv += ["--disable-uvicorn-access-log", *(CPU if "cpu" in version else []), *more]
    required = {"VLLM_SERVER_DEV_MODE": "1"}  # the routes for training
    return argv, {"VLLM_NO_USAGE_STATS": "1", **os.environ, **required}


def main() -> None:
    """Check the options, then replace this process by the server."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.serve_vllm", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or hub id, as model.path; 'embedded' is the tiny Qwen3")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="the run's dtype")
    options, more = parser.parse_known_args()

    def act() -> None:
        argv, environment = command(options.model, options.port, options.dtype, more)
        os.execve(argv[0], argv, environment)

    sys.exit(guarded(act))


if __name__ == "__main__":
    main()
