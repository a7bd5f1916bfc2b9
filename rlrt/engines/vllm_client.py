"""Client of a vLLM server's HTTP routes, those for training included."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

from rlrt.engines.door import TOKEN, TOKEN_FILE
from rlrt.engines.vllm_common import RELEASE
from rlrt.errors import UserError

START = "python -m rlrt.serve_vllm --model FOLDER"


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
        token: what the server asks for; None: nothing.
    """

    def __init__(self, url: str, timeout_s: float, token: str | None = None) -> None:
        self.url, self._timeout_s = url.rstrip("/"), timeout_s
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
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
            UserError: if no server answers, or it asks for another token.
        """
        data = json.dumps({} if body is None else body).encode() if post else None
        request = urllib.request.Request(self.url + path, data, self._headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                text = answer.read()
            return json.loads(text)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if error.code == 401:
                raise UserError(
                    f"engine.url: the server at {self.url} asks for its token; give it by {TOKEN}, or by {TOKEN_FILE} and a "
                    "file that only you may read."
                ) from None
            raise Refused(path, error.code, text) from None
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
        """Return the description of the server's model and of all its GPUs (``rlrt.engines.vllm_transfer.Extension``)."""
        found = self.ask("/collective_rpc", {"method": "rlrt_describe"})["results"]
        return dict(found[0]) | {"cards": [card for worker in found for card in worker.get("cards", [])]}

    def world_size(self) -> int:
        """Return the number of the server's workers."""
        return int(self.ask("/get_world_size", post=False)["world_size"])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let the workers meet the trainer, which must come at the same time."""
        self.ask("/init_weight_transfer_engine", {"init_info": init_info})

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
