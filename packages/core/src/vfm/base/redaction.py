"""Credentials in addresses and settings, replaced by `***` in everything that is kept or shown.

The step that reads an address gets it whole; manifests, runs, events, panels and reports get what this module returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

MASK = "***"
T = TypeVar("T")

# `https://TOKEN@host` has a secret for a user's name; `abfs://container@account` and `ssh://git@host` have none. A path
# keeps one slash of two. A password with a slash is no port with a path, and no chain (`zip://a.csv::https://host`).
_PASSWORD = re.compile(r"(\w:/+[^/?#\s:@'\"<>,]*):(?:[^/?#\s]*|(?!:|\d{1,5}[/?#])[^\s@]*)@")
_TOKEN_AS_USER = re.compile(r"(?i)(\bhttps?:/+)[^/?#\s:@]+@")
_PARAMETER = re.compile(
    r"(?i)(?<=[?&;#])([\w.-]*(?:signature|sig|credentials?|token|jwt|secret|passphrase|password|passwd|pwd|auth|key|keyid"
    r"|policy))=[^&;#\s\"'<>`]*[^&;#\s\"'<>`:,.]"  # a message may go on with a colon
)
_WORDS = (
    "password|passwd|passphrase|secret|api_?key|access_?key(?:_?id)?|access_token|auth_token|jwt|client_secret"
    "|secret_(?:access_)?key"
)
_VALUE = r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|[^\s,'\"&}\]]*[^\s,'\"&}\]:]"  # a message may go on with a colon
_MISTAKE = r"unknown key\b|is required|expected an? "  # what follows the key in the error of a recipe
_NAMED = re.compile(rf"(?i)(?<![\w.-])((?:[\w.-]*[_.-])?(?:{_WORDS})['\"]?\s*[:=]\s*)(?!{_MISTAKE})(?:{_VALUE})")
_SECRET_KEY = re.compile(rf"(?i)(?:\w+[_-])?(?:{_WORDS})|token|credentials?|authorization")
_OPTIONS = "storage_options"  # fsspec's, for which `key` is half of a credential
_OPTION = re.compile(r"(?i)(?:\w+_)?(?:key|token|connection_string)")
_OPTIONS_IN_TEXT = re.compile(rf"(?i)({_OPTIONS}['\"]?\s*[:=]\s*)\{{[^{{}}]*\}}")


def redacted(value: T) -> T:
    """Return plain data with all credentials in its strings replaced by `***`.

    These are the `user:password@` of an address, its signed query parameters (`X-Amz-Signature`, `sig`, `token`, ...),
    and the values of keys such as `password`, `secret` and `api_key`.
    """
    found: Any = value
    if isinstance(value, str):
        found = _redacted_text(value)
    elif isinstance(value, Mapping):
        found = {redacted(key): _redacted_item(key, item) for key, item in value.items()}
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
    if ":/" in text:
        text = _TOKEN_AS_USER.sub(rf"\1{MASK}@", _PASSWORD.sub(rf"\1:{MASK}@", text))
    if "=" in text:
        text = _PARAMETER.sub(rf"\1={MASK}", text)
    if ":" in text or "=" in text:
        text = _NAMED.sub(rf"\1{MASK}", _OPTIONS_IN_TEXT.sub(rf"\1{MASK}", text))
    return text


def _redacted_item(key: object, item: Any) -> Any:
    if is_secret_name(key):
        return _masked(item)
    if key == _OPTIONS and isinstance(item, Mapping):
        return {name: MASK if _OPTION.fullmatch(str(name)) else _redacted_item(name, one) for name, one in item.items()}
    return redacted(item)


def is_secret_name(name: object) -> bool:
    """Return whether a key with this name holds a secret, such as `password` or `auth_token`."""
    return isinstance(name, str) and bool(_SECRET_KEY.fullmatch(name))


def _masked(value: Any) -> Any:
    """Return a secret value with all of its texts replaced; numbers and what is empty stay."""
    if isinstance(value, str):
        return MASK if value else value
    if isinstance(value, Mapping):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value
