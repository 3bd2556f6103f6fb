"""The video model equals the image classifier on one frame, does not see order where it cannot, and its ways agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vfm.models import build_vision
from vfm.plugin import UserError
from vfm_eva.video.model import VideoTransformer
from vfm_eva.video.stages import VideoModel
from vfm_eva.video.time import interpolate_positions, rotated_in_time

EVA_01 = {"architecture": "eva02_pico_patch8_32", "swiglu_mlp": False, "use_rot_pos_emb": False}
ENCODERS: dict[str, dict[str, Any]] = {
    "eva_02": {"architecture": "eva02_pico_patch8_32"},
    "eva_01": EVA_01,
    "vit": {"architecture": "vit_pico_patch8_32"},
    "vit_with_registers": {"architecture": "vit_pico_patch8_32", "reg_tokens": 2, "no_embed_class": True},
    "clip_vit": {
        "architecture": "vit_base_patch16_clip_224", "img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2,
        "num_heads": 2,
    },
}  # fmt: skip


def encoder(name: str, pool: str = "avg") -> nn.Module:
    model = build_vision(ENCODERS[name], num_classes=5, global_pool=pool, seed=0).eval()
    with torch.no_grad():  # positions and head are small at first, and would hide mistakes
        generator = torch.Generator().manual_seed(1)
        for parameter in (model.pos_embed, model.head.weight):
            parameter.normal_(generator=generator)
        for block in model.blocks:
            block.attn.qkv.weight.normal_(std=0.2, generator=generator)
    return model


def video(name: str, frames: int, pool: str = "mean", **settings: Any) -> VideoTransformer:
    visual = encoder(name, {"mean": "avg", "token": "token", "attentive": "avg"}[pool])
    return VideoTransformer(visual, frames, VideoModel(pool=pool, **settings), 5).eval()


def frames_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("attention", ["joint", "divided", "frame"])
@pytest.mark.parametrize("pool", ["mean", "token"])
@pytest.mark.parametrize("name", ENCODERS)
def test_one_frame_equals_the_image_classifier(name: str, pool: str, attention: str) -> None:
    model, clips = video(name, 1, pool, attention=attention), frames_of(1)
    with torch.no_grad():
        expected = model.visual(clips[:, 0])
        torch.testing.assert_close(model(clips), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("attention", ["joint", "divided", "frame"])
@pytest.mark.parametrize("name", ENCODERS)
def test_with_tiled_positions_the_order_of_frames_does_not_matter(name: str, attention: str) -> None:
    model, clips = video(name, 4, attention=attention), frames_of(4)
    with torch.no_grad():
        logits, shuffled = model(clips), model(clips[:, [2, 0, 3, 1]])
        torch.testing.assert_close(logits, shuffled, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits, model(clips[:, [0, 0, 0, 0]]), atol=1e-3)  # which frames does


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("eva_02", {"time": "frames"}), ("vit", {"time": "table"}), ("eva_02", {"time": "rope"}),
        ("vit", {"time": "frames", "attention": "divided"}),
    ],
)  # fmt: skip
def test_once_frames_differ_in_their_positions_the_order_matters(name: str, settings: dict[str, Any]) -> None:
    model, clips = video(name, 4, **settings), frames_of(4)
    with torch.no_grad():
        for parameter in (model.positions, model.time):
            if parameter is not None:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        assert not torch.allclose(model(clips), model(clips.flip(1)), atol=1e-3)


@pytest.mark.parametrize("name", ["eva_02", "vit"])
def test_a_bag_of_frames_is_the_mean_of_single_frames(name: str) -> None:
    model, clips = video(name, 3, attention="frame", time="none"), frames_of(3)
    with torch.no_grad():
        one = video(name, 1, time="none")
        patches = [one.tokens(clips[:, [t]])[:, model.trunk.prefix().shape[1] :].mean(dim=1) for t in range(3)]
        pooled = torch.stack(patches).mean(dim=0)
        expected = one.visual.head(one.visual.fc_norm(pooled))
        torch.testing.assert_close(model(clips), expected, rtol=1e-5, atol=1e-5)


def test_frame_attention_equals_attention_with_a_mask_that_separates_the_frames() -> None:
    """Written out on one sequence: a mask that only lets tokens of one frame meet gives the bag of frames."""
    frames = 3
    joint, bag = video("vit", frames, time="none"), video("vit", frames, attention="frame", time="none")
    clips = frames_of(frames)
    trunk = joint.trunk
    with torch.no_grad():
        patches = trunk.patches(clips.flatten(0, 1)).flatten(2).transpose(1, 2) + trunk.positions(trunk.grid)
        prefix = trunk.prefix().expand(len(patches), -1, -1)
        values = torch.cat([prefix, patches], dim=1).unflatten(0, (2, frames)).flatten(1, 2)  # every frame has a prefix
        number = torch.arange(frames).repeat_interleave(17)
        visible = (number[:, None] == number)[None, None].expand(2, 1, -1, -1)
        for place in range(len(trunk.blocks)):
            values = trunk.apply_block(place, values, None, visible)
        kept = torch.arange(17 * frames) % 17 > 0
        expected = joint.visual.norm(values)[:, kept]
        torch.testing.assert_close(bag.tokens(clips)[:, 1:], expected, rtol=1e-5, atol=1e-5)


def test_a_tubelet_of_two_equal_frames_is_one_frame() -> None:
    one, two = video("eva_02", 2), video("eva_02", 4, tubelet=2)
    clips = frames_of(2)
    with torch.no_grad():
        torch.testing.assert_close(two(clips.repeat_interleave(2, dim=1)), one(clips), rtol=1e-5, atol=1e-5)


def test_rotary_time_depends_on_distances_only_and_at_time_zero_is_space() -> None:
    rope = video("eva_02", 1).trunk.rotary((4, 4))
    assert rope is not None
    turned = rotated_in_time(rope, 4).unflatten(0, (4, 16))
    torch.testing.assert_close(turned[0], rope)
    sin, cos = turned.double().chunk(2, dim=-1)
    torch.testing.assert_close(sin**2 + cos**2, torch.ones_like(sin), rtol=1e-6, atol=1e-6)
    between = [sin[t + 1] * cos[t] - cos[t + 1] * sin[t] for t in range(3)]  # sine of the angle to the next time
    torch.testing.assert_close(between[0], between[2], rtol=1e-5, atol=1e-6)
    assert between[0].abs().max() > 0.5


def test_positions_are_interpolated_in_time_and_space() -> None:
    table = torch.arange(4.0)[:, None, None].expand(4, 9, 2) + torch.arange(9.0)[:, None] * 0
    assert interpolate_positions(table, 4, (3, 3)) is table
    longer = interpolate_positions(table, 8, (6, 6))
    assert longer.shape == (8, 36, 2)
    torch.testing.assert_close(longer[:, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for enable in (False, True):
        model = video("eva_02", 3).train()
        model.set_grad_checkpointing(enable)
        model(frames_of(3)).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 10
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit", "time": "rope"}, "no rotary positions"),
        ({"name": "none", "time": "frames"}, "no learned positions to tile"),
        ({"name": "no_token", "pool": "token"}, "no class token"),
    ],
)
def test_what_an_encoder_lacks_is_one_line(settings: dict[str, Any], message: str) -> None:
    name = settings.pop("name")
    more = {"none": {"use_abs_pos_emb": False}, "no_token": {"class_token": False}}.get(name, {})
    base = ENCODERS["vit" if name == "vit" else "eva_02"]
    visual = build_vision({**base, **more}, num_classes=5, global_pool="avg")
    with pytest.raises(UserError, match=message):
        VideoTransformer(visual, 4, VideoModel(**settings), 5)
