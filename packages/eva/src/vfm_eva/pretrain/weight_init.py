"""Initial weights as in the papers' code. `timm` keeps timm's initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.init import normal_, trunc_normal_, xavier_normal_, xavier_uniform_, zeros_

from vfm.models import has_patch_tokens
from vfm.plugin import UserError
from vfm_eva.pretrain.parts import Init
from vfm_eva.pretrain.students.decoder import sincos_positions
from vfm_eva.pretrain.task import EvaTask

__all__ = ["check_init", "init_weights"]


def check_init(student: nn.Module, init: Init) -> None:
    """Check that the initial weights of a paper are defined for a student's blocks.

    Raises:
        UserError: If eva01 or eva02 is chosen and the student's blocks lack `attn` or `mlp`, whose weights they scale.
    """
    if init == "timm":
        return
    if not has_patch_tokens(student):
        raise UserError(f"student.init: {init} is for vision transformers, got {type(student).__name__}; use timm")
    blocks: Any = student.blocks
    if init in ("eva01", "eva02") and not all(hasattr(block, "attn") and hasattr(block, "mlp") for block in blocks):
        raise UserError(
            f"student.init: {init} is for blocks with one attention and one MLP after it, got"
            f" {type(blocks[0]).__name__}; use timm or mae"
        )


def init_weights(task: EvaTask, init: Init, seed: int) -> None:
    """Draw new weights for student, head, mask token and decoder, in place. `timm` leaves them unchanged.

    init:
        eva01: linear layers, patch embedding, learned positions, class and mask token are drawn from a normal with std
            0.015 truncated at one std (so their std is 0.0081). The output matrices of block number k, counted from 1,
            are divided by sqrt(2 k).
        eva02: linear layers are drawn from Xavier's normal, the patch embedding from Xavier's uniform distribution as a
            linear layer. Positions, class and mask token have std 0.02, truncated at one std. With sub-LN (a norm
            inside the MLP) the MLP's matrices, the value and the output projection are multiplied by
            sqrt(ln(2 * depth)).
        mae: linear layers and the patch embedding are drawn from Xavier's uniform distribution, class and mask token
            with std 0.02. Learned positions are replaced by fixed sine-cosine positions. For EVA-L.

    Sources: Fang et al. 2022 (arXiv:2211.07636), 2023 (arXiv:2303.11331) and their code, Wang et al. 2022, Foundation
    Transformers (arXiv:2210.06423), for sub-LN, He et al. 2021, MAE (arXiv:2111.06377).
    """
    check_init(task.student, init)
    with torch.no_grad():
        if init != "timm":
            _INITS[init](task, torch.Generator().manual_seed(seed))


def _eva01(task: EvaTask, generator: Generator) -> None:
    # 0.015 and not ViT's 0.02, as in EVA's code for the giant model.
    _draw_linears(task, lambda weight: _truncated_normal(weight, 0.015, generator))
    _truncated_normal(_patch_weight(task), 0.015, generator)
    bias = _embed(task).bias
    if bias is not None:  # CLIP's patch embeddings have none
        zeros_(bias)
    for tokens in _tokens(task):
        _truncated_normal(tokens, 0.015, generator)
    for number, block in enumerate(_blocks(task), start=1):
        # BEiT's rule: the residual stream sums two branches a block, and its variance would grow with depth.
        block.attn.proj.weight.div_(math.sqrt(2 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2 * number))


def _eva02(task: EvaTask, generator: Generator) -> None:
    _draw_linears(task, lambda weight: xavier_normal_(weight, generator=generator))
    xavier_uniform_(_patch_weight(task), generator=generator)
    for tokens in _tokens(task):
        _truncated_normal(tokens, 0.02, generator)
    blocks = _blocks(task)
    for block in blocks:
        if isinstance(getattr(block.mlp, "norm", None), nn.LayerNorm):
            for weight in _sub_ln_weights(block):
                # DeepNet's gain for sub-layer norms (Magneto, arXiv:2210.06423), which EVA-02 uses.
                weight.mul_(math.sqrt(math.log(2 * len(blocks))))


def _mae(task: EvaTask, generator: Generator) -> None:
    _draw_linears(task, lambda weight: xavier_uniform_(weight, generator=generator))
    xavier_uniform_(_patch_weight(task), generator=generator)
    for tokens in _tokens(task):
        normal_(tokens, std=0.02, generator=generator)
    student: Any = task.student
    if getattr(student, "pos_embed", None) is None:  # rotary or relative positions only
        return
    positions = sincos_positions(task.grid, student.embed_dim, student.num_prefix_tokens)
    # A model without a position for its class token takes the last rows, those of the patches.
    student.pos_embed.copy_(positions[:, -student.pos_embed.shape[1] :])
    student.pos_embed.requires_grad_(False)


_INITS: dict[str, Callable[[EvaTask, Generator], None]] = {"eva01": _eva01, "eva02": _eva02, "mae": _mae}


def _draw_linears(task: EvaTask, draw: Callable[[Tensor], Tensor]) -> None:
    for module in task.modules():
        if isinstance(module, nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                zeros_(module.bias)


def _sub_ln_weights(block: Any) -> Iterator[Tensor]:
    """Yield a block's matrices, except the query and key projections."""
    for module in block.mlp.modules():
        if isinstance(module, nn.Linear):
            yield module.weight
    yield block.attn.proj.weight
    if getattr(block.attn, "v_proj", None) is not None:
        yield block.attn.v_proj.weight
    else:
        yield block.attn.qkv.weight[-block.attn.qkv.in_features :]


def _tokens(task: EvaTask) -> Iterator[Tensor]:
    for name in ("pos_embed", "cls_token", "reg_token"):
        value = getattr(task.student, name, None)
        if value is not None:
            yield value
    yield task.mask_token


def _embed(task: EvaTask) -> Any:
    student: Any = task.student
    return student.patch_embed.proj


def _patch_weight(task: EvaTask) -> Tensor:
    weight: Tensor = _embed(task).weight
    return weight.view(len(weight), -1)  # as the matrix of a linear


def _blocks(task: EvaTask) -> Any:
    student: Any = task.student
    return student.blocks


def _truncated_normal(tensor: Tensor, std: float, generator: Generator) -> Tensor:
    return trunc_normal_(tensor, std=std, a=-std, b=std, generator=generator)
