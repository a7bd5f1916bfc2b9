"""Rollouts by vLLM in a process of its own (other GPUs, another environment, another machine), over HTTP.

``python -m rlrt.serve_vllm`` starts it. Weights travel as safetensors files in a folder that both sides see.
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
"""Bytes of weights in one file."""


class Refused(RuntimeError):
    """The server answered with an error.

    Attributes:
        status: HTTP's number of it.
    """

    def __init__(self, path: str, status: int, text: str) -> None:
        super().__init__(f"{path}: HTTP {status}: {text[:300]}")
        self.status = status


class Server:
    """A vLLM server's calls, by the names that ``vllm.LLM`` gives them.

    Args:
        url: where it answers.
        timeout_s: longest wait for an answer.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy between the two

    def ask(self, path: str, body: Any = None, *, post: bool = True) -> Any:
        """One question.

        Args:
            path: of the route.
            body: sent as JSON.
            post: POST; else GET.

        Returns:
            the answer, read as JSON.

        Raises:
            Refused: for an answer that is an error, or no JSON.
            UserError: if nobody answers.
        """
        data = json.dumps({} if body is None else body).encode() if post else None
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self._opener.open(asked, timeout=self._timeout_s) as answer:
                text = answer.read()
            return json.loads(text)
        except urllib.error.HTTPError as error:
            raise Refused(path, error.code, error.read().decode(errors="replace")) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise UserError(
                f"engine.url: expected a vLLM {RELEASE} server at {self.url}, nobody answers ({reason}); start one with "
                f"{START}, or set engine.url to where it is."
            ) from None
        except ValueError:
            raise Refused(path, 200, f"no JSON: {text[:100]!r}") from None

    def version(self) -> str:
        """Of vLLM."""
        answer = self.ask("/version", post=False)
        return str(answer["version"]) if isinstance(answer, dict) and "version" in answer else f"no version: {answer!r}"

    def describe(self) -> dict[str, Any]:
        """What ``rlrt.engines.vllm_transfer.Extension`` says of its model."""
        found = self.ask("/collective_rpc", {"method": "rlrt_describe"})["results"][0]
        return dict(found)

    def start_weight_update(self) -> None:
        """Begin."""
        self.ask("/start_weight_update")

    def update_weights(self, request: dict[str, Any]) -> None:
        """Load some weights."""
        self.ask("/update_weights", request)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Make all that was loaded what is computed with."""
        self.ask("/finish_weight_update", {"weight_version": weight_version})

    def reset_prefix_cache(self) -> bool:
        """Forget keys and values of the old weights."""
        return bool(self.ask("/reset_prefix_cache")["success"])

    def get_weight_version(self) -> str:
        """The label of the last finished update."""
        return str(self.ask("/weight_info", post=False)["weight_version"])

    def wake_up(self, tags: list[str]) -> None:
        """A server never sleeps: its memory is its own."""

    def generate(self, prompt: Sequence[int], sampling: dict[str, Any]) -> dict[str, Any]:
        """One response."""
        answer = self.ask("/inference/v1/generate", {"token_ids": list(prompt), "sampling_params": sampling})
        return dict(answer["choices"][0])


@dataclass
class VllmServerEngine(VllmKeys):
    """vLLM behind HTTP; checked at the first ``load``: release, routes, model, precision. ``engine.*``:"""

    url: str = key("where the server that python -m rlrt.serve_vllm started answers")
    transfer_dir: str | None = key(
        "folder in which trainer and server both see files, for the weights; null: /dev/shm, or the temporary folder"
    )
    timeout_s: int = key(
        "longest wait for one of the server's answers: a whole response, or an update", "seconds", least=1
    )
    world: World = field(default=ALONE, init=False, repr=False)
    _server: Server | None = field(default=None, init=False, repr=False)
    _broken: str = field(default="", init=False, repr=False)

    def load(self, model: Any, stop_ids: Sequence[int], version: int) -> None:
        """Check the server, and send the weights where they are new; of several processes, the main one does.

        Raises:
            UserError: if nobody answers, if the server is another one than this needs, or an update failed.
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
            for _ in named_weights(model):  # gathered by all, or by none
                pass
        self.world.any(False)  # nobody samples before the weights are there
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
        """Responses to each prompt, one for each of its seeds, as they end; one request each."""
        how = Sampling(self.temperature) if sampling is None else sampling
        server = self._server
        assert server is not None, "load comes first"
        pool = ThreadPoolExecutor(min(self.max_rows, max(1, sum(map(len, seeds)))), "vllm")
        places = {
            pool.submit(server.generate, prompt, parameters(how, seed, self.max_new_tokens, self._stop_ids)): (i, g)
            for i, prompt in enumerate(prompts)
            for g, seed in enumerate(seeds[i])
        }
        try:
            for done in as_completed(places):
                choice = done.result()
                logps = [entry["logprob"] for entry in (choice["logprobs"] or {}).get("content") or []]
                by = {span["version"] for span in choice["weight_versions"] or ()}
                yield (
                    *places.pop(done),
                    response(choice["token_ids"], logps, choice["finish_reason"], self._stop_ids, by, self._label),
                )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if places:  # nobody wants the rest
                with contextlib.suppress(RuntimeError, UserError):
                    server.ask("/abort_requests")
            pool.shutdown()

    def release(self) -> None:
        """Nothing: a server's memory is its own."""

    def close(self) -> None:
        """Nothing: the server goes on for whoever comes next."""


def check_server(server: Server, model: Any) -> None:
    """Refuse a server that this engine cannot use for this model.

    Raises:
        UserError: what was expected, what was found, what to do.
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
        found = server.describe()
    except Refused as error:
        lacking = "the routes for training" if error.status == 404 else "rlrt's worker extension"
        raise UserError(
            f"engine.url: the vLLM server at {server.url} runs without {lacking} ({error}); start it with {START}."
        ) from None
    wanted = {"logprobs": LOGPROBS, "backend": FILE, "dtype": dtype_name(model)}
    remedies = {"dtype": f"start it with {START} --dtype {wanted['dtype']}"}
    for name, value in wanted.items():
        if found[name] != value:
            raise UserError(
                f"engine.url: expected {name}={value} of the vLLM server at {server.url}, found {found[name]}; "
                f"{remedies.get(name, f'start it with {START}')}."
            )
    other = [name for name, value in shape_of(model.config).items() if found["shape"].get(name) != value]
    if other:
        name = other[0]
        raise UserError(
            f"engine.url: the vLLM server at {server.url} has another model: expected {name}={shape_of(model.config)[name]} as "
            f"in model.path, found {found['shape'].get(name)}; start it with the same folder ({START})."
        )
    if found["broken"]:
        raise UserError(
            f"engine.url: an update of the weights in the vLLM server at {server.url} was cut off, which leaves them "
            f"undefined; restart it ({START})."
        )


def weight_files(model: Any, folder: str | None) -> Generator[dict[str, str], None, None]:
    """The model's weights in the precision that it computes in, in files of at most ``CHUNK`` bytes, each there for one
    ``update_weights`` and for this user alone; as that call's requests."""
    from safetensors.torch import save_file

    dtype = getattr(model, "compute_dtype", None)
    place = folder or (str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="rlrt-weights-", dir=place) as inside:  # mode 0700
        path = Path(inside) / "weights.safetensors"
        converted = ((name, tensor.to(device="cpu", dtype=dtype)) for name, tensor in named_weights(model))
        for chunk in in_chunks(converted, CHUNK):
            save_file({name: tensor.contiguous() for name, tensor in chunk.items()}, path)
            path.chmod(0o600)
            yield {"path": str(path)}
            path.unlink()
