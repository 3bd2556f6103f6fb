"""Compute matrix products in FP8 by torchao (`precision: amp_fp8`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from vfm.base import UserError, how_to_install
from vfm.interfaces import Context
from vfm.train.parallel.blocks import blocks
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.task import Task

OLDEST_CAPABILITY = (8, 9)  # Ada and Hopper: the first tensor cores with FP8
MULTIPLE = 16  # torch's scaled products need inner and outer widths that are multiples


def check_float8(precision: str) -> None:
    """Check that torchao is installed if the precision is `amp_fp8`.

    Raises:
        UserError: If it is not.
    """
    if precision == "amp_fp8" and find_spec("torchao") is None:
        raise UserError(f"precision: amp_fp8 needs torchao: {how_to_install('vfm-core[fp8]')}")


@contextmanager
def float8_products(task: Task[Any], ctx: Context, world: DistributedWorld) -> Iterator[None]:
    """Compute the products of the linear layers in a task's blocks in FP8 within the context, forward and backward.

    Inputs and weights are e4m3, output gradients e5m2, each tensor with a scale from its largest value. Layers keep
    their parameters, names and hooks. Layers outside of lists of blocks, such as the first and the last one, frozen
    models and evaluations keep the precision of autocast. A CPU emulates FP8: numbers are rounded, nothing is faster.

    Args:
        task: Task on its device.
        ctx: Context of the stage.
        world: This process.

    Raises:
        UserError: If torchao is not installed, the device has no FP8, or no layer has suitable widths.

    Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning (arXiv:2209.05433).
    """
    check_float8("amp_fp8")
    device = world.device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        raise UserError(
            f"{ctx.stage}: precision: amp_fp8 needs a device of compute capability 8.9 or above,"
            f" {torch.cuda.get_device_name(device)} has less; use amp_bf16"
        )
    template = _template(device)
    num_linear = 0
    suitable = []
    for block in blocks(task):
        for layer in block.modules():
            if type(layer) is nn.Linear:
                num_linear += 1
                if layer.in_features % MULTIPLE == layer.out_features % MULTIPLE == 0:
                    suitable.append(layer)
    if not suitable:
        raise UserError(
            f"{ctx.stage}: precision: amp_fp8 needs linear layers in blocks, of widths that are multiples of"
            f" {MULTIPLE}; {type(task).__name__} has {num_linear} linear layers in blocks, none of such widths"
        )
    if world.is_main:
        ctx.log(f"fp8: {len(suitable)} of {num_linear} linear layers in blocks")
    settings = {name: value for name, value in vars(template).items() if name not in vars(suitable[0])}
    # The class is replaced, not the layer: the optimizer, DDP, hooks of padded widths and checkpoints know the layer.
    converted = _only_in_training(type(template))
    for layer in suitable:
        layer.__class__ = converted
        vars(layer).update(settings)
    try:
        yield
    finally:
        for layer in suitable:
            layer.__class__ = nn.Linear
            for name in settings:
                vars(layer).pop(name)


def _only_in_training(float8: Any) -> type[nn.Linear]:
    """Derive a class whose layers multiply as before when they evaluate."""

    class Float8InTraining(float8):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = super().forward(x) if self.training else nn.Linear.forward(self, x)
            return result

    return Float8InTraining


def _template(device: torch.device) -> nn.Module:
    """Build a layer of torchao, whose class and settings other layers take."""
    # It warns that its compiled extensions, which FP8 does not use, are for another version of torch.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    float8 = import_module("torchao.float8")
    config = float8.Float8LinearConfig(emulate=device.type == "cpu")
    linear = nn.Linear(MULTIPLE, MULTIPLE, device="meta")
    layer: nn.Module = float8.convert_to_float8_training(linear, config=config)
    return layer
