"""The token of a server: who does not send it gets no answer, on any route.

vLLM's own ``--api-key`` guards the routes of inference alone. Whoever reaches those for training may replace the weights and
call any method of the workers.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import UserError

TOKEN = "RLRT_SERVER_TOKEN"
"""Environment variable that holds the token, of the server and of a run that uses it."""
TOKEN_FILE = "RLRT_SERVER_TOKEN_FILE"
"""Environment variable of a run: a file that holds the token instead."""
SHORTEST = 16
"""Characters that a token has at least."""


def given_token(file: str | None = None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token that this process was given; None if it was given none.

    Args:
        file: a file that holds it, from the command line; None: by the environment.

    Raises:
        UserError: for a file that cannot be read, or that others may read, and for a token that is too short or has spaces.
    """
    name = "--token-file" if file else TOKEN_FILE
    file = file or environment.get(TOKEN_FILE)
    if file:
        return checked(name, text_of(name, Path(file)))
    token = environment.get(TOKEN)
    return checked(TOKEN, token) if token else None


def text_of(name: str, file: Path) -> str:
    """Return the text of a file that is its owner's alone."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            raise UserError(
                f"{name}: {file} may be read by others (mode {mode:o}); chmod 600 it, and choose another token."
            )
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: expected a file with a token, got {file} ({error}).") from None


def checked(name: str, token: str) -> str:
    """Return a token that can be sent in a header; messages never repeat it."""
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{name}: expected a token of at least {SHORTEST} printable ASCII characters without a space, got one of "
            f"{len(token)} characters that is none; python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one."
        )
    return token


Message = dict[str, Any]
App = Callable[[Message, Any, Any], Awaitable[None]]


class Door:
    """ASGI middleware that answers 401 to every request without the token, whatever its route and method.

    ``vllm serve --middleware rlrt.engines.door.Door`` makes it the outermost. A server without a token in its environment does
    not start.
    """

    def __init__(self, app: App) -> None:
        self._app, self._expected = app, f"Bearer {checked(TOKEN, os.environ.get(TOKEN, ''))}".encode()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Let a request pass, or refuse it."""
        sent = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        if scope["type"] == "lifespan" or (len(sent) == 1 and hmac.compare_digest(sent[0], self._expected)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            body = b'{"error": "this server asks for its token"}'
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
