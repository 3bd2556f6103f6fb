"""The connection to a Ray cluster, or to one that is started on this machine. Ray is imported when it is used."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vfm.base.config import UserError

CONNECT_SECONDS = 10.0


@contextmanager
def connected_ray(address: str | None, num_cpus: int = 0) -> Iterator[Any]:
    """Yield the module ray, connected to a cluster. An existing connection is used and left open.

    Args:
        address: HOST:PORT, or `auto` for RAY_ADDRESS or else the cluster that `ray start` started here. None: start one
            on this machine.
        num_cpus: CPUs of a cluster that is started; 0: all.

    Raises:
        UserError: If Ray is not installed, or there is no cluster at the address.
    """
    # Under `uv run` Ray would send the working folder to each worker and resolve its packages again.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # reads the variables above when it is imported
    except ImportError:
        raise UserError("Ray is not installed: pip install 'ray>=2.50,<3'") from None
    if ray.is_initialized():
        yield ray
        return
    new_cluster = {"address": "local", "num_cpus": num_cpus or None, "include_dashboard": False}
    where = {"address": address} if address else new_cluster
    try:
        _check_listening(_address_that_ray_tries(address))
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        raise UserError(f"no Ray cluster found at {address}: {error.strerror or error}") from None
    except Exception as error:  # of many types, some of them plain: it depends on what the machine lacks
        raise UserError(f"Ray did not start: {type(error).__name__}: {' '.join(str(error).split())}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _address_that_ray_tries(address: str | None) -> str:
    if address == "auto":
        return os.environ.get("RAY_ADDRESS", address)
    return address or ""


def _check_listening(address: str) -> None:
    """Connect to HOST:PORT, also with `ray://`. Ray itself tries for minutes and then ends the process.

    Raises:
        OSError: If nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
