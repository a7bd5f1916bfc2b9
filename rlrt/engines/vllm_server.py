"""Rollouts by a vLLM server in processes of its own (other GPUs, another environment, another machine), over HTTP.

The run starts it (``engine.start``), or ``python -m rlrt.serve_vllm`` did. Weights go by NCCL where both sides have GPUs, else
as safetensors files in a folder that both can read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlrt.distributed.sharding import is_sharded
from rlrt.distributed.world import ALONE, World
from rlrt.engines.door import given_token
from rlrt.engines.own_server import LOG, PYTHON, OwnServer, Wanted, address, is_here
from rlrt.engines.vllm_client import START, Refused, Server
from rlrt.engines.vllm_common import (
    LOGPROBS,
    RELEASE,
    SENT,
    VllmKeys,
    check_installed,
    check_transferred,
    dtype_name,
    in_chunks,
    is_supported,
    named_config,
    parameters,
    response,
    shape_of,
    transfer,
)
from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.model.lora import named_weights
from rlrt.types import Generation, Sampling

log = logging.getLogger("rlrt")
URL = "http://127.0.0.1:8000"
"""Where ``python -m rlrt.serve_vllm`` listens unless it is told otherwise."""
SHARED_MEMORY = Path("/dev/shm")
CHUNK = 2**31
"""Maximum bytes of weights in one file."""
LAST_WORDS_S = 3.0
"""Longest wait, once a server of the run's own does not answer, for the news that it ended, seconds."""


@dataclass
class VllmServerEngine(VllmKeys):
    """vLLM behind HTTP; the first ``load`` checks release, routes, model and precision. ``engine.*``:"""

    url: str | None = key(
        f"URL of the server that python -m rlrt.serve_vllm started; null: {URL}, or with engine.start the run's own"
    )
    start: bool = key(
        "start a server for this run alone, on GPUs that its processes do not use, and end it with the run"
    )
    gpus: int | None = key(
        "with engine.start: the server takes the last GPUs of the run's first machine; 0: it computes on the CPU; null: 1, and "
        "0 where the run computes on the CPU",
        least=0,
    )
    host: str | None = key(
        "with engine.start: name or address of the run's first machine by which its other machines reach the server; null: "
        "MASTER_ADDR, and 127.0.0.1 on one machine"
    )
    transfer: str = key(
        "how weights go to the server: nccl, file, or auto: nccl where both have GPUs and the trainer's environment has vLLM",
        choices=("auto", "nccl", "file"),
    )
    transfer_dir: str | None = key(
        "folder for the weights that trainer and server can both read; null: /dev/shm, or the temporary folder"
    )
    timeout_s: int = key(
        "longest wait for one answer of the server: a whole response, or an update", "seconds", least=1
    )
    world: World = field(default=ALONE, init=False, repr=False)
    _folder: Path = field(default=Path(), init=False, repr=False)
    _cards: tuple[str, ...] = field(default=(), init=False, repr=False)
    _longest: int | None = field(default=None, init=False, repr=False)
    _takes: int | None = field(default=None, init=False, repr=False)
    _own: OwnServer | None = field(default=None, init=False, repr=False)
    _server: Server | None = field(default=None, init=False, repr=False)
    _shape: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _sender: Any = field(default=None, init=False, repr=False)
    _broken: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a URL beside a server of the run's own."""
        super().__post_init__()
        if self.start and self.url is not None:
            raise UserError(
                f"engine.start: the run starts a server of its own, and engine.url={self.url} names another; leave one out."
            )
        if not self.start:
            self.url = self.url or URL

    def check_installed(self) -> None:
        """Refuse to start a server by an environment without vLLM.

        Raises:
            UserError: naming what to install.
        """
        if self.start and not os.environ.get(PYTHON):
            check_installed(f"engine.start=true without {PYTHON}, the Python of another environment,")

    def cards_beside(self, on_gpu: bool) -> int:
        """GPUs of the run's first machine that its server takes."""
        if not self.start:
            return 0
        return int(on_gpu) if self.gpus is None else self.gpus

    def expect(self, longest: int, share: float) -> None:
        """Learn the longest sequence."""
        self._longest = longest

    def longest(self) -> int | None:
        """Tokens of prompt and response together that the server takes."""
        return self._takes

    def settle(self, folder: Path, cards: Sequence[str]) -> None:
        """Learn where the log of the run's server goes, and the GPUs that were set aside for it."""
        self._folder, self._cards = folder, tuple(cards)

    def join(self, world: World) -> None:
        """Share the one server with all ranks."""
        self.world = world

    def load(self, model: Any, stop_ids: Sequence[int], version: int) -> None:
        """Start or check the server, and sync the weights if they are new; of several ranks, rank 0 does it.

        Raises:
            UserError: if no server answers, if this engine cannot use the server, or if an update failed.
        """
        self._stop_ids = list(stop_ids)
        if self._broken:
            raise UserError(self._broken)
        if model is not self._model:
            self._reach(model)
        if self._holds(model, version):
            return
        begin = time.perf_counter()
        label = self.world.on_main(lambda: self._new_label(version))
        if self.world.main:
            self._send(model, label)
        elif is_sharded(model):
            for _ in named_weights(model):  # all ranks must take part in the gather
                pass
        self.world.any(False)  # barrier: no rank samples before the new weights are loaded
        self._model, self._version, self._label = model, version, label
        self.synced_s += time.perf_counter() - begin

    def _reach(self, model: Any) -> None:
        """Start the run's own server, unless it runs with a model of this shape; check the server; choose how weights go."""
        server, shape = self._server, shape_of(model.config) | {"dtype": dtype_name(model)}
        if self.start and (server is None or shape != self._shape):
            self.close()
            several = len(set(self.world.gather([socket.gethostname()]))) > 1
            server = Server(*self.world.on_main(lambda: self._start(model, several)))
        elif server is None:
            server = Server(str(self.url), self.timeout_s, self.world.on_main(given_token))
        reached = server
        self._takes = self.world.on_main(lambda: self._check(reached, model))
        self._server, self._shape = server, shape

    def _start(self, model: Any, several: bool) -> tuple[str, int, str]:
        """Start a server for a model of this shape, without its weights; return how it is reached."""
        heads = model.config.num_attention_heads
        if self._cards and heads % len(self._cards):
            raise UserError(
                f"engine.gpus: the server's GPUs hold the model together, so their number must divide its {heads} attention "
                f"heads, got {len(self._cards)}."
            )
        where, file = address(several, self.host), self._folder / LOG
        wanted = Wanted(dtype_name(model), self._cards, self.max_rows, self._longest, where)
        self._own = own = OwnServer(wanted, named_config(model), file)
        place = f"GPU {', '.join(self._cards)}" if self._cards else "the CPU"
        log.info("a vLLM server of the run's own starts at %s on %s; its log is %s", own.url, place, file)
        reached = own.url, self.timeout_s, own.token
        own.wait(lambda: answers(Server(*reached)))
        return reached

    def _check(self, server: Server, model: Any) -> int | None:
        """Check that the server can be used, choose how weights go to it, and return the longest sequence that it takes."""
        description, reason = check_server(server, model), "engine.transfer=file"
        longest: int | None = description.get("max_model_len")
        if self.transfer != "file":
            from rlrt.engines.vllm_nccl import Sender, obstacle

            reason = obstacle(model, description)
            if reason and self.transfer == "nccl":
                raise UserError(
                    f"engine.transfer: weights cannot go by NCCL, since {reason}; set engine.transfer=auto."
                )
            if not reason:
                self._sender = self._sender or Sender(server, model)
                log.info("weights go to the vLLM server at %s by NCCL", server.url)
                return longest
        check_folder(server.url, self.transfer_dir)
        log.info("weights go to the vLLM server at %s by file: %s", server.url, reason)
        return longest

    def _send(self, model: Any, label: str) -> None:
        server = self._server
        assert server is not None
        try:
            if self._sender is not None:
                self._count(self._sender.send(model, label))
                check_transferred(server, label)
            else:
                with contextlib.closing(weight_files(model, self.transfer_dir)) as files:
                    transfer(server, weights_counted(files, self._count), label)
        except (RuntimeError, UserError) as error:
            self._raise_if_gone(error)
            again = "" if self.start else f"restart it ({START}) and "
            self._broken = (
                f"engine.url: an update of the weights in the vLLM server at {server.url} failed ({error}), which leaves them "
                f"undefined; {again}give the same command again."
            )
            raise UserError(self._broken) from error

    def _count(self, size: int) -> None:
        """Add to the bytes of all syncs."""
        self.synced_bytes += size

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
                choice = self._answer(done)
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

    def _answer(self, done: Future[dict[str, Any]]) -> dict[str, Any]:
        try:
            return done.result()
        except UserError as error:
            self._raise_if_gone(error)
            raise

    def _raise_if_gone(self, error: Exception) -> None:
        """Say why the run's own server gave no answer, if it is gone.

        Raises:
            RuntimeError: with its last words.
        """
        if not self.start:
            return
        words = self._own.last_words(LAST_WORDS_S) if self._own is not None else f"see {LOG} of the run's folder"
        if words:
            raise RuntimeError(f"the run's vLLM server ended: {words}") from error

    def release(self) -> None:
        """Do nothing: the server's memory is not shared with the trainer."""

    def close(self) -> None:
        """End the run's own server; any other stays up for the next run."""
        if self._sender is not None:
            self._sender.close()
        if self._own is not None:
            self._own.close()
        self._sender = self._own = self._server = self._model = None


def weights_counted(files: Iterator[dict[str, str]], count: Callable[[int], None]) -> Iterator[dict[str, str]]:
    """Yield update requests, and tell the bytes of each file."""
    for request in files:
        count(os.stat(request["path"]).st_size)
        yield request


def answers(server: Server) -> bool:
    """True once a server answers."""
    try:
        server.version()
    except UserError:
        return False
    return True


def check_folder(url: str, folder: str | None) -> None:
    """Refuse weights by files in a folder that the server's machine does not have.

    Raises:
        UserError: for a server of another machine without ``engine.transfer_dir``.
    """
    host = urlsplit(url).hostname or ""
    if folder is None and not is_here(host):
        raise UserError(
            f"engine.transfer_dir: weights go by file to the vLLM server at {url}, which is on another machine; set "
            "engine.transfer_dir to a folder that both machines mount."
        )


def check_server(server: Server, model: Any) -> dict[str, Any]:
    """Return the description of a server, or refuse one that this engine cannot use for this model.

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
    expected = {"logprobs": LOGPROBS, "backend": SENT, "dtype": dtype_name(model)}
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
    return description


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
