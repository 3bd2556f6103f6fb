"""Official EVA checkpoints: our loader must agree with timm's own, and export must restore the file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import eva, vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.interfaces import Context
from vfm.models import KeyReport, build_clip, build_vision, import_clip, import_vision
from vfm.models.interchange.eva_import import ReadOptions, clip_architecture
from vfm.models.interchange.eva_layouts import to_official
from vfm.models.stages import ImportClip, ImportVision

WIDTH, DEPTH, PATCH, IMAGE, CLASSES, EMBED = 32, 2, 14, 56, 5, 24
MINI = {"width": 192, "depth": 6, "patch": 16, "grid": 8}  # the encoder of EVA02-Mini-16-128
SMALL = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "img_size": IMAGE, "patch_size": PATCH}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "EVA-01": {"architecture": "eva_giant_patch14_224", **SMALL, "mlp_ratio": 3.0},
    "EVA-02 Ti, S": {"architecture": "eva02_tiny_patch14_224", **SMALL, "ref_feat_shape": (4, 4)},
    "EVA-02 B, L": {"architecture": "eva02_base_patch14_224", **SMALL, "ref_feat_shape": (4, 4)},
    "EVA-L": {"architecture": "eva_large_patch14_196", **SMALL},
}
FAMILIES = ["EVA-01", "EVA-02 Ti, S", "EVA-02 B, L", "EVA-L"]


def both(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def encoder_shapes(
    family: str, patch: int = PATCH, grid: int = 4, width: int = WIDTH, depth: int = DEPTH
) -> dict[str, tuple[int, ...]]:
    """Return an encoder's keys as in the official code, written independently of our table."""
    d, hidden = width, 96 if family == "EVA-01" else 4 * width if family == "EVA-L" else int(width * 8 / 3)
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, grid * grid + 1, d),
        **both("patch_embed.proj", d, 3, patch, patch),
    }
    for block in (f"blocks.{i}." for i in range(depth)):
        shapes |= {**both(f"{block}norm1", d), **both(f"{block}norm2", d), **both(f"{block}attn.proj", d, d)}
        if family in ("EVA-01", "EVA-02 Ti, S"):
            shapes[f"{block}attn.qkv.weight"] = (3 * d, d)
        elif family == "EVA-L":
            shapes |= both(f"{block}attn.qkv", 3 * d, d)
        else:
            shapes |= {f"{block}attn.{name}_proj.weight": (d, d) for name in "qkv"}
            shapes |= both(f"{block}mlp.ffn_ln", hidden)
        if family != "EVA-L":
            shapes |= {f"{block}attn.q_bias": (d,), f"{block}attn.v_bias": (d,)}
        if family in ("EVA-01", "EVA-L"):
            shapes |= {**both(f"{block}mlp.fc1", hidden, d), **both(f"{block}mlp.fc2", d, hidden)}
        elif family == "EVA-02 Ti, S":
            shapes |= {**both(f"{block}mlp.w12", 2 * hidden, d), **both(f"{block}mlp.w3", d, hidden)}
        else:
            shapes |= {**both(f"{block}mlp.w1", hidden, d), **both(f"{block}mlp.w2", hidden, d)}
            shapes |= both(f"{block}mlp.w3", d, hidden)
        if family == "EVA-02-CLIP":
            shapes |= both(f"{block}attn.inner_attn_ln", d)
    return shapes


def random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}


def rotary_tables(grid: int = 4, depth: int = DEPTH, head: int = 16, pre_trained: int = 4) -> dict[str, Tensor]:
    """Compute RoPE by its formula: half of a head's width per axis, each frequency twice, at the pre-training scale."""
    frequencies = (10000.0 ** (-torch.arange(0, head // 2, 2) / (head // 2))).repeat_interleave(2)
    positions = torch.arange(grid) / grid * pre_trained
    angles = torch.stack(torch.meshgrid(positions, positions, indexing="ij"), -1)[..., None] * frequencies
    angles = angles.reshape(grid * grid, head)
    prefixes = ["rope.", *(f"blocks.{i}.attn.rope." for i in range(depth))]
    tables = (("cos", angles.cos()), ("sin", angles.sin()))
    return {f"{prefix}freqs_{name}": table for prefix in prefixes for name, table in tables}


def mim(family: str) -> dict[str, Tensor]:
    shapes = {**encoder_shapes(family), **both("norm", WIDTH)}
    if family == "EVA-L":
        shapes |= {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 17, 16), **both("decoder_embed", 16, WIDTH)}
        shapes |= {**both("decoder_blocks.0.attn.qkv", 48, 16), **both("decoder_pred", EMBED, 16)}
    else:
        shapes |= {"mask_token": (1, 1, WIDTH), **both("lm_head", EMBED, WIDTH)}
    return {**random_tensors(shapes), **(rotary_tables() if "02" in family else {})}


def classifier(family: str, norm: str = "fc_norm") -> dict[str, Tensor]:
    shapes = {**encoder_shapes(family), **both(norm, WIDTH), **both("head", CLASSES, WIDTH)}
    return {**random_tensors(shapes), **(rotary_tables() if "02" in family else {})}


def clip_file() -> dict[str, Tensor]:
    """Return an EVA-CLIP file with the sizes of EVA02-Mini-16-128."""
    visual = {**encoder_shapes("EVA-02-CLIP", **MINI), **both("norm", 192), **both("head", 192, 192)}
    text = {
        "text.token_embedding.weight": (49408, 192),
        "text.positional_embedding": (32, 192),
        "text.text_projection": (192, 192),
        **both("text.ln_final", 192),
        "logit_scale": (),
    }
    for block in (f"text.transformer.resblocks.{i}." for i in range(6)):
        text |= {**both(f"{block}ln_1", 192), **both(f"{block}ln_2", 192)}
        text |= {f"{block}attn.in_proj_weight": (576, 192), f"{block}attn.in_proj_bias": (576,)}
        text |= {**both(f"{block}attn.out_proj", 192, 192)}
        text |= {**both(f"{block}mlp.c_fc", 768, 192), **both(f"{block}mlp.c_proj", 192, 768)}
    tensors = random_tensors({**{f"visual.{key}": shape for key, shape in visual.items()}, **text})
    tables = rotary_tables(8, depth=6, head=64, pre_trained=8)
    return {**tensors, **{f"visual.{key}": table for key, table in tables.items()}}


def load_by_timm(tensors: Mapping[str, Tensor], source: str | Mapping[str, Any], **arguments: object) -> nn.Module:
    model = build_vision(source, **arguments)
    module = eva if isinstance(model, eva.Eva) else vision_transformer
    model.load_state_dict(module.checkpoint_filter_fn(dict(tensors), model))
    return model.eval()


def save(content: object, folder: Path) -> str:
    torch.save(content, folder / "official.pt")
    return str(folder / "official.pt")


def images(size: int = IMAGE) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_pre_training_file_loads_as_in_timm(family: str, tmp_path: Path) -> None:
    tensors, source, report = mim(family), ARCHITECTURES[family], KeyReport()
    if family == "EVA-L":  # timm does not skip the decoder
        expected = {
            key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: value
            for key, value in tensors.items()
        }
        expected = {key: value for key, value in expected.items() if "decoder" not in key and key != "mask_token"}
    else:
        expected = tensors
    peer = load_by_timm(expected, source, num_classes=0)
    ours = import_vision(source, save({"model": tensors}, tmp_path), report=report)
    assert torch.equal(ours(images()), peer(images()))
    assert {*report.taken, *report.renamed, *report.dropped} == set(tensors)
    assert {*report.taken, *report.renamed.values()} == set(ours.state_dict())
    assert set(report.dropped) == {k for k in tensors if "rope" in k or k.startswith(("mask", "lm_head", "decoder"))}


@pytest.mark.parametrize("norm", ["fc_norm", "norm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_classification_file_keeps_its_head_and_pooling(family: str, norm: str, tmp_path: Path) -> None:
    tensors, source = classifier(family, norm), ARCHITECTURES[family]
    pool = "avg" if norm == "fc_norm" else "token"
    peer = load_by_timm(tensors, source, num_classes=CLASSES, global_pool=pool)
    ours = import_vision(source, save({"module": tensors}, tmp_path))
    assert ours(images()).shape == (2, CLASSES)
    assert torch.equal(ours(images()), peer(images()))


def test_vision_tower_of_a_clip_file_loads_as_in_timm(tmp_path: Path) -> None:
    tensors, source, report = clip_file(), "eva02_mini_patch16_clip_128", KeyReport()
    ours = import_vision(source, save(tensors, tmp_path), report=report)
    assert torch.equal(ours(images(128)), load_by_timm(tensors, source, num_classes=192)(images(128)))
    assert report.dropped["text.text_projection"] == "of the text tower, which is not imported"


@pytest.mark.parametrize("method", ["pinv", "bicubic"])
@pytest.mark.parametrize("patch", [16, 14])
def test_patches_and_positions_are_resized_by_both_methods(method: str, patch: int, tmp_path: Path) -> None:
    """At 112 pixels, patches of 16 give a grid of 7, patches of 14 a grid of 8."""
    tensors = random_tensors(
        {**encoder_shapes("EVA-02 B, L", patch=30 - patch, grid=8), **both("norm", WIDTH), "mask_token": (1, 1, 32)}
    )
    source = {**ARCHITECTURES["EVA-02 B, L"], "patch_size": patch, "img_size": 112}
    report = KeyReport()
    ours = import_vision(source, save(tensors, tmp_path), ReadOptions(patch_resize=method), report)  # type: ignore[arg-type]
    assert set(report.resized) == {"patch_embed.proj.weight", *(["pos_embed"] if patch == 16 else [])}
    if method == "pinv":
        peer = load_by_timm(tensors, source, num_classes=0)
        torch.testing.assert_close(ours(images(112)), peer(images(112)))
    else:  # the official script: plain bicubic interpolation of both
        kernel = F.interpolate(tensors["patch_embed.proj.weight"], (patch, patch), mode="bicubic", align_corners=False)
        assert torch.equal(ours.patch_embed.proj.weight, kernel)
        grid = 112 // patch
        positions = tensors["pos_embed"][:, 1:].reshape(1, 8, 8, WIDTH).permute(0, 3, 1, 2)
        positions = F.interpolate(positions, (grid, grid), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours.pos_embed[:, 1:], positions.reshape(1, grid * grid, WIDTH))
        assert torch.equal(ours.pos_embed[:, :1], tensors["pos_embed"][:, :1])


def test_clip_file_loads_whole_and_its_architecture_is_found_by_its_shapes(tmp_path: Path) -> None:
    tensors, report = clip_file(), KeyReport()
    ours = import_clip(save({"state_dict": tensors}, tmp_path), report=report)
    assert ours.name == "EVA02-Mini-16-128/official"
    peer = build_clip("EVA02-Mini-16-128")
    text = {key.removeprefix("text."): value for key, value in tensors.items() if key.startswith("text.")}
    peer.module.text.load_state_dict(text)
    visual = load_by_timm(tensors, "eva02_mini_patch16_clip_128", num_classes=192)
    assert torch.equal(ours.module.visual(images(128)), visual(images(128)))
    ids = ours.tokenize(["a red square"])
    assert torch.equal(ours.module.text(ids), peer.module.eval().text(ids))
    assert ours.module.logit_scale == tensors["logit_scale"]
    assert {*report.taken, *report.renamed, *report.dropped} == set(tensors)
    assert {*report.taken, *report.renamed.values()} == set(ours.module.state_dict())
    assert report.renamed["visual.blocks.0.attn.inner_attn_ln.weight"] == "visual.trunk.blocks.0.attn.norm.weight"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", [mim, classifier])
def test_exported_encoder_equals_the_official_file(layout: Any, family: str, tmp_path: Path) -> None:
    tensors = layout(family)
    model = import_vision(ARCHITECTURES[family], save(tensors, tmp_path))
    report = KeyReport()
    exported = to_official(model.state_dict(), model, report)
    dropped = {key for key in tensors if key.startswith(("mask_token", "lm_head", "decoder"))}
    assert set(exported) == set(tensors) - dropped
    for key, value in exported.items():
        assert torch.equal(value, tensors[key]) or ("rope" in key and torch.allclose(value, tensors[key], atol=1e-6)), (
            key
        )
    assert {*report.taken, *report.renamed} == set(model.state_dict())
    assert set(report.new) == {key for key in tensors if "rope" in key}


def test_exported_clip_model_equals_the_official_file(tmp_path: Path) -> None:
    tensors = clip_file()
    model = import_clip("EVA02-Mini-16-128", save(tensors, tmp_path))
    exported = to_official(model.module.state_dict(), model.module.visual.trunk, KeyReport())
    assert set(exported) == set(tensors)
    assert all(torch.equal(value, tensors[key]) for key, value in exported.items() if "rope" not in key)
    assert all(torch.allclose(value, tensors[key], atol=1e-5) for key, value in exported.items())


@pytest.mark.parametrize("part", ["visual", "text"])
def test_importing_one_tower_leaves_the_other_as_initialised(part: str, tmp_path: Path) -> None:
    tensors, fresh, report = clip_file(), build_clip("EVA02-Mini-16-128", seed=0), KeyReport()
    model = import_clip("EVA02-Mini-16-128", save(tensors, tmp_path), ReadOptions(part=part), report)  # type: ignore[arg-type]
    whole = import_clip("EVA02-Mini-16-128", save(tensors, tmp_path)).module.state_dict()
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, (whole if key.startswith(part) else fresh.module.state_dict())[key]), key
    assert "logit_scale" in report.dropped
    assert "logit_scale" in report.new
    missing = {key: value for key, value in tensors.items() if key.startswith(part)}
    assert torch.equal(
        import_clip("EVA02-Mini-16-128", save(missing, tmp_path), ReadOptions(part=part)).module.logit_scale,  # type: ignore[arg-type]
        fresh.module.logit_scale,
    )


def test_text_tower_of_another_clip_model_can_be_imported(tmp_path: Path) -> None:
    """EVA-CLIP starts from OpenAI's or OpenCLIP's text towers, whose keys have no `text.` prefix."""
    flat = build_clip(
        {
            "embed_dim": 192,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 192, "heads": 4, "layers": 6},
        },
        seed=4,
    )
    file = save(flat.module.state_dict(), tmp_path)
    model = import_clip("EVA02-Mini-16-128", file, ReadOptions(part="text"))
    assert torch.equal(model.encode_texts(["a red square"]), flat.encode_texts(["a red square"]))


def test_averaged_or_raw_weights_are_read_from_a_trainers_file(tmp_path: Path) -> None:
    raw, family = mim("EVA-02 Ti, S"), "EVA-02 Ti, S"
    averaged = {key: value + 1 for key, value in raw.items()}
    content = {"model": raw, "model_ema": averaged, "args": argparse.Namespace(lr=1e-3), "epoch": 3}
    source, file = ARCHITECTURES[family], save(content, tmp_path)
    assert torch.equal(import_vision(source, file).cls_token, averaged["cls_token"])
    assert torch.equal(import_vision(source, file, ReadOptions(ema=False)).cls_token, raw["cls_token"])


def without(key: str) -> Any:
    return lambda tensors: {name: value for name, value in tensors.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.norm2.bias"), r"the encoder has blocks\.1\.norm2\.bias, the file does not"),
        (
            lambda t: {**t, "rel_pos_bias.table": torch.zeros(1)},
            r"the file has rel_pos_bias\.table, the encoder does not",
        ),
        (
            lambda t: {**t, "cls_token": torch.zeros(1, 1, 8)},
            r"cls_token of the file is \(1, 1, 8\), the encoder expects",
        ),
        (lambda t: {**t, "fc_norm.bias": torch.zeros(32)}, r"the file has norm\.bias"),
    ],
)
def test_missing_or_unknown_key_is_a_one_line_error(change: Any, message: str, tmp_path: Path) -> None:
    file = save(change(mim("EVA-02 B, L")), tmp_path)
    with pytest.raises(UserError, match=f"does not fit eva02_base_patch14_224: {message}") as caught:
        import_vision(ARCHITECTURES["EVA-02 B, L"], file)
    assert "\n" not in str(caught.value)


def test_file_of_unknown_architecture_is_a_one_line_error(tmp_path: Path) -> None:
    file = save(mim("EVA-01"), tmp_path)
    with pytest.raises(UserError, match="fits no EVA model of timm; set source to the architecture"):
        import_vision(file)
    with pytest.raises(UserError, match="fits no EVA model of open_clip"):
        import_clip(file)
    with pytest.raises(UserError, match="not an EVA checkpoint"):
        import_clip(save({"w": torch.zeros(1)}, tmp_path))
    with pytest.raises(UserError, match="part: text reads a tower from a file"):
        import_clip("EVA02-Mini-16-128", None, ReadOptions(part="text"))


def test_stages_import_official_files_and_show_what_became_of_every_key(tmp_path: Path) -> None:
    file = save(clip_file(), tmp_path)
    events: list[dict[str, Any]] = []
    context = Context("clip", tmp_path / "clip", tmp_path / "work", {}, send=lambda event: events.append(event.data))
    stage = ImportClip(name="clip", source=file)
    assert list(stage.sources()) == [file]
    assert stage.run(context).embed_dim == 192
    assert "renamed" in events[0]["message"]
    encoder = ImportVision(name="vision", source=file).run(Context("vision", tmp_path / "v", tmp_path / "work", {}))
    assert (encoder.architecture, encoder.num_classes) == ("eva02_mini_patch16_clip_128", 192)
    assert list((tmp_path / "v" / "panels").iterdir())


@pytest.mark.parametrize(("width", "size"), [(4096, "8B"), (5120, "18B")])
def test_models_that_neither_timm_nor_open_clip_has_are_a_one_line_error(width: int, size: str) -> None:
    line = f"neither timm nor open_clip has the architecture of EVA-CLIP-{size} "
    for name in (f"EVA-CLIP-{size}", f"hf-hub:BAAI/EVA-CLIP-{size}-448", f"eva_clip_{size.lower()}_psz14"):
        with pytest.raises(UserError, match=line):
            build_clip(name)
    shapes = {"visual.patch_embed.proj.weight": (width, 3, 14, 14), "visual.pos_embed": (1, 257, width)}
    with pytest.raises(UserError, match=f"file.pt: {line}"):
        clip_architecture({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, "file.pt")
