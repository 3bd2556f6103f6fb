"""Count the memory of the papers' training runs in bytes, on tensors without contents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm.models import blueprint
from vfm_eva import EvaPretrain
from vfm_eva.pretrain.building import build_student
from vfm_eva.pretrain.pretrain import build_task
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.stored import StoredTargets
from vfm_eva.targets.teacher import Teacher

RECIPES = ["eva_02_ti", "eva_02_s", "eva_02_b", "eva_02_l", "eva_l", "eva_g"]


def counted(recipe: str) -> dict[str, int]:
    """Count the memory of a process: weights, gradients and AdamW's averages in fp32, the teacher in bf16.

    Activations are the tensors that autograd keeps for a micro-batch with fused attention, including weights cast to
    bf16 by autocast. With grad_checkpointing they are counted at the peak, when the largest block is recomputed. Not
    counted are the teacher's activations (free again before the student's are stored), temporaries of the backward
    pass, unused memory of the allocator, and CUDA itself.
    """
    source, stage = _stages(recipe)
    clip = blueprint(source)
    teacher = Teacher(clip, clip.preprocess, bf16=True)
    with torch.device("meta"):
        plain = stage.model_copy(update={"grad_checkpointing": False})
        task: Any = build_task(plain, build_student(plain), StoredTargets(clip.embed_dim))
    trained = sum(parameter.nbytes for parameter in task.parameters() if parameter.requires_grad)
    micro_batch = stage.micro_batch_size or stage.global_batch_size
    kept, with_checkpointing = _activations(task, micro_batch, clip.embed_dim)
    rows = {
        "micro-batch": micro_batch,
        "weights": sum(parameter.nbytes for parameter in task.parameters()),
        "gradients": trained,
        "optimizer": 2 * trained,
        "teacher": sum(parameter.nbytes for parameter in teacher.module.parameters()),
        "activations": kept,
        "activations with grad_checkpointing": with_checkpointing,
    }
    own = with_checkpointing if stage.grad_checkpointing else kept
    return rows | {"sum, as the recipe has it": sum(list(rows.values())[1:5]) + own}


def _stages(recipe: str) -> tuple[str, EvaPretrain]:
    """Load the teacher's architecture and the training stage from a recipe."""
    known = stage_types(load_plugins())
    with TemporaryDirectory() as folder:
        file = Path(folder) / "a.tar"
        file.touch()
        _, teacher, stage = load_recipe(recipe, known, [f"data.path={file}"]).stages
    assert isinstance(stage, EvaPretrain)
    return teacher.source, stage  # type: ignore[attr-defined]


def _activations(task: Any, micro_batch: int, width: int) -> tuple[int, int]:
    """Count the bytes that a backward pass needs, with all activations kept or recomputed block by block."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    size, num_patches = task.preprocess.image_size, task.grid[0] * task.grid[1]
    with FakeTensorMode(allow_non_fake_inputs=True):
        task = task.to_empty(device="cpu").train()
        inputs = EvaInputs(
            images=torch.zeros(micro_batch, 3, size, size, dtype=torch.uint8),
            bool_mask=torch.zeros(micro_batch, num_patches, dtype=torch.bool),
            targets=torch.zeros(micro_batch, num_patches, width, dtype=torch.bfloat16),
        )
        precision = torch.autocast("cpu", dtype=torch.bfloat16)
        with _Kept(task) as kept, _by_block(task.student.blocks, kept) as blocks, precision:
            task(inputs)
    inside, inputs = sum(block for block, _ in blocks), sum(entered for _, entered in blocks)
    return kept.bytes, kept.bytes - inside + inputs + max(block for block, _ in blocks)


class _Kept(saved_tensors_hooks):
    """Counts the tensors that autograd saves, each storage once, without parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self.seen: dict[int, Tensor] = {_storage(parameter): parameter for parameter in module.parameters()}
        self.bytes = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self.seen:
            self.seen[_storage(tensor)] = tensor  # held, so that its address is not used again
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    def __enter__(self) -> _Kept:  # type: ignore[override]
        super().__enter__()
        return self


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _by_block(blocks: nn.ModuleList, kept: _Kept) -> Iterator[list[tuple[int, int]]]:
    """Yield the bytes kept inside each block, and the bytes of its input."""
    found: list[tuple[int, int]] = []
    before: list[int] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        before.append(kept.bytes)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append((kept.bytes - before.pop(), inputs[0].nbytes))

    handles = [block.register_forward_pre_hook(enter) for block in blocks]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
