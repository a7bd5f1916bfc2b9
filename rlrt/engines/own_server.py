"""A vLLM server that belongs to a run: started by rank 0 on GPUs that were set aside for it, and gone when the run is."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.distributed.ports import probed
from rlrt.engines import keeper
from rlrt.engines.door import TOKEN, TOKEN_FILE
from rlrt.errors import UserError
from rlrt.paths import PACKAGE
from rlrt.records.secrets import masked

LOG = "vllm_server.txt"
"""Name of the server's log in the run's folder."""
PYTHON = "RLRT_SERVER_PYTHON"
"""Environment variable: the Python of an environment with vLLM; without it, the run's own. It is no key: a stored config must
not name a program."""
START_S = 1800.0
"""Longest wait for a new server, seconds: on a GPU it compiles and measures first."""
LOOK_S = 0.2
"""Seconds between two looks at a new server."""
END_S = 20.0
"""Longest wait for the keeper's end, seconds."""
HERE = "127.0.0.1"


@dataclass(frozen=True)
class Wanted:
    """What a run wants of its server.

    Attributes:
        dtype: the precision that the trainer computes in.
        cards: GPUs as CUDA_VISIBLE_DEVICES names them; (): it computes on the CPU.
        max_rows: responses at once.
        max_model_len: tokens of prompt and response together; None: the model's.
        host: address that it listens on.
    """

    dtype: str
    cards: tuple[str, ...]
    max_rows: int
    max_model_len: int | None
    host: str

    def command(self, python: str, model: str, port: int) -> list[str]:
        """Return the command that starts it. The model is a folder with a config: weights come by the first sync.

        Several GPUs hold one model between them (tensor parallel): one server, one cache, one set of weights.
        """
        words = [python, "-m", "rlrt.serve_vllm", "--model", model, "--host", self.host, "--port", str(port)]
        words += ["--dtype", self.dtype, "--load-format", "dummy", "--skip-tokenizer-init"]
        words += ["--max-num-seqs", str(self.max_rows)]
        if self.max_model_len is not None:
            words += ["--max-model-len", str(self.max_model_len)]
        if len(self.cards) > 1:
            words += ["--tensor-parallel-size", str(len(self.cards))]
        return words


class OwnServer:
    """A server's life; ``rlrt.engines.keeper`` ends it when this process is gone.

    Args:
        wanted: how it should be.
        config: config of the model.
        log: file that its output is added to.

    Attributes:
        url: where it answers.
        token: what it asks for.
    """

    def __init__(self, wanted: Wanted, config: Any, log: Path) -> None:
        self.token, self._log = secrets.token_urlsafe(32), log
        port = probed(wanted.host, 0)
        self.url = f"http://{wanted.host}:{port}"
        folder = tempfile.mkdtemp(prefix="rlrt-server-")
        config.save_pretrained(folder)
        python = server_python()
        words = [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), folder]
        with log.open("ab") as output:
            self._begin = output.tell()
            self._keeper = subprocess.Popen(
                [*words, *wanted.command(python, folder, port)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment_of(wanted, self.token, folder, python),
                start_new_session=True,  # a Ctrl-C is for the run
            )

    def wait(self, answers: Callable[[], bool]) -> None:
        """Wait until the server answers.

        Args:
            answers: True once it does.

        Raises:
            UserError: if it ends before, or does not answer within ``START_S``, with its last words.
        """
        end = time.monotonic() + START_S
        while not answers():
            if words := self.last_words():
                raise UserError(f"engine.start: the run's vLLM server ended before it answered: {words}")
            if time.monotonic() > end:
                self.close()
                raise UserError(
                    f"engine.start: the run's vLLM server gave no answer in {START_S:.0f} s; see {self._log}."
                )
            time.sleep(LOOK_S)

    def last_words(self, wait_s: float = 0.0) -> str:
        """Return what a server that has ended said last, and where the rest is; empty if it runs after ``wait_s`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(wait_s)
        if self._keeper.poll() is None:
            return ""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower() and not line.startswith("During handling")]
        said = (errors or lines or ["nothing"])[-1]
        return f"exit code {self._keeper.returncode}, {masked(said)[-300:]} ({self._log})"

    def close(self) -> None:
        """End the server and all its processes."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(END_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()


def server_python() -> str:
    """Return the Python that starts the server.

    Raises:
        UserError: if ``RLRT_SERVER_PYTHON`` names none.
    """
    given = os.environ.get(PYTHON, "")
    if not given:
        return sys.executable
    if not (os.path.isabs(given) and os.access(given, os.X_OK)):
        raise UserError(f"{PYTHON}: expected the full path of a Python with vLLM, got {given!r}; see docs/vllm.md.")
    return given


def environment_of(wanted: Wanted, token: str, folder: str, python: str) -> dict[str, str]:
    """Return the environment of a server: its own GPUs, its token, and nothing of the run's own process group."""
    group = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    left_out = (*group, TOKEN_FILE)
    kept = {k: v for k, v in os.environ.items() if k not in left_out and not k.startswith("TORCHELASTIC")}
    added = {TOKEN: token, "CUDA_VISIBLE_DEVICES": ",".join(wanted.cards), "VLLM_RPC_BASE_PATH": folder}
    # a checkout serves both environments
    if python != sys.executable and (PACKAGE.parent / "pyproject.toml").is_file():
        added["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), kept.get("PYTHONPATH", "")]))
    return kept | added


def address(several: bool, host: str | None) -> str:
    """Return the address that a server on this machine listens on.

    Args:
        several: True if ranks of other machines must reach it.
        host: ``engine.host``; None: the machine's own address of the run's rendezvous (MASTER_ADDR).

    Raises:
        UserError: for a name that this machine does not have, or that other machines cannot reach.
    """
    name = host or (os.environ.get("MASTER_ADDR", "") if several else HERE)
    try:
        found = socket.gethostbyname(name)
        probed(found, 0)
    except OSError as error:
        raise UserError(f"engine.host: {name!r} is no address of this machine ({error}); set it to one.") from None
    if several and is_loopback(found):
        raise UserError(
            f"engine.host: the run's other machines must reach the server, and {name} is {found} here, this machine alone; set "
            "engine.host to this machine's address in their network."
        )
    return found


def is_loopback(host: str) -> bool:
    """True if an address or name means the machine itself, for itself alone."""
    with contextlib.suppress(OSError, ValueError):
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    return False


def is_here(host: str) -> bool:
    """True if an address or name is one of this machine's."""
    with contextlib.suppress(OSError):
        probed(socket.gethostbyname(host), 0)
        return True
    return False
