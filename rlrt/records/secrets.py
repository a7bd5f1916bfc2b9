"""Secrets: which keys hold one, and configs, commands and messages without them."""

from __future__ import annotations

import itertools
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"
INSIDE = ("password", "passwd", "passphrase", "apikey")
"""A name that has one of these anywhere names a secret."""
WORDS = {"pwd", "pass", "pw", "secret", "secrets", "credential", "credentials"}
"""A name that has one of these as a word names a secret."""
PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key"), ("auth", "key")}
"""A name that has these two words side by side names a secret."""
OF_A_VOCABULARY = {
    "bos", "cls", "control", "end", "eos", "image", "mask", "new", "next", "pad", "per", "sep", "special", "start", "stop",
    "think", "unk",
}  # fmt: skip
"""Words before ``token`` that make it one of a model's vocabulary; any other ``..._token`` is a secret."""
PLACES = ("uri", "url", "endpoint", "host", "server", "proxy")
"""Last words of keys whose values are addresses: what stands before an @ in them is a user with a password."""
SHORTEST = 3
"""Characters of the shortest password that is searched for in a library's message; the URI around a shorter one is masked."""
NAME = re.compile(r"[\w.+~-]+(?==)")
VALUE = re.compile(r"='[^']*'|=\"[^\"]*\"|=[^\s&'\"]*")
INNER = re.compile(r"([\w.-]+)(\s*:\s*)('[^']*'|\"[^\"]*\"|[^\s,{}\[\]]+)")
"""``name: value`` inside a mapping of Hydra's grammar."""
URI = re.compile(r"([A-Za-z][\w+.-]*\\?:\\?/\\?/+)(?:[^/\s@'\"]*@)+")
"""The beginning of a URI that names a user, also with the backslashes of Hydra's grammar."""
CLEAN = re.compile(r"(?:[\w.-]*|\[[0-9a-fA-F:]*\])(?::\d+)?(?:[/?#'\"]|$)")
"""A host with or without a port, and no user."""
SLASHED = re.compile(r"([A-Za-z][\w+.-]*\\?:\\?/\\?/+)[^\s/@'\"]+?:(?!\d*(?:[/\s'\"]|$))[^\s'\"]*@")
"""The same where the password holds a slash that nobody has escaped: no valid URI, and still a password."""


def is_secret(name: str) -> bool:
    """Whether a key's name says that it holds a secret: ``tracking.api_key`` and ``hf_token``, not ``train.token_budget``."""
    parts = words_of(name)
    if not parts:
        return False
    named = bool(WORDS & set(parts)) or any(inside in part for part in parts for inside in INSIDE)
    token = parts[-1] == "token" and not OF_A_VOCABULARY & set(parts)
    return named or token or bool(PAIRS & set(itertools.pairwise(parts)))


def words_of(name: str) -> list[str]:
    """The words of a dotted name's last part."""
    last = name.rstrip(".").rpartition(".")[2]
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", last).lower()
    return [part for part in re.split(r"[^a-z0-9]+", words) if part]


def names_secret(line: str) -> bool:
    """Whether a line of code or config has a name in it that holds a secret."""
    return any(is_secret(word) for word in re.findall(r"[\w.-]+", line))


def redacted(plain: Any, name: str = "") -> Any:
    """A config, or overrides, without secrets; every other text stays as it is, since a run is made again of it.

    Masked are the values of secret names, and users and passwords of addresses: of values that are one URI, and of all values
    of keys like ``uri`` and ``url``.

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
    """A text under a name, without what is secret in it."""
    if is_secret(name):
        return MASK
    if (words_of(name) or [""])[-1] in PLACES:
        return without_password(text)
    one_uri = re.fullmatch(r"['\"]?[A-Za-z][\w+.-]*\\?:\\?/\S*", text)
    return masked(text) if one_uri else text


def masked(text: str, *uris: str | None) -> str:
    """A message without secrets: values of secret names, users and passwords in URIs, and ``uris``' passwords in any spelling.

    Args:
        text: a message, of a library too.
        uris: URIs whose user and password must not show, wherever the text repeats them.
    """
    for secret in sorted({s for uri in uris if uri for s in passwords(uri)}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return URI.sub(rf"\1{MASK}@", SLASHED.sub(rf"\1{MASK}@", without_assignments(text)))


def without_assignments(text: str) -> str:
    """A text whose ``name=value`` have a masked value where the name is secret's; a value may be quoted, and hold others."""
    parts, done = [], 0
    for name in NAME.finditer(text):
        value = VALUE.match(text, name.end())
        if name.start() >= done and value is not None and is_secret(name[0]):
            parts.append(f"{text[done : name.end()]}={MASK}")
            done = value.end()
    return "".join([*parts, text[done:]])


def passwords(uri: str) -> set[str]:
    """The spellings of a URI's password: as it stands, percent-encoded, decoded, without the backslashes of Hydra's grammar."""
    found = re.match(r"(?:[^/@]*?//+)?[^@]*?:(.*)@", uri, re.DOTALL)
    if found is None:
        return set()
    typed = found[1].replace("\\", "")
    spellings = {found[1], typed, unquote(typed), quote(unquote(typed), safe="")}
    return {s for s in spellings if len(s) >= SHORTEST}


def without_password(uri: str) -> str:
    """An address with user and password masked, however it is spelled: all that stands between its scheme and its last @."""
    scheme = re.match(r"['\"]?(?:[A-Za-z][\w+.-]*\\?:[\\/]+)?", uri)
    begin = scheme.end() if scheme is not None else 0
    plain = CLEAN.match(uri, begin) is not None or uri.lstrip("'\"").startswith("sqlite:///")
    shown = uri if plain or "@" not in uri else f"{uri[:begin]}{MASK}{uri[uri.rindex('@') :]}"
    return without_assignments(shown)


def command_line(words: Sequence[str]) -> str:
    """Words as one line that a shell takes back, newlines included; secrets are masked."""
    return " ".join(map(shell_word, (redacted(word) for word in words)))


def shell_word(word: str) -> str:
    """One word for a shell: ``$'...'`` where it holds control characters, which pages and terminals change."""
    if not re.search(r"[\x00-\x1f\x7f]", word):
        return shlex.quote(word)
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}
    return "$'" + "".join(named.get(c) or (c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}") for c in word) + "'"


def to_terminal() -> logging.Handler:
    """Warnings on standard error, one line each, without secrets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    return handler


class MaskingFormatter(logging.Formatter):
    """A log's line, or a traceback, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, masked."""
        return masked(super().format(record))
