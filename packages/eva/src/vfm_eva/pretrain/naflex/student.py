"""The forward pass of timm's vision transformers on rows: all images of a row at once, without padding."""

# B images of a grid, P prefix tokens, N patches of an image, V visible ones, T patches of a row, p side of a patch,
# D width, W width of the decoder

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vfm.plugin import UserError
from vfm_eva.pretrain.naflex.packing import Grid, by_grid, take
from vfm_eva.pretrain.students.decoder import MaskDecoder, sincos_positions
from vfm_kernels import packed_row, positions_of_row, scatter_tokens

__all__ = ["check_row_student", "decode_row", "encode_row"]


def check_row_student(student: nn.Module, seq_len: int, row_tokens: int) -> None:
    """Check that a student can encode rows of images of different sizes.

    Args:
        student: The student, also on the meta device.
        seq_len: Most patches of an image.
        row_tokens: Most tokens of a row.

    Raises:
        UserError: If it cannot, or a row has no room for an image.
    """
    if not isinstance(student, Eva | VisionTransformer):
        raise UserError(f"naflex: expected a VisionTransformer or Eva of timm, got {type(student).__name__}")
    embed = student.patch_embed
    if not isinstance(embed, PatchEmbed):  # a convolutional stem sees the neighbours in the strip
        raise UserError(f"naflex: expected a plain patch embedding, got {type(embed).__name__}")
    size, width = embed.patch_size
    if size != width:
        raise UserError(f"naflex: expected square patches, got {size} x {width} pixels")
    longest = seq_len + student.num_prefix_tokens
    if longest > row_tokens:
        raise UserError(f"naflex.row_tokens: expected at least {longest}, the tokens of an image, got {row_tokens}")
    grids = [(2, 3), (3, 2)]
    pixels = torch.zeros(1, 3, size, 12 * size, device=embed.proj.weight.device)
    try:
        with torch.no_grad():
            encode_row(student, pixels, grids)
    except ValueError as error:
        raise UserError(f"naflex: {type(student).__name__}: {error}") from None


def encode_row(
    student: Any, pixels: Tensor, grids: Sequence[Grid], visible: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Compute the normed tokens of each image of a row, (P + N, D). Images do not see one another.

    Args:
        student: A transformer of timm that takes images of any size (`dynamic_img_size`).
        pixels: Normalised pixels of the images' patches, side by side, (1, 3, p, T p).
        grids: Rows and columns of each image.
        visible: Patches of each image to encode, (V,) integers. The result then has the tokens of these, (P + V, D).

    Raises:
        ValueError: If no attention of the student can take a row.
    """
    prefix = student.num_prefix_tokens
    tokens, tables = _with_positions(student, student.patch_embed(pixels).flatten(0, 2), grids)
    for number, kept in enumerate(visible or ()):
        image = tokens[number]
        tokens[number] = torch.cat([image[:prefix], image[prefix:][kept]])
        if tables:
            tables[number] = tables[number][..., kept, :]
    lengths = list(map(len, tokens))
    rope = positions_of_row(tables, prefix) if tables else None
    with packed_row(student, lengths):
        row = student.norm_pre(torch.cat(tokens)[None])
        for number, block in enumerate(student.blocks):
            if rope is None:
                row = block(row)
            else:
                row = block(row, rope=rope[number] if student.rope_mixed else rope)
    normed: Tensor = student.norm(row)
    return torch.split(normed[0], lengths)


def decode_row(
    decoder: MaskDecoder,
    tokens: Sequence[Tensor],
    grids: Sequence[Grid],
    visible: Sequence[Tensor],
    mask_token: Tensor,
) -> Tensor:
    """Decode the tokens of all patches of a row, (1, T, W), as `MaskDecoder` does those of images of its own size.

    Args:
        decoder: The decoder.
        tokens: Encoded tokens of each image, (P + V, D).
        grids: Rows and columns of each image.
        visible: Patches of each image that are encoded, (V,) integers.
        mask_token: (W,).
    """
    prefix = decoder.num_prefix_tokens
    embedded = torch.split(decoder.embed(torch.cat(tuple(tokens))), list(map(len, tokens)))
    positions = {grid: sincos_positions(grid, decoder.width, prefix)[0].to(mask_token.device) for grid in set(grids)}
    images = []
    for image, grid, index in zip(embedded, grids, visible, strict=True):
        patches = scatter_tokens(image[None, prefix:], index[None], grid[0] * grid[1], fill=mask_token)[0]
        images.append(torch.cat([image[:prefix], patches]) + positions[grid])
    lengths = list(map(len, images))
    row = torch.cat(images)[None]
    with packed_row(decoder, lengths):
        for block in decoder.blocks:
            row = block(row)
    patches = torch.cat([image[prefix:] for image in torch.split(row[0], lengths)])
    normed: Tensor = decoder.norm(patches[None])
    return normed


def _with_positions(student: Any, patches: Tensor, grids: Sequence[Grid]) -> tuple[list[Tensor], list[Tensor]]:
    """Add prefix tokens and learned positions to the patches of a row, (T, D), and compute rotary positions.

    timm's own method does it, once for each grid.

    Returns:
        The tokens of each image, (P + N, D), and timm's rotary positions of each, empty if there are none.
    """
    parts = torch.split(patches, [rows * columns for rows, columns in grids])
    tokens: dict[int, Tensor] = {}
    tables: dict[int, Tensor] = {}
    for grid, numbers in by_grid(grids).items():
        images = torch.stack(take(parts, numbers)).view(len(numbers), *grid, -1)
        placed = student._pos_embed(images)
        together, table = placed if isinstance(student, Eva) else (placed, None)
        for number, image in zip(numbers, together, strict=True):
            tokens[number] = image
            if table is not None:
                tables[number] = table
    return take(tokens, sorted(tokens)), take(tables, sorted(tables))
