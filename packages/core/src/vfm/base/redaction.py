"""Credentials in addresses and settings, replaced by `***` in everything that is stored or shown.

The step that reads an address gets it unchanged. Manifests, runs, events, panels and reports get the redacted form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from vfm.base.plain_data import map_items

MASK = "***"
T = TypeVar("T")

# `https://TOKEN@host` has a secret as its user name. `abfs://container@account` and `ssh://git@host` have none. Path
# normalization may leave one of two slashes. A password may contain a slash. A port with a path is not a password,
# and neither is a chain of addresses (`zip://a.csv::https://host`).
_PASSWORD = re.compile(r"(\w:/+[^/?#\s:@'\"<>,]*):(?:[^/?#\s]*|(?!:|\d{1,5}[/?#])[^\s@]*)@")
_TOKEN_AS_USER = re.compile(r"(?i)(\bhttps?:/+)[^/?#\s:@]+@")
_PARAMETER = re.compile(
    r"(?i)(?<=[?&;#])([\w.-]*(?:signature|sig|credentials?|token|jwt|secret|passphrase|password|passwd|pwd|auth|key|keyid"
    r"|policy)|sas|code)=[^&;#\s\"'<>`]*[^&;#\s\"'<>`:,.]"  # a message may go on with a colon
)
_WORDS = (
    "password|passwd|passphrase|secret|api_?key|access_?key(?:_?id)?|access_token|auth_token|jwt|client_secret"
    "|secret_(?:access_)?key|private_?key|connection_?string|pwd|(?:hf|hub|github|session|refresh|id|bot)_token"
)
_VALUE = r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|[^\s,'\"&}\]]*[^\s,'\"&}\]:]"  # a message may go on with a colon
_MISTAKE = r"unknown key\b|is required|expected an? "  # text after the key in the error of a recipe
_NAMED = re.compile(rf"(?i)(?<![\w.-])((?:[\w.-]*[_.-])?(?:{_WORDS})['\"]?\s*[:=]\s*)(?!{_MISTAKE})(?:{_VALUE})")
# A header's value continues after a space. `Basic` alone is an English word, so it counts after the header's name only.
_HEADER = re.compile(r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|token)?\s*)[^\s'\",}]+")
_BEARER = re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{16,}")
_COOKIE = re.compile(r"(?i)(\b(?:set-)?cookie['\"]?\s*[:=]\s*['\"]?)[^'\"\n]+")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")  # Hugging Face's, also as the user in `hf://TOKEN@`
_SECRET_KEY = re.compile(rf"(?i)(?:\w+[_-])?(?:{_WORDS})|token|credentials?|authorization|(?:set-)?cookie")
_OPTIONS = "storage_options"  # options of fsspec, in which `key` is half of a credential
_OPTION = re.compile(r"(?i)(?:\w+_)?(?:key|token|connection_string)")
_OPTIONS_IN_TEXT = re.compile(rf"(?i)({_OPTIONS}['\"]?\s*[:=]\s*)\{{[^{{}}]*\}}")


def redacted(value: T) -> T:
    """Replace all credentials in the strings of plain data by `***`.

    Credentials are the `user:password@` of an address, its signed query parameters (`X-Amz-Signature`, `sig`, `token`,
    ...), and the values of keys such as `password`, `secret` and `api_key`.
    """
    shown: Any = value
    if isinstance(value, str):
        shown = _redacted_text(value)
    elif isinstance(value, Mapping):
        shown = {redacted(key): _redacted_item(key, item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        shown = list(map(redacted, value))
    return shown  # type: ignore[no-any-return]


def redacted_words(words: Iterable[str]) -> list[str]:
    """Replace the credentials in the words of a command line, including `--set NAME.token=VALUE`."""
    shown_words = []
    for word in words:
        name, equals, _ = word.partition("=")
        secret = equals and is_secret_name(name.rsplit(".", 1)[-1])
        shown_words.append(f"{name}={MASK}" if secret else redacted(word))
    return shown_words


def _redacted_text(text: str) -> str:
    if ":/" in text:
        text = _TOKEN_AS_USER.sub(rf"\1{MASK}@", _PASSWORD.sub(rf"\1:{MASK}@", text))
    if "=" in text:
        text = _PARAMETER.sub(rf"\1={MASK}", text)
    if "hf_" in text:
        text = _HUB_TOKEN.sub(MASK, text)
    if ":" in text or "=" in text or "earer" in text:
        for header in (_HEADER, _BEARER, _COOKIE):
            text = header.sub(rf"\1{MASK}", text)
        text = _NAMED.sub(rf"\1{MASK}", _OPTIONS_IN_TEXT.sub(rf"\1{MASK}", text))
    return text


def _redacted_item(key: object, item: Any) -> Any:
    if is_secret_name(key):
        return _masked(item)
    if key == _OPTIONS and isinstance(item, Mapping):
        shown = {}
        for name, value in item.items():
            shown[name] = MASK if _OPTION.fullmatch(str(name)) else _redacted_item(name, value)
        return shown
    return redacted(item)


def is_secret_name(name: object) -> bool:
    """Check whether a key with this name holds a secret, such as `password` or `auth_token`."""
    return isinstance(name, str) and bool(_SECRET_KEY.fullmatch(name))


def _masked(value: Any) -> Any:
    """Replace all text in a secret value. Numbers and empty values stay."""
    if isinstance(value, str):
        return MASK if value else value
    return map_items(_masked, value)
