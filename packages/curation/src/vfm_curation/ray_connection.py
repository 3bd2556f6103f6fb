"""The connection to a Ray cluster, or to one that is started on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vfm.plugin import UserError
from vfm_curation.runtime import CurationRuntime

CONNECT_SECONDS = 10.0


@contextmanager
def connected_ray(runtime: CurationRuntime) -> Iterator[Any]:
    """Yield the module ray, connected as `runtime` requires. An existing connection is used and left open.

    Raises:
        UserError: If there is no cluster at `ray_address`.
    """
    # Under `uv run` Ray would send the working folder to each worker and resolve its packages again.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # the extra `ray`; reads the variables above when it is imported

    if ray.is_initialized():
        yield ray
        return
    new_cluster = {"address": "local", "num_cpus": runtime.workers or None, "include_dashboard": False}
    where = {"address": runtime.ray_address} if runtime.ray_address else new_cluster
    try:
        _check_listening(_address_of(runtime))
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        why = error.strerror or error
        raise UserError(f"no Ray cluster found at ray_address {runtime.ray_address}: {why}") from None
    except Exception as error:  # of many types, some of them plain: it depends on what the machine lacks
        raise UserError(f"Ray did not start: {type(error).__name__}: {' '.join(str(error).split())}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _address_of(runtime: CurationRuntime) -> str:
    """Find the address that Ray will try. `auto` means RAY_ADDRESS if that is set."""
    named = runtime.ray_address or ""
    if named == "auto":
        return os.environ.get("RAY_ADDRESS", named)
    return named


def _check_listening(address: str) -> None:
    """Connect to HOST:PORT, also with `ray://`. Ray itself tries for minutes and then ends the process.

    Raises:
        OSError: If nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
