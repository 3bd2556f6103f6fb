"""Credentials in addresses and settings, replaced by `***` in everything that is kept or shown.

The step that reads an address gets it whole; manifests, runs, events, panels and reports get what this module returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

MASK = "***"
T = TypeVar("T")

# `https://TOKEN@host` has a secret for a user's name; `abfs://container@account` and `ssh://git@host` have none.
_PASSWORD = re.compile(r"(?<=://)([^/?#\s:@]*):[^/?#\s]*@")
_TOKEN_AS_USER = re.compile(r"(?i)(\bhttps?://)[^/?#\s:@]+@")
_PARAMETER = re.compile(
    r"(?i)(?<=[?&;#])([\w.-]*(?:signature|sig|credentials?|token|secret|password|passwd|pwd|auth|key|keyid|policy))"
    r"=[^&;#\s\"'<>`]*[^&;#\s\"'<>`:,.]"  # a message may go on with a colon
)
_WORDS = "password|passwd|secret|api_?key|access_?key|access_token|auth_token|client_secret|secret_(?:access_)?key"
_VALUE = r"'[^']*'|\"[^\"]*\"|[^\s,'\"&}\]]*[^\s,'\"&}\]:]"  # a message may go on with a colon
_MISTAKE = r"unknown key\b|is required|expected an? "  # what follows the key in the error of a recipe
_NAMED = re.compile(rf"(?i)(?<![\w-])({_WORDS})(['\"]?\s*[:=]\s*)(?!{_MISTAKE})(?:{_VALUE})")
_SECRET_KEY = re.compile(rf"(?i)(?:\w+[_-])?(?:{_WORDS})|token|credentials?|authorization")


def redacted(value: T) -> T:
    """Return plain data with all credentials in its strings replaced by `***`.

    These are the `user:password@` of an address, its signed query parameters (`X-Amz-Signature`, `sig`, `token`, ...),
    and the values of keys such as `password`, `secret` and `api_key`.
    """
    found: Any = value
    if isinstance(value, str):
        found = _redacted_text(value)
    elif isinstance(value, Mapping):
        found = {redacted(key): MASK if _is_secret(key, item) else redacted(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        found = [redacted(item) for item in value]
    return found  # type: ignore[no-any-return]


def redacted_words(words: Iterable[str]) -> list[str]:
    """Return the words of a command line without credentials, those of `--set NAME.token=VALUE` included."""
    found = []
    for word in words:
        name, equals, _ = word.partition("=")
        secret = equals and is_secret_name(name.rpartition(".")[2])
        found.append(f"{name}={MASK}" if secret else redacted(word))
    return found


def _redacted_text(text: str) -> str:
    if "://" in text:
        text = _TOKEN_AS_USER.sub(rf"\1{MASK}@", _PASSWORD.sub(rf"\1:{MASK}@", text))
    if "=" in text:
        text = _PARAMETER.sub(rf"\1={MASK}", text)
    return _NAMED.sub(rf"\1\2{MASK}", text)


def is_secret_name(name: object) -> bool:
    """Return whether a key with this name holds a secret, such as `password` or `auth_token`."""
    return isinstance(name, str) and bool(_SECRET_KEY.fullmatch(name))


def _is_secret(key: object, value: object) -> bool:
    return isinstance(value, str) and bool(value) and is_secret_name(key)
