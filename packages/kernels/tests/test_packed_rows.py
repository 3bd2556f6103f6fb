"""Sequences in one row have the outputs and gradients of each alone, and of a padded batch with a mask."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vfm_kernels import attention
from vfm_kernels.layers.packed_rows import packed_row, positions_of_row

timm = pytest.importorskip("timm")
GRIDS = [(2, 3), (4, 4), (1, 5), (3, 1)]  # images of different sides
EVA = {"use_rot_pos_emb": True, "dynamic_img_size": True}
MODELS: dict[str, dict[str, Any]] = {
    "EVA-02": EVA,
    "EVA-02, separate": {**EVA, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True},
    "DINOv3": {**EVA, "rope_type": "dinov3", "rope_rotate_half": True, "num_reg_tokens": 2},
    "QK norm": {**EVA, "qk_norm": True},
    "mixed": {**EVA, "rope_type": "mixed", "attn_type": "rope"},
    "ViT": {},
}


def build(name: str) -> Any:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    make = timm.models.VisionTransformer if name == "ViT" else timm.models.eva.Eva
    torch.manual_seed(0)
    model = make(**sizes, **MODELS[name])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def positions(model: Any, grid: tuple[int, int]) -> Tensor | None:
    return model.rope.get_embed(shape=list(grid)) if hasattr(model, "rope") else None


def through(model: Any, tokens: Tensor, rope: Tensor | None) -> Tensor:
    for number, block in enumerate(model.blocks):
        if rope is None:
            tokens = block(tokens)
        else:
            tokens = block(tokens, rope=rope[number] if model.rope_mixed else rope)
    return tokens


@pytest.mark.parametrize("name", MODELS)
def test_a_row_has_the_outputs_and_gradients_of_each_sequence_alone(name: str) -> None:
    model = build(name)
    prefix = model.num_prefix_tokens
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(1, prefix + rows * columns, 32, generator=generator) for rows, columns in GRIDS]
    alone = [through(model, part, positions(model, grid)) for part, grid in zip(sequences, GRIDS, strict=True)]
    weights = list(model.blocks.parameters())
    if name == "mixed":
        weights += list(model.rope.parameters())
    expected = torch.autograd.grad(sum(part.square().sum() for part in alone), weights)
    lengths = [part.shape[1] for part in sequences]
    rope = None if name == "ViT" else positions_of_row([positions(model, grid) for grid in GRIDS], prefix)
    before = [type(layer) for layer in model.modules()]
    with packed_row(model, lengths):
        row = through(model, torch.cat(sequences, dim=1), rope)
    torch.testing.assert_close(row, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-4)
    found = torch.autograd.grad(row.square().sum(), weights)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    assert [type(layer) for layer in model.modules()] == before
    assert not any(hasattr(layer, "row") for layer in model.modules())


def test_a_row_has_the_outputs_of_a_padded_batch_with_fewer_tokens() -> None:
    model = build("ViT")
    lengths = [6, 16, 5, 3]
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(length, 32, generator=generator) for length in lengths]
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    present = torch.arange(16) < torch.tensor(lengths)[:, None]
    tokens = padded
    for block in model.blocks:
        tokens = block(tokens, attn_mask=present[:, None, None, :])
    with packed_row(model, lengths):
        row = through(model, torch.cat(sequences)[None], None)
    torch.testing.assert_close(row[0], tokens[present], rtol=1e-4, atol=1e-4)
    assert row.shape[1] == 30
    assert padded.shape[0] * padded.shape[1] == 64


def test_sequences_of_a_row_are_not_multiplied_with_one_another_on_a_cpu() -> None:
    q, k, v = torch.randn(3, 1, 100, 2, 16, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0, 3, 3, 10, 100], dtype=torch.int32)
    expected = attention(q, k, v, cu_seqlens=ends)
    v[:, 3:10] = float("nan")  # a weight of zero would spread it
    mixed = attention(q, k, v, cu_seqlens=ends)
    assert mixed[:, 3:10].isnan().all()
    torch.testing.assert_close(mixed[:, 10:], expected[:, 10:])
    torch.testing.assert_close(mixed[:, :3], expected[:, :3])


def test_what_a_row_cannot_hold_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="expected a model with attentions of timm, got Linear"),
        packed_row(nn.Linear(2, 2), [1]),
    ):
        pass
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.5
    )
    with pytest.raises(ValueError, match="drop path would drop all sequences"), packed_row(model.train(), [2, 3]):
        pass
    with pytest.raises(ValueError, match="cu_seqlens"), packed_row(model.eval(), [2, 3]):
        through(model, torch.randn(1, 9, 16), None)
