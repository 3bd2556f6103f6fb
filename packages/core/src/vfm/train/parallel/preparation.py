"""Prepare a task's layers by compilation, channels-last, synchronised batch norm and activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vfm.base import UserError
from vfm.interfaces import Context, TrainingRuntime
from vfm.train.parallel.blocks import blocks
from vfm.train.parallel.dist import DistributedWorld
from vfm.train.task import Metrics, Task

Method = Callable[..., tuple[Tensor, Metrics]]
Compile = Callable[[Method], Method]

# Operations whose outputs selective checkpointing keeps: matrix products, convolutions and attention. All others
# (norms, activations, sums) are cheap to compute again, and have most of the bytes.
KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
# The same of `vfm_kernels`, which core does not import.
KEPT_NAMES = {"vfm_kernels.attention.default", "vfm_kernels.attention_packed.default"}


@contextmanager
def prepared(task: Task[Any], runtime: TrainingRuntime, ctx: Context, world: DistributedWorld) -> Iterator[Compile]:
    """Prepare the layers of a task and its frozen models by the runtime.

    Parameters, buffers and their names stay the same. After the context the layers run as before, except that batch
    norms stay synchronised.

    Args:
        task: Task on its device.
        runtime: Settings of compilation, checkpointing and norms.
        ctx: Context of the stage.
        world: This process.

    Yields:
        A function that compiles methods. It only does so if the task is compiled as a whole.

    Raises:
        UserError: If batch norms cannot be synchronised on this device, or there are no blocks to compile or recompute.
    """
    models: list[nn.Module] = [task, *(held.module for held in task.frozen())]
    if runtime.sync_batch_norm and world.size > 1:
        _synchronise(task, world)
    if runtime.channels_last:
        for model in models:
            to_channels_last(model)
    with ExitStack() as stack:
        if runtime.selective_checkpointing:
            stack.enter_context(recomputed(_blocks(task, ctx, "selective_checkpointing: true")))
        if runtime.compile == "blocks":
            stack.enter_context(compiled(_blocks(task, ctx, "compile: blocks", *models[1:]), runtime.compile_mode))
        yield cache(partial(_compiled_method, runtime.compile_mode)) if runtime.compile == "whole" else _unchanged


def _unchanged(method: Method) -> Method:
    return method


def _compiled_method(mode: str, method: Method) -> Method:
    optimized: Method = torch.compile(method.forward if isinstance(method, nn.Module) else method, mode=mode)
    return optimized


def _blocks(task: Task[Any], ctx: Context, setting: str, *frozen: nn.Module) -> list[nn.Module]:
    """Find the blocks of a task and of frozen models.

    Raises:
        UserError: If there are no blocks.
    """
    composite = []
    for model in (task, *frozen):
        for block in blocks(model):
            if list(block.children()):
                composite.append(block)
    if not composite:
        raise UserError(f"{ctx.stage}: runtime.{setting}: {type(task).__name__} has no list of equal blocks")
    return composite


def _synchronise(task: Task[Any], world: DistributedWorld) -> None:
    if world.device.type != "cuda":
        raise UserError(
            f"runtime.sync_batch_norm: torch synchronises batch norms on CUDA devices only, got {world.device.type}"
        )
    convert_sync_batchnorm(task)


def to_channels_last(model: nn.Module) -> None:
    """Store the weights of 2-D convolutions with the channels last. This is faster on tensor cores."""
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def compiled(modules: list[nn.Module], mode: str = "default") -> Iterator[None]:
    """Compile modules in place within the context. Blocks of the same class share code that is compiled once."""
    try:
        for module in modules:
            module.compile(mode=mode)
        yield
    finally:
        for module in modules:
            # Where `nn.Module.compile` stores the compiled call. torch has no public way to undo it.
            module._compiled_call_impl = None


def uncompiled(runtime: TrainingRuntime) -> AbstractContextManager[Any]:
    """Create a context for evaluations, in which layers run eagerly, as their shapes would need another compilation."""
    return torch.compiler.set_stance("force_eager") if runtime.compile else nullcontext()


@contextmanager
def recomputed(modules: list[nn.Module]) -> Iterator[None]:
    """Keep only activations from operations in `KEPT` within the context, and recompute the others.

    Source: Korthikanti et al. 2022, Reducing Activation Recomputation (arXiv:2205.05198), section 5.
    """
    try:
        for module in modules:
            module.forward = partial(_checkpointed, module, module.forward)
        yield
    finally:
        for module in modules:
            del module.forward  # the method of the class is used again


def _checkpointed(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_kept = operation in KEPT or str(operation) in KEPT_NAMES
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
