"""A training step never waits for the device: on a GPU the host would fall behind by the whole queue.

No GPU is needed to find such waits: steps run on the CPU, and the calls that would wait on a GPU are counted where they
are made, forward and backward.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from small import QUICKSTART, words
from vfm.cli import main
from vfm.train import loop

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "equal", "allclose"}
SHAPES = {"nonzero", "masked_select", "unique"}  # the host must know how many there are
COPIES = {"new_tensor", "tensor", "as_tensor"}  # of numbers of the host
# The prior encodes captions of some samples and pictures of the others: it waits to learn which.
KNOWN = {"vfm_diva/prior_task.py"}


class Waits(TorchFunctionMode):
    """Counts the calls that wait for a GPU, by the file of ours that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS | SHAPES or _copies(name, args, kwargs or {}) or _indexes_by_a_mask(name, args):
            frames = [Path(frame.filename).parts[-2:] for frame in traceback.extract_stack()]
            ours = [
                "/".join(parts) for parts in frames if parts[0].startswith("vfm") or parts[0] in ("train", "models")
            ]
            self.found[name, ours[-1]] += 1
        return func(*args, **(kwargs or {}))


def _copies(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether numbers of the host become a tensor of the device; `torch.tensor` alone makes one of the host."""
    if name == "new_tensor":
        return True
    return name in COPIES and "device" in kwargs and not isinstance(args[0], Tensor)


def _indexes_by_a_mask(name: str, args: tuple[Any, ...]) -> bool:
    if name != "__getitem__":
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index)


def test_the_counter_finds_each_kind_of_wait():
    def example(x: Tensor) -> None:
        x.sum().item()
        bool(x.any())
        x.new_tensor([1.0])
        torch.tensor([1.0], device=x.device)
        x[x > 0]
        torch.tensor([1.0]).to(x.device, non_blocking=True)  # no wait

    code = compile("def call(function, x):\n    function(x)\n", "/vfm_ours/call.py", "exec")
    names: dict[str, Any] = {}
    exec(code, names)
    with Waits() as waits:
        names["call"](example, torch.ones(3))
    assert sum(waits.found.values()) == 5
    assert {file for _, file in waits.found} == {"vfm_ours/call.py"}


def test_no_step_of_eva_clip_and_diva_waits_for_the_device(tmp_path, monkeypatch):
    waits, steps, optimize = Waits(), Counter[str](), loop._Loop._optimize

    def counted(self: Any, *args: Any) -> Tensor:
        steps[type(self.task).__name__] += 1
        with waits:
            return optimize(self, *args)

    monkeypatch.setattr(loop._Loop, "_optimize", counted)
    arguments = ["vfm", "run", "quickstart", "--store", str(tmp_path / "store"), "--quiet", *words(QUICKSTART)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert {"EvaTask", "ClipTask", "TuneTask", "PriorTask"} <= set(steps), steps
    assert {where: count for where, count in waits.found.items() if where[1] not in KNOWN} == {}
