"""Credentials of remote addresses. They are read from the environment, and not stored in datasets, which may be shared.

`VFM_CREDENTIALS` has addresses with credentials, or is a file with one in each line:

    https://user:password@host/folder/
    https://host/container/?sv=2026-02-06&sig=...

Each entry applies to all addresses that begin with it, which get its user, password and query when they are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vfm.base import UserError, redacted

VARIABLE = "VFM_CREDENTIALS"
_EXAMPLES = "https://user:password@host/folder/ or https://host/folder/?signature=..."

_USER = re.compile(r"://[^/?#@]*@")


@dataclass(frozen=True)
class _Credential:
    """Credentials of the addresses with a common beginning.

    They are `user:password` and a query.
    """

    beginning: str
    user: str
    query: str

    @classmethod
    def of(cls, address: str) -> _Credential:
        scheme, separator, rest = address.partition("://")
        rest, _, query = rest.partition("?")
        host, slash, path = rest.partition("/")
        user, _, host = host.rpartition("@")
        if not separator or not host or not (user or query):
            raise UserError(f"{VARIABLE}: expected addresses with credentials, such as {_EXAMPLES}")
        return cls(f"{scheme}://{host}{slash}{path}", user, query)

    def is_for(self, address: str) -> bool:
        """Check whether an address begins with this one. The host `a.org` is not a beginning of `a.org.evil.com`."""
        if not address.startswith(self.beginning):
            return False
        rest = address[len(self.beginning) :]
        return not rest or self.beginning.endswith("/") or rest[0] in "/?"

    def complete(self, address: str) -> str:
        """Add the user, password and query to an address."""
        if self.user:
            address = address.replace("://", f"://{self.user}@", 1)
        if self.query:
            address += ("&" if "?" in address else "?") + self.query
        return address


def with_credentials(address: str) -> str:
    """Complete an address by the longest beginning in `VFM_CREDENTIALS`. Others stay as they are.

    Raises:
        UserError: If `VFM_CREDENTIALS` is not readable, or has something else.
    """
    setting = os.environ.get(VARIABLE, "")
    fitting = [credential for credential in _credentials(setting) if credential.is_for(address)]
    if not fitting:
        return address
    return max(fitting, key=lambda credential: len(credential.beginning)).complete(address)


def is_for_one_file(address: str) -> bool:
    """Check whether an address has credentials for this file only, such as a signature."""
    return any(credential.beginning == address for credential in _credentials(os.environ.get(VARIABLE, "")))


def without_user(address: str) -> str:
    """Remove the user and password from an address, so that it can be stored."""
    return _USER.sub("://", address, count=1)


@lru_cache
def _credentials(setting: str) -> list[_Credential]:
    if setting and "://" not in setting:
        try:
            setting = Path(setting).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise UserError(f"{VARIABLE}: {setting}: not readable: {reason}") from None
    return list(map(_Credential.of, setting.split()))


def check_addresses(paths: Iterable[str]) -> None:
    """Check that no address has credentials, since datasets store the addresses of their files.

    Raises:
        UserError: If one has.
    """
    for path in paths:
        shown = redacted(path) if "://" in path else path
        if shown != path:
            raise UserError(
                f"{shown}: expected an address without credentials, because datasets keep it; set {VARIABLE} to the"
                f" addresses with credentials, or to a file of them, such as {_EXAMPLES}"
            )
