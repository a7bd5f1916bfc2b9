"""``python -m rlrt.serve_vllm --model FOLDER``: start vLLM's own server for ``engine=vllm_server``, on 127.0.0.1 by default.

With a token (RLRT_SERVER_TOKEN, or --token-file) every route asks for it; ``--host`` beyond this machine needs one. Any further
option of ``vllm serve`` may follow, for example ``--tensor-parallel-size 2``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rlrt.config.refused import guarded
from rlrt.distributed.ports import probed
from rlrt.engines.door import TOKEN, given_token
from rlrt.engines.own_server import HERE, is_loopback
from rlrt.engines.vllm_common import EXTENSION, LOGPROBS, SENT, check_installed, head_overrides
from rlrt.errors import UserError
from rlrt.paths import resolve_path
from rlrt.records.streams import mask_streams

DOOR = "rlrt.engines.door.Door"
"""Import path of the middleware that asks for the token."""
CPU = ["--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(2**30)]
"""Options for a vLLM without a GPU."""


def check_address(host: str, port: int, token: str | None) -> None:
    """Refuse a port that cannot be used, and other machines without a token.

    Raises:
        UserError: naming the option.
    """
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host: {host} lets other machines replace the weights and call any method of the workers, so it needs a token; "
            f"set {TOKEN} or --token-file, or leave --host out."
        )
    try:
        probed(host, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port: {port} on {host} cannot be used ({error}); give another one.") from None


def command(
    model: str, port: int, dtype: str, more: list[str], host: str = HERE, token: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the server's command and its environment, which alone has the token.

    Raises:
        UserError: for a model that does not exist, a vLLM that is missing or of another release, a port in use, or a server for
            other machines without a token.
    """
    version = check_installed("python -m rlrt.serve_vllm")
    source = resolve_path(model)
    if not (Path(source) / "config.json").is_file() and source.count("/") != 1:
        raise UserError(f"--model: expected a folder with a config.json, or a hub id, got {model!r}.")
    check_address(host, port, token)
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", source, "--dtype", dtype, "--generation-config", "vllm"]
    argv += ["--logprobs-mode", LOGPROBS, "--worker-extension-cls", EXTENSION, "--enable-scale-out"]
    argv += ["--weight-transfer-config", json.dumps({"backend": SENT}), "--enable-prefix-caching"]
    if overrides := head_overrides(dtype):
        argv += ["--hf-overrides", json.dumps(overrides)]
    if token is not None:
        argv += ["--middleware", DOOR]
    argv += ["--disable-uvicorn-access-log", *(CPU if "cpu" in version else []), *more]
    argv += [
        "--host",
        host,
        "--port",
        str(port),
    ]  # last, so that no other option (--config, an abbreviation) decides it
    required = {"VLLM_SERVER_DEV_MODE": "1"}  # the routes for training
    if token is not None:
        required[TOKEN] = token
    return argv, {"VLLM_NO_USAGE_STATS": "1", **os.environ, **required}


def main() -> None:
    """Check the options and the token, then replace this process by the server."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.serve_vllm", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or hub id, as model.path; 'embedded' is the tiny Qwen3")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default=HERE, help="address of this machine to listen on")
    parser.add_argument("--token-file", help=f"file that holds the token, if {TOKEN} does not; only you may read it")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="the run's dtype")
    options, more = parser.parse_known_args()

    def act() -> None:
        argv, environment = command(
            options.model, options.port, options.dtype, more, options.host, given_token(options.token_file)
        )
        os.execve(argv[0], argv, environment)

    sys.exit(guarded(act))


if __name__ == "__main__":
    main()
