"""Requests of any process to stop or to save, on which all processes act after the same step."""

from __future__ import annotations

import torch
from torch import Tensor


class Agreement:
    """Reads the requests of a step from the device without waiting for it.

    They are copied to the host in the background and read after the next step. A request therefore takes effect within
    two steps, and the host is never more than one step ahead of the device.
    """

    def __init__(self) -> None:
        self._copy: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def after_step(self, requests: Tensor, *, wait: bool) -> list[bool]:
        """Read requests, (R,), positive if a process has them.

        Args:
            requests: Requests of this step. All processes have the same values.
            wait: Whether to wait for the device and read them now, and not with the next step.
        """
        if wait:
            self._copy = None
            return [value > 0 for value in requests.tolist()]
        earlier = self._read()
        self._copy = requests.to("cpu", non_blocking=True, copy=True)
        if requests.device.type == "cuda":
            # Waiting for this event waits for the copy alone, and not for the kernels that are queued after it.
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()  # type: ignore[no-untyped-call]
        return earlier or [False] * len(requests)

    def _read(self) -> list[bool]:
        if self._copy is None:
            return []
        if self._copied:
            self._copied.synchronize()
        return [value > 0 for value in self._copy.tolist()]


def reading_is_free(device: torch.device) -> bool:
    """Check whether reading a tensor of the device never waits."""
    return device.type == "cpu"
