"""Rollouts by vLLM in a separate process (other GPUs, another environment, another machine), over HTTP.

``python -m rlrt.serve_vllm`` starts the server. Weights travel as safetensors files in a folder that both processes can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rlrt.distributed.sharding import is_sharded
from rlrt.distributed.world import ALONE, World
from rlrt.engines.vllm_common import (
    FILE,
    LOGPROBS,
    RELEASE,
    VllmKeys,
    dtype_name,
    in_chunks,
    is_supported,
    parameters,
    response,
    shape_of,
    transfer,
)
from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.model.lora import named_weights
from rlrt.types import Generation, Sampling

START = "python -m rlrt.serve_vllm --model FOLDER"
SHARED_MEMORY = Path("/dev/shm")
CHUNK = 2**31
"""Maximum bytes of weights in one file."""


class Refused(RuntimeError):
    """The server answered with an error.

    Attributes:
        status: HTTP status code.
    """

    def __init__(self, path: str, status: int, text: str) -> None:
        super().__init__(f"{path}: HTTP {status}: {text[:300]}")
        self.status = status


class Server:
    """Client of a vLLM server; its methods have the names of ``vllm.LLM``'s.

    Args:
        url: the server's URL.
        timeout_s: longest wait for an answer, seconds.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy

    def ask(self, path: str, body: Any = None, *, post: bool = True) -> Any:
        """Send one request and return the answer.

        Args:
            path: path of the route.
            body: request body, sent as JSON.
            post: True for POST, False for GET.

        Returns:
            the parsed JSON answer.

        Raises:
            Refused: for an error status, or an answer that is not JSON.
            UserError: if no server answers.
        """
        data = json.dumps({} if body is None else body).encode() if post else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                text = answer.read()
            return json.loads(text)
        except urllib.error.HTTPError as error:
            raise Refused(path, error.code, error.read().decode(errors="replace")) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise UserError(
                f"engine.url: expected a vLLM {RELEASE} server at {self.url}, got no answer ({reason}); start one with "
                f"{START}, or set engine.url to its address."
            ) from None
        except ValueError:
            raise Refused(path, 200, f"no JSON: {text[:100]!r}") from None

    def version(self) -> str:
        """Return the server's vLLM version."""
        answer = self.ask("/version", post=False)
        return str(answer["version"]) if isinstance(answer, dict) and "version" in answer else f"no version: {answer!r}"

    def describe(self) -> dict[str, Any]:
        """Return the description of the server's model (``rlrt.engines.vllm_transfer.Extension``)."""
        description = self.ask("/collective_rpc", {"method": "rlrt_describe"})["results"][0]
        return dict(description)

    def start_weight_update(self) -> None:
        """Begin an update of the weights."""
        self.ask("/start_weight_update")

    def update_weights(self, request: dict[str, Any]) -> None:
        """Load some of the weights."""
        self.ask("/update_weights", request)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update: from now on the server computes with the new weights."""
        self.ask("/finish_weight_update", {"weight_version": weight_version})

    def reset_prefix_cache(self) -> bool:
        """Drop cached keys and values of the old weights."""
        return bool(self.ask("/reset_prefix_cache")["success"])

    def get_weight_version(self) -> str:
        """Return the label of the last finished update."""
        return str(self.ask("/weight_info", post=False)["weight_version"])

    def wake_up(self, tags: list[str]) -> None:
        """Do nothing: a server never sleeps, since its memory is not shared with the trainer."""

    def generate(self, prompt: Sequence[int], sampling: dict[str, Any]) -> dict[str, Any]:
        """Return one response."""
        answer = self.ask("/inference/v1/generate", {"token_ids": list(prompt), "sampling_params": sampling})
        return dict(answer["choices"][0])


@dataclass
class VllmServerEngine(VllmKeys):
    """vLLM behind HTTP; the first ``load`` checks release, routes, model and precision. ``engine.*``:"""

    url: str = key("URL of the server that python -m rlrt.serve_vllm started")
    transfer_dir: str | None = key(
        "folder for the weights that trainer and server can both read; null: /dev/shm, or the temporary folder"
    )
    timeout_s: int = key(
        "longest wait for one answer of the server: a whole response, or an update", "seconds", least=1
    )
    world: World = field(default=ALONE, init=False, repr=False)
    _server: Server | None = field(default=None, init=False, repr=False)
    _broken: str = field(default="", init=False, repr=False)

    def join(self, world: World) -> None:
        """Share the one server with all ranks."""
        self.world = world

    def load(self, model: Any, stop_ids: Sequence[int], version: int) -> None:
        """Check the server, and sync the weights if they are new; of several ranks, rank 0 does both.

        Raises:
            UserError: if no server answers, if this engine cannot use the server, or if an update failed.
        """
        self._stop_ids = list(stop_ids)
        if self._broken:
            raise UserError(self._broken)
        server = self._server or Server(self.url, self.timeout_s)
        if model is not self._model:
            self.world.on_main(lambda: check_server(server, model))
        self._server = server
        if self._holds(model, version):
            return
        label = self.world.on_main(lambda: self._new_label(version))
        if self.world.main:
            self._send(server, model, label)
        elif is_sharded(model):
            for _ in named_weights(model):  # all ranks must take part in the gather
                pass
        self.world.any(False)  # barrier: no rank samples before the new weights are loaded
        self._model, self._version, self._label = model, version, label

    def _send(self, server: Server, model: Any, label: str) -> None:
        try:
            with contextlib.closing(weight_files(model, self.transfer_dir)) as files:
                transfer(server, files, label)
        except (RuntimeError, UserError) as error:
            self._broken = (
                f"engine.url: an update of the weights in the vLLM server at {server.url} failed ({error}), which leaves them "
                f"undefined; restart it ({START}) and give the same command again."
            )
            raise UserError(self._broken) from error

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, int, Generation]]:
        """Yield responses to each prompt, one for each of its seeds, as each ends; one request per response."""
        how = Sampling(self.temperature) if sampling is None else sampling
        server = self._server
        assert server is not None, "load comes first"
        pool = ThreadPoolExecutor(min(self.max_rows, max(1, sum(map(len, seeds)))), "vllm")
        requests = {
            pool.submit(server.generate, prompt, parameters(how, seed, self.max_new_tokens, self._stop_ids)): (i, g)
            for i, prompt in enumerate(prompts)
            for g, seed in enumerate(seeds[i])
        }
        try:
            for done in as_completed(requests):
                choice = done.result()
                logps = [entry["logprob"] for entry in (choice["logprobs"] or {}).get("content") or []]
                by = {span["version"] for span in choice["weight_versions"] or ()}
                yield (
                    *requests.pop(done),
                    response(choice["token_ids"], logps, choice["finish_reason"], self._stop_ids, by, self._label),
                )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if requests:  # the caller stopped early: abort the remaining requests
                with contextlib.suppress(RuntimeError, UserError):
                    server.ask("/abort_requests")
            pool.shutdown()

    def release(self) -> None:
        """Do nothing: the server's memory is not shared with the trainer."""

    def close(self) -> None:
        """Do nothing: the server stays up for the next run."""


def check_server(server: Server, model: Any) -> None:
    """Refuse a server that this engine cannot use for this model.

    Raises:
        UserError: stating what was expected, what the server reports, and the remedy.
    """
    try:
        version = server.version()
    except Refused as error:
        version = f"an answer that is not vLLM's ({error})"
    if not is_supported(version):
        raise UserError(
            f"engine.url: expected a vLLM {RELEASE} server at {server.url}, found {version}; start one with {START}."
        )
    try:
        description = server.describe()
    except Refused as error:
        missing = "the routes for training" if error.status == 404 else "rlrt's worker extension"
        raise UserError(
            f"engine.url: the vLLM server at {server.url} runs without {missing} ({error}); start it with {START}."
        ) from None
    expected = {"logprobs": LOGPROBS, "backend": FILE, "dtype": dtype_name(model)}
    remedies = {"dtype": f"start it with {START} --dtype {expected['dtype']}"}
    for name, value in expected.items():
        if description[name] != value:
            raise UserError(
                f"engine.url: expected {name}={value} of the vLLM server at {server.url}, found {description[name]}; "
                f"{remedies.get(name, f'start it with {START}')}."
            )
    different = [name for name, value in shape_of(model.config).items() if description["shape"].get(name) != value]
    if different:
        name = different[0]
        raise UserError(
            f"engine.url: the vLLM server at {server.url} has another model: expected {name}={shape_of(model.config)[name]} as "
            f"in model.path, found {description['shape'].get(name)}; start it with the same folder ({START})."
        )
    if description["broken"]:
        raise UserError(
            f"engine.url: an update of the weights in the vLLM server at {server.url} was cut off, which leaves them "
            f"undefined; restart it ({START})."
        )


def weight_files(model: Any, folder: str | None) -> Generator[dict[str, str], None, None]:
    """Write the model's weights, in the precision that it computes in, to a file of at most ``CHUNK`` bytes at a time,
    readable by this user alone, and yield each file's ``update_weights`` request; the file is deleted after its request."""
    from safetensors.torch import save_file

    dtype = getattr(model, "compute_dtype", None)
    parent = folder or (str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="rlrt-weights-", dir=parent) as temporary:  # mode 0700
        path = Path(temporary) / "weights.safetensors"
        converted = ((name, tensor.to(device="cpu", dtype=dtype)) for name, tensor in named_weights(model))
        for chunk in in_chunks(converted, CHUNK):
            save_file({name: tensor.contiguous() for name, tensor in chunk.items()}, path)
            path.chmod(0o600)
            yield {"path": str(path)}
            path.unlink()
