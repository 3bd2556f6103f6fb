"""Rules of the last block: equal to their formulas written out, on every kind of tower, and their own properties."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.eval.open_segmentation.last_block_rules import (
    ClearClip,
    LastBlockRule,
    MaskClip,
    MaskClipBare,
    NaClip,
    ProxyClip,
    Sclip,
    UnchangedClip,
)
from vfm.eval.open_segmentation.pamr import refine_scores
from vfm.eval.open_segmentation.rules import neighbourhood, proxy_attention
from vfm.interfaces import Ref
from vfm.models import (
    ClipModel,
    PooledVision,
    build_clip,
    build_vision,
    patch_features,
    vision_features,
)
from vfm.models.vision.last_block import last_block_reader, papers_positions
from vfm.models.vision.vision import vision_preprocess

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
OPEN_CLIP = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "ls_init_value": 0.3}
PACKAGE = Path(__file__).parents[1]
NO_CROPS: Any = None
NO_LOAD: Any = None


def tower(kind: str) -> ClipModel:
    config = {"embed_dim": 24, "vision_cfg": OPEN_CLIP, "text_cfg": TEXT, "quick_gelu": True}
    model = build_clip(config if kind == "open_clip" else kind, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # unlike random initial weights, these have biases, and positions that matter
        for weight in model.module.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    model.module.eval()
    return model


def images(rows: int, columns: int, patch: int = 8) -> Tensor:
    return torch.randn(2, 3, rows * patch, columns * patch, generator=torch.Generator().manual_seed(2))


def by_rule(model: ClipModel, part: LastBlockRule, pixels: Tensor, **options: Any) -> Tensor:
    reader = last_block_reader(model, **options)
    with torch.no_grad():
        return F.normalize(reader.embed(part.build(NO_LOAD)(reader.read(pixels), NO_CROPS)), dim=-1)


@pytest.mark.parametrize("kind", ["open_clip", "EVA02-Pico-8-32", "EVA02-Mini-14-112", "ViT-Pico-8-32"])
def test_the_block_as_it_is_gives_the_models_own_features(kind: str) -> None:
    model = tower(kind)
    patch = 14 if "14" in kind else 8
    for grid in ((4, 4), (6, 4)) if patch == 8 else ((8, 8),):
        pixels = images(*grid, patch)
        with torch.no_grad():
            expected = patch_features(model, pixels, normalize=True)
        found = by_rule(model, UnchangedClip(), pixels)
        assert found.shape[:3] == (2, *grid)
        torch.testing.assert_close(found.flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


def written_out(model: ClipModel, pixels: Tensor) -> dict[str, Tensor]:
    """Compute the rules as the papers print them, head by head, on open_clip's tower at its own size."""
    visual: Any = model.module.visual
    block = visual.transformer.resblocks[-1]
    attention, width, heads = block.attn, 32, 2
    with torch.no_grad():
        before = vision_features(model, pixels, layers=[-2], norm=False)[0]
        x = torch.cat([before.prefix, before.patches], dim=1)
        y = block.ln_1(x)
        q, k, v = (
            y @ attention.in_proj_weight[n * width : (n + 1) * width].T
            + attention.in_proj_bias[n * width : (n + 1) * width]
            for n in range(3)
        )
        place = torch.tensor([(r, c) for r in range(4) for c in range(4)]).float()
        omega = torch.zeros(17, 17)
        omega[1:, 1:] = torch.exp(-(torch.cdist(place, place) ** 2) / (2 * 5.0**2))

        def heads_of(f: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
            d = width // heads
            parts = [
                f(q[..., h * d : h * d + d], k[..., h * d : h * d + d], v[..., h * d : h * d + d]) for h in range(heads)
            ]
            return block.ls_1(attention.out_proj(torch.cat(parts, dim=-1)))

        def alike(a: Tensor, b: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
            return torch.softmax(a @ b.transpose(1, 2) / math.sqrt(width // heads) + bonus, dim=-1)

        def whole(added: Tensor) -> Tensor:
            z = x + added
            return z + block.ls_2(block.mlp(block.ln_2(z)))

        found = {
            "clip": whole(heads_of(lambda q, k, v: alike(q, k) @ v)),
            "maskclip": whole(heads_of(lambda q, k, v: v)),
            "maskclip_bare": heads_of(lambda q, k, v: v),
            "sclip": whole(heads_of(lambda q, k, v: (alike(q, q) + alike(k, k)) @ v)),
            "clearclip": heads_of(lambda q, k, v: alike(q, q) @ v),
            "naclip": heads_of(lambda q, k, v: alike(k, k, omega) @ v),
        }
        return {name: F.normalize(visual.ln_post(z[:, 1:]) @ visual.proj, dim=-1) for name, z in found.items()}


@pytest.mark.parametrize("part", [UnchangedClip(), MaskClip(), MaskClipBare(), Sclip(), ClearClip(), NaClip()])
def test_a_rule_is_its_formula(part: LastBlockRule) -> None:
    model, pixels = tower("open_clip"), images(4, 4)
    expected = written_out(model, pixels)
    found = by_rule(model, part, pixels).flatten(1, 2)
    torch.testing.assert_close(found, expected[part.type], rtol=1e-4, atol=2e-6)
    others = [one for name, one in expected.items() if name != part.type]
    assert all((found - one).abs().max() > 1e-3 for one in others)


def test_rotary_positions_are_a_choice_that_matters() -> None:
    model, pixels = tower("EVA02-Pico-8-32"), images(4, 4)
    for kind in (Sclip, ClearClip, NaClip):
        assert (by_rule(model, kind(), pixels) - by_rule(model, kind(rope=False), pixels)).abs().max() > 1e-3
    still, pixels = tower("open_clip"), images(4, 4)
    torch.testing.assert_close(by_rule(still, NaClip(), pixels), by_rule(still, NaClip(rope=False), pixels))


def test_a_pool_of_one_query_sees_a_picture_of_one_patch_as_that_patch() -> None:
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    siglip = VisionTransformer(img_size=8, **sizes, global_pool="map", class_token=False, num_classes=24).eval()
    pixels = images(1, 1)
    reader = last_block_reader(siglip)
    with torch.no_grad():
        found = reader.embed(UnchangedClip().build(NO_LOAD)(reader.read(pixels), NO_CROPS))[:, 0, 0]
        torch.testing.assert_close(found, siglip(pixels), rtol=1e-4, atol=1e-5)


def test_towers_without_a_way_from_a_patch_to_the_joint_space_are_refused() -> None:
    pooled = tower("open_clip")
    pooled.module.visual.proj = None  # type: ignore[union-attr]
    with pytest.raises(UserError, match="custom: its projection was removed, so patches have no features"):
        last_block_reader(pooled)
    changed = tower("ViT-Pico-8-32")
    changed.module.visual.transformer.resblocks[-1].attn = nn.Identity()  # type: ignore[union-attr]
    changed.module.visual.transformer.resblocks[-1].__class__ = type("Other", (nn.Module,), {})  # type: ignore[union-attr]
    with pytest.raises(UserError, match="the last block cannot be taken apart: Other with Identity is not supported"):
        last_block_reader(changed)


def test_positions_of_the_papers_are_read_as_they_do() -> None:
    positions = torch.randn(1, 1 + 16, 5, generator=torch.Generator().manual_seed(0))
    found = papers_positions(positions, (4, 4), (6, 7))
    assert found.shape == (1, 43, 5)
    torch.testing.assert_close(found[:, :1], positions[:, :1])
    grid = positions[0, 1:].T.view(1, 5, 4, 4).double()
    # Output pixel i of factor s is read at (i + 1/2) / s - 1/2; torch's cubic kernel has a = -3/4, borders repeat.
    expected = torch.zeros(5, 6, 7, dtype=torch.float64)
    for i in range(6):
        for j in range(7):
            for dy, wy in _taps((i + 0.5) / (6.1 / 4) - 0.5):
                for dx, wx in _taps((j + 0.5) / (7.1 / 4) - 0.5):
                    expected[:, i, j] += wy * wx * grid[0, :, min(max(dy, 0), 3), min(max(dx, 0), 3)]
    torch.testing.assert_close(found[0, 1:].T.view(5, 6, 7).double(), expected, rtol=1e-4, atol=1e-5)
    model, pixels = tower("open_clip"), images(6, 7)
    exact, papers = by_rule(model, NaClip(), pixels), by_rule(model, NaClip(), pixels, resample=papers_positions)
    assert (exact - papers).abs().max() > 1e-3


def _taps(place: float) -> list[tuple[int, float]]:
    first, a = math.floor(place) - 1, -0.75

    def weight(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    return [(first + n, weight(place - first - n)) for n in range(4)]


def test_the_neighbourhood_is_symmetric_and_leaves_prefix_tokens_out() -> None:
    bonus = neighbourhood((3, 5), 2.0, num_prefix_tokens=2)
    assert bonus.shape == (17, 17)
    torch.testing.assert_close(bonus, bonus.T)
    assert not bonus[:2].any()
    assert (bonus.diagonal()[2:] == 1).all()
    assert bonus[2, 2 + 6] == pytest.approx(math.exp(-2 / 8))  # one row and one column away
    assert (neighbourhood((3, 5), 1e6) > 1 - 1e-9).all()  # a constant, which a softmax does not see


def test_attention_of_a_proxy_is_of_each_image_and_never_empty() -> None:
    patches = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    attention = proxy_attention(patches, 1.2, 3.0)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(3, 12))
    torch.testing.assert_close(attention[1:2], proxy_attention(patches[1:2], 1.2, 3.0))
    unit = F.normalize(patches[0].double(), dim=-1)
    similar = unit @ unit.T
    scores = 3 * (similar - 1.2 * similar.mean())
    expected = torch.where(scores < 0, 0, scores.exp())
    torch.testing.assert_close(
        attention[0].double(), expected / expected.sum(dim=-1, keepdim=True), rtol=1e-4, atol=1e-6
    )
    alike = proxy_attention(torch.ones(1, 4, 8), 1.2, 3.0)  # 1 < 1.2 times the mean: no term is positive
    torch.testing.assert_close(alike, torch.eye(4)[None])


@pytest.mark.parametrize("enlarge", [1.0, 2.0])
def test_another_encoder_gives_the_attention_and_its_grid(enlarge: float) -> None:
    module = build_vision("eva02_pico_patch8_32", num_classes=0, seed=0).eval()
    part = ProxyClip(encoder=Ref("eva"), enlarge=enlarge)
    rule = part.build(lambda ref: PooledVision(module, vision_preprocess(module)))
    model = tower("open_clip")
    crops = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    reader = last_block_reader(model)
    with torch.no_grad():
        block = reader.read(model.pixels(crops))
        found = rule(block, crops)
        alone = rule(reader.read(model.pixels(crops[1:])), crops[1:])
    side = int(4 * enlarge)
    assert found.shape == (2, side, side, 32)
    torch.testing.assert_close(found[1:], alone, rtol=1e-4, atol=1e-5)
    if enlarge == 1:
        with torch.no_grad():
            pixels = vision_preprocess(module).pixels(crops)
            attention = proxy_attention(vision_features(module, pixels)[0].patches, 1.2, 3.0)
            expected = block.project(attention[:, None] @ block.values[:, :, 1:])
        torch.testing.assert_close(found.flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_refinement_is_the_formula_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    picture, scores = torch.rand(3, 9, 11, generator=generator), torch.randn(2, 9, 11, generator=generator)
    offsets = [(d * y, d * x) for d in (8, 16) for y in (-1, 0, 1) for x in (-1, 0, 1)]

    def at(image: Tensor, y: int, x: int) -> Tensor:
        return image[:, min(max(y, 0), 8), min(max(x, 0), 10)].double()

    expected = torch.zeros(2, 9, 11, dtype=torch.float64)
    for y in range(9):
        for x in range(11):
            spread = torch.stack([at(picture, y + a, x + b) for a, b in offsets]).std(dim=0)
            around = [offset for offset in offsets if offset != (0, 0)]
            near = [
                -((at(picture, y, x) - at(picture, y + a, x + b)).abs() / (1e-8 + 0.1 * spread)).mean()
                for a, b in around
            ]
            weights = torch.stack(near).softmax(dim=0)
            expected[:, y, x] = sum(w * at(scores, y + a, x + b) for w, (a, b) in zip(weights, around, strict=True))
    torch.testing.assert_close(refine_scores(scores, picture, steps=1).double(), expected, rtol=1e-3, atol=1e-4)
    flat = torch.full((2, 9, 11), 0.3)
    torch.testing.assert_close(refine_scores(flat, picture), flat)  # weights sum to 1


def test_the_comparison_with_naclips_code_needs_a_checkout_of_it(tmp_path: Path) -> None:
    command = [sys.executable, str(PACKAGE / "benchmarks/open_segmentation_peer.py"), "--naclip", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tmp_path}: expected a checkout of NACLIP's code; naclip.py is missing" in done.stderr
