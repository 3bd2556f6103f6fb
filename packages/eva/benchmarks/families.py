"""Test which of timm's vision models can be students: preflight and a step of each family at a tiny size.

python packages/eva/benchmarks/families.py --out packages/eva/benchmarks/results/families
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench import report

from vfm.models import load_vision
from vfm.plugin import Preflight, UserError
from vfm_eva import EvaPretrain
from vfm_eva.pretrain.building import build_student
from vfm_eva.pretrain.pretrain import build_task
from vfm_eva.pretrain.task import EvaInputs
from vfm_eva.pretrain.weight_init import init_weights
from vfm_eva.targets.stored import StoredTargets

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TARGET_WIDTH = 8
GRID = (3, 3)  # patches of the targets, to which feature maps are resized
DECODER = {"width": 16, "depth": 1, "num_heads": 2}


class Family(NamedTuple):
    """A timm model family: the name of a member, and the arguments that make it small."""

    model: str
    image_size: int | None = 64
    arguments: dict[str, Any] = TINY


FAMILIES = {
    "ViT": Family("vit_base_patch16_224"),
    "ViT, mean-pooled with registers": Family("vit_medium_patch16_reg4_gap_256"),
    "ViT of CLIP": Family("vit_base_patch16_clip_224"),
    "ViT of SigLIP": Family("vit_base_patch16_siglip_224"),
    "ViT with parallel blocks": Family("vit_base_patch16_18x2_224"),
    "ViT with parallel scaling blocks": Family("vit_base_patch16_xp_224"),
    "ViT with differential attention": Family("vit_dpwee_patch16_reg1_gap_256"),
    "ViT with rotary positions": Family("vit_small_patch16_rope_224"),
    "ViT with mixed rotary positions": Family("vit_small_patch16_rope_mixed_224"),
    "ViT with relative positions": Family("vit_relpos_small_patch16_224"),
    "ViT with shared relative positions": Family("vit_srelpos_small_patch16_224"),
    "ViT with a convolutional stem": Family("vit_tiny_r_s16_p8_224", None, {"depth": 1}),
    "EVA-01": Family("eva_giant_patch14_224", 56),
    "EVA-L": Family("eva_large_patch14_196", 56),
    "EVA-02": Family("eva02_tiny_patch14_224", 56),
    "EVA-02-CLIP": Family("eva02_base_patch16_clip_224"),
    "BEiT, BEiT v2": Family("beit_base_patch16_224"),
    "BEiT-3": Family("beit3_base_patch16_224"),
    "DeiT": Family("deit_tiny_patch16_224"),
    "DeiT, distilled": Family("deit_tiny_distilled_patch16_224"),
    "DeiT III": Family("deit3_small_patch16_224"),
    "DINOv2": Family("vit_small_patch14_reg4_dinov2", 56),
    "DINOv3": Family("vit_small_patch16_dinov3"),
    "FlexiViT": Family("flexivit_small"),
    "InternViT": Family("vit_intern300m_patch14_448", 56),
    "Perception Encoder": Family("vit_pe_core_tiny_patch16_384"),
    "AIMv2": Family("aimv2_large_patch14_224", 56),
    "RADIO": Family("vit_base_patch16_radio_v3"),
    "TIPS v2": Family("vit_base_patch14_reg1_tipsv2", 56),
    "NaFlexViT": Family("naflexvit_base_patch16_gap", None),
    "SAM": Family("samvit_base_patch16", None, {**TINY, "global_attn_indexes": (1,)}),
    "ViTamin": Family("vitamin_small_224", None, {}),
    "CaiT": Family("cait_xxs24_224", None, {**TINY, "depth": 1}),
    "ConViT": Family("convit_tiny", None, {"embed_dim": 8, "num_heads": 2, "depth": 2}),
    "XCiT": Family("xcit_nano_12_p16_224", None, TINY),
    "Hiera": Family("hiera_tiny_224", None, {"embed_dim": 16, "stages": (1, 1, 1, 1)}),
    "PiT": Family("pit_ti_224", None, {"depth": (1, 1, 1)}),
    "Swin": Family("swin_tiny_patch4_window7_224", None, {"embed_dim": 24, "depths": (1, 1, 1, 1)}),
    "ConvNeXt": Family("convnext_atto", None, {"depths": (1, 1, 1, 1)}),
    "ResNet": Family("resnet18", None, {}),
    "RepViT": Family("repvit_m0_9", 64, {"embed_dim": (8, 16, 24, 32), "depth": (1, 1, 1, 1)}),
    "FastViT": Family("fastvit_t8", 64, {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)}),
    "MobileNetV3": Family("mobilenetv3_small_050", 64, {}),
    "MobileNetV4": Family("mobilenetv4_conv_small_035", 64, {}),
    "EfficientNet": Family("efficientnet_b0", 64, {}),
    "RegNet": Family("regnetx_002", 64, {}),
}
MODES: dict[str, dict[str, Any]] = {
    "all": {"encode": "all", "mask": {"type": "block"}},
    "visible": {"encode": "visible", "mask": {"type": "random", "ratio": 0.5}, "decoder": DECODER},
    "unmasked": {"mask": {"ratio": 0}},
}
INITS = ("timm", "eva01", "eva02", "mae")


def configuration(family: Family, mode: str, init: str = "timm") -> EvaPretrain:
    """Configure pre-training of the family."""
    settings = {
        "name": "eva",
        "data": "images",
        "teacher": "teacher",
        "model": {"architecture": family.model, **family.arguments},
        "image_size": family.image_size,
        "student": {"init": init},
        "steps": 1,
        "global_batch_size": 2,
        **MODES[mode],
    }
    return EvaPretrain.model_validate(settings)


def refusal(config: EvaPretrain) -> str:
    """Run the preflight, and return its error message or an empty string."""
    try:
        config.preflight(Preflight({}, {}))
    except UserError as error:
        return str(error)
    return ""


def step_and_reload(config: EvaPretrain, folder: Path) -> float:
    """Take the loss and gradient of two images, export the encoder, load it again, and return the loss.

    Raises:
        AssertionError: if the loss or a gradient is not finite, or the loaded encoder has other features.
    """
    student = build_student(config)
    task = build_task(config, student, StoredTargets(TARGET_WIDTH, grid=GRID))
    init_weights(task, config.student.init, 0)
    generator = torch.Generator().manual_seed(0)
    num_patches, side = task.grid[0] * task.grid[1], task.preprocess.image_size
    masks = torch.zeros(2, num_patches, dtype=torch.bool)
    if config.mask.ratio:
        masks = config.mask.build(torch.arange(2), task.grid, task.num_masked)
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    targets = torch.randn(2, num_patches, TARGET_WIDTH, generator=generator)
    loss, _ = task(EvaInputs(images, masks, targets=targets))
    loss.backward()
    gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    assert all(bool(value.isfinite().all()) for value in (loss, *gradients))
    pixels = task.preprocess.pixels(images)
    with torch.no_grad():
        features = task.eval().student(pixels)
        loaded = load_vision(task.export(folder)).eval()
        assert torch.equal(loaded(pixels), features)
    return loss.item()


def row(family: Family, folder: Path) -> dict[str, str]:
    """Test the modes of a family: for each mode `yes` or the refusal, and the supported initial weights."""
    found: dict[str, str] = {}
    for mode in MODES:
        line = refusal(configuration(family, mode))
        if not line:
            step_and_reload(configuration(family, mode), folder / mode)
        found[mode] = line or "yes"
    inits = [init for init in INITS if found["all"] == "yes" and not refusal(configuration(family, "all", init))]
    for init in inits[1:]:
        step_and_reload(configuration(family, "all", init), folder / init)
    return {**found, "init": ", ".join(inits)}


def table(rows: dict[str, dict[str, str]]) -> str:
    """Format the table as Markdown."""
    lines = [
        "| family | timm name | `encode: all` | `encode: visible` | `mask.ratio: 0` | `student.init` |",
        "|---" * 6 + "|",
    ]
    for name, found in rows.items():
        cells = [found[mode] if found[mode] == "yes" else "no" for mode in MODES]
        lines.append(f"| {name} | `{FAMILIES[name].model}` | {' | '.join(cells)} | {found['init']} |")
    refused = {name: next((found[m] for m in MODES if found[m] != "yes"), "") for name, found in rows.items()}
    reasons = [f"- {name}: {reason}" for name, reason in refused.items() if reason]
    return "\n".join([*lines, "", "Why not, in the words of the preflight:", "", *reasons])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: row(family, Path(folder) / str(n)) for n, (name, family) in enumerate(FAMILIES.items())}
    report(None, table(found), options.out)


if __name__ == "__main__":
    main()
