"""Secrets: recognise the keys that hold them, and mask them in configs, commands and messages."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, unquote

from rlrt.records.printable import printable

MASK = "***"
SECRET_PARTS = ("password", "passwd", "passphrase", "apikey")
"""A name that contains one of these anywhere is a secret's name."""
SECRET_WORDS = {"pwd", "pass", "pw", "secret", "secrets", "credential", "credentials"}
"""A name with one of these words is a secret's name."""
SECRET_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("auth", "key")}
"""A name with these two words side by side is a secret's name."""
VOCABULARY_WORDS = {
    "bos", "cls", "control", "end", "eos", "image", "mask", "new", "next", "pad", "per", "sep", "special", "start", "stop",
    "think", "unk",
}  # fmt: skip
"""A ``..._token`` with one of these words is a token of a model's vocabulary; any other ``..._token`` is a secret."""
ADDRESS_WORDS = ("uri", "url", "endpoint", "host", "server", "proxy")
"""A key whose last word is one of these holds an address: the text before its @ is a user with a password."""
SHORTEST = 3
"""Shortest password, in characters, that is searched for in a library's message; for a shorter one only its URI is masked."""
LONG = 8
"""A secret of at least so many characters is known: it is masked wherever a text repeats it. One of ``SHORT`` characters or
more is known if it is no plain word; a shorter one would mask ordinary words: its name or URI must stand beside it."""
SHORT = 6
"""See ``LONG``."""
NAME = re.compile(r"[\w.+~-]+(?==)")
VARIABLE = re.compile(r"\b[A-Z][A-Z0-9_]+(?==)")
"""Name of an environment variable before its value, as in a shell line of ``hydra.launcher.setup``."""
HEADER = re.compile(r"(authorization\W{1,6}(?:basic|bearer|token)\s+)[^\s'\",}]+", re.IGNORECASE)
"""An HTTP header with credentials, as libraries print it."""
VALUE = re.compile(r"='[^']*'|=\"[^\"]*\"|=[^\s&'\"]*")
INNER = re.compile(r"([\w.-]+)(\s*:\s*)('[^']*'|\"[^\"]*\"|[^\s,{}\[\]]+)")
"""``name: value`` inside a mapping of Hydra's grammar."""
URI = re.compile(r"([A-Za-z][\w+.-]*\\?:\\?/\\?/+)(?:[^/\s@'\"]*@)+")
"""Scheme and user of a URI, also with the backslashes of Hydra's grammar."""
CLEAN = re.compile(r"(?:[\w.-]*|\[[0-9a-fA-F:]*\])(?::\d+)?(?:[/?#'\"]|$)")
"""A host with or without a port, and without a user."""
SLASHED = re.compile(r"([A-Za-z][\w+.-]*\\?:\\?/\\?/+)[^\s/@'\"]+?:(?!\d*(?:[/\s'\"]|$))[^\s'\"]*@")
"""Scheme and user of a URI whose password contains an unescaped slash: an invalid URI, but still a password."""


def is_secret(name: str) -> bool:
    """True if a key's name marks a secret: ``tracking.api_key`` and ``hf_token``, but not ``train.token_budget``."""
    parts = words_of(name)
    if not parts:
        return False
    by_word = bool(SECRET_WORDS & set(parts)) or any(inside in part for part in parts for inside in SECRET_PARTS)
    token = parts[-1] == "token" and not VOCABULARY_WORDS & set(parts)
    return by_word or token or bool(SECRET_PAIRS & set(itertools.pairwise(parts)))


def words_of(name: str) -> list[str]:
    """Split the last part of a dotted name into lower-case words."""
    last = name.rstrip(".").rpartition(".")[2]
    snake_case = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", last).lower()
    return [part for part in re.split(r"[^a-z0-9]+", snake_case) if part]


def names_secret(line: str) -> bool:
    """True if a line of code or config contains the name of a secret."""
    return any(is_secret(name) for name in re.findall(r"[\w.-]+", line))


def redacted(plain: Any, name: str = "") -> Any:
    """Mask the secrets in a config or in overrides; every other text stays unchanged, since a run can be repeated from it.

    This masks the values of secret names, and the users and passwords of addresses: in values that are one URI, and in all
    values of keys like ``uri`` and ``url``.

    Args:
        plain: nested plain values; a text without a ``name`` may be an override (``name=value``).
        name: the key that holds ``plain``.
    """
    if isinstance(plain, dict):
        return {k: redacted(v, str(k)) for k, v in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [redacted(v, name) for v in plain]
    if not isinstance(plain, str):
        return plain
    override = None if name else re.fullmatch(r"([-+~]*[\w.@/-]+)=(.*)", plain, re.DOTALL)
    if override:
        value = override[2]
        if value.startswith("{"):  # a mapping of Hydra's grammar
            value = INNER.sub(lambda m: f"{m[1]}{m[2]}{redacted_value(m[3], m[1])}", value)
        return f"{override[1]}={redacted_value(value, override[1].lstrip('-+~'))}"
    return redacted_value(plain, name)


def redacted_value(text: str, name: str) -> str:
    """Mask the secrets in the value of one key."""
    if is_secret(name) or without_known(text) != text:  # whole: with a part of it the value could not be used again
        return MASK
    text = without_assignments(text, VARIABLE)
    if (words_of(name) or [""])[-1] in ADDRESS_WORDS:
        return without_password(text)
    one_uri = re.fullmatch(r"['\"]?[A-Za-z][\w+.-]*\\?:\\?/\S*", text)
    return masked(text) if one_uri else text


def masked(text: str, *uris: str | None) -> str:
    """Mask secrets in a message: known ones, values of secret names, users and passwords in URIs, the passwords of ``uris``.

    Args:
        text: a message, possibly a library's.
        uris: URIs whose passwords are masked in every spelling, wherever the text repeats them.
    """
    for secret in sorted({s for uri in uris if uri for s in passwords(uri)}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = HEADER.sub(rf"\1{MASK}", without_assignments(without_known(text)))
    return URI.sub(rf"\1{MASK}@", SLASHED.sub(rf"\1{MASK}@", text))


REMEMBERED: set[str] = set()
"""Secrets of the command line and of configs, in every spelling."""


def remember(plain: Any, name: str = "") -> None:
    """Remember the secrets in a config or among arguments, so that ``masked`` finds them wherever a text repeats them.

    Args:
        plain: nested plain values, as for ``redacted``.
        name: the key that holds ``plain``.
    """
    REMEMBERED.update(s for secret in secrets_in(plain, name) for s in spellings(secret))


def secrets_in(plain: Any, name: str = "") -> Iterator[str]:
    """Yield the secrets in a config or among arguments: values of secret names, and passwords of addresses."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from secrets_in(value, str(key))
    elif isinstance(plain, (list, tuple)):
        for value in plain:
            yield from secrets_in(value, name)
    elif isinstance(plain, str):
        if is_secret(name):
            yield plain.strip("'\"")
        yield from passwords(plain) if "@" in plain else ()
        for assigned in NAME.finditer(plain):
            value_there = VALUE.match(plain, assigned.end())
            if value_there is not None and is_secret(assigned[0]):
                yield value_there[0].lstrip("=").strip("'\"")


def spellings(secret: str) -> set[str]:
    """Return a secret as it may stand in a text: unchanged, in a URI, in JSON; {} for one too short to be known anywhere."""
    if len(secret) < SHORT or (len(secret) < LONG and secret.isalpha()):
        return set()
    quoted = {quote(secret, safe=""), quote(secret), quote(secret, safe="").lower(), json.dumps(secret)[1:-1]}
    return {secret, unquote(secret), *quoted}


def of_environment() -> frozenset[str]:
    """Return the secrets of this process's environment in every spelling: by the names of variables, and in addresses."""
    return _in_variables(tuple((k, v) for k, v in os.environ.items() if is_secret_variable(k) or "@" in v))


@functools.lru_cache(maxsize=4)
def _in_variables(variables: tuple[tuple[str, str], ...]) -> frozenset[str]:
    values = [v for k, v in variables if is_secret_variable(k) and not os.path.exists(v)]  # some name a file
    values += [s for k, v in variables if re.match(r"[A-Za-z][\w+.-]*://", v) for s in passwords(v)]
    return frozenset(s for value in values for s in spellings(value))


@functools.cache
def is_secret_variable(name: str) -> bool:
    """True if the name of an environment variable marks a secret."""
    return is_secret(name)


def without_known(text: str) -> str:
    """Mask the secrets of the environment, the command line and the config wherever a text repeats them; nothing else.

    This is for what a run records, whose texts must stay as they are otherwise.
    """
    for secret in sorted(
        {s for s in itertools.chain(of_environment(), REMEMBERED) if s in text}, key=len, reverse=True
    ):
        text = text.replace(secret, MASK)
    return text


def without_assignments(text: str, names: re.Pattern[str] = NAME) -> str:
    """Mask the value of every ``name=value`` with a secret's name; a value may be quoted and may contain other pairs."""
    parts, done = [], 0
    for name in names.finditer(text):
        value = VALUE.match(text, name.end())
        if name.start() >= done and value is not None and is_secret(name[0]):
            parts.append(f"{text[done : name.end()]}={MASK}")
            done = value.end()
    return "".join([*parts, text[done:]])


def passwords(uri: str) -> set[str]:
    """Return the spellings of a URI's password (or of a user alone, which is a token): unchanged, percent-encoded, decoded,
    without Hydra's backslashes."""
    match = re.match(r"(?:[^/@]*?//+)?[^@]*?:(.*)@", uri, re.DOTALL) or re.match(r"[^/@]*?//+([^/@:]+)@", uri)
    if match is None:
        return set()
    typed = match[1].replace("\\", "")
    found = {match[1], typed, unquote(typed), quote(unquote(typed), safe="")}
    return {s for s in found if len(s) >= SHORTEST}


def without_password(uri: str) -> str:
    """Mask user and password of an address, in any spelling: all text between its scheme and its last @."""
    scheme = re.match(r"['\"]?(?:[A-Za-z][\w+.-]*\\?:[\\/]+)?", uri)
    begin = scheme.end() if scheme is not None else 0
    plain = CLEAN.match(uri, begin) is not None or uri.lstrip("'\"").startswith("sqlite:///")
    address = uri if plain or "@" not in uri else f"{uri[:begin]}{MASK}{uri[uri.rindex('@') :]}"
    return without_assignments(address)


def command_line(arguments: Sequence[str]) -> str:
    """Join arguments into one line that a shell splits into the same arguments, newlines included; secrets are masked."""
    return " ".join(map(shell_quoted, (redacted(argument) for argument in arguments)))


def shell_quoted(text: str) -> str:
    """Quote one argument for a shell: as ``$'...'`` if it has control characters, which pages and terminals change."""
    if not re.search(r"[\x00-\x1f\x7f]", text):
        return shlex.quote(text)
    escapes = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}
    return "$'" + "".join(escapes.get(c) or (c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}") for c in text) + "'"


def to_terminal() -> logging.Handler:
    """Return a log handler that writes warnings to standard error, one line each, with secrets masked."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    return handler


class MaskingFormatter(logging.Formatter):
    """Formats log records and tracebacks with secrets masked and control characters written as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record and mask its secrets."""
        return printable(masked(super().format(record)))
