"""Import fifty tiny models of transformers with random weights, and count those that differ in silence.

    python packages/core/benchmarks/import_zoo.py

Each model is written by transformers and read by vfm. It is equal (all differences below the tolerances of
`vfm.models.oracle.check`), refused in a line that names the setting, or wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vfm.base import UserError
from vfm.models import import_clip, import_vision
from vfm.models.oracle.check import TOLERANCES, Origin

SIDE = 24
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
MLP = {"intermediate_size": 48}
TEXT = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"max_position_embeddings": 12}
GELU, TANH, QUICK, RELU = ({"hidden_act": name} for name in ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu"))
SMALL = {"vocab_size": 60, "eos_token_id": 7, "bos_token_id": 5, "pad_token_id": 7}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"height": SIDE, "width": SIDE}
SHORT = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
LARGER = {"size": {"shortest_edge": SIDE + 4}, "crop_size": SQUARE}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
NO_BIAS = {"query_bias": False, "value_bias": False, "mlp_bias": False, "proj_bias": False}


@dataclass(frozen=True)
class Configuration:
    """Configuration of a tiny model: its settings, and the class and settings of its image processor."""

    family: str
    vision: dict[str, Any]
    text: dict[str, Any] | None = None  # of a model with a text tower
    processor: str = ""
    settings: dict[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Write the model with random weights, norms and biases included."""
        config_class, model_class = CLASSES[self.family]
        shape = SHAPE if self.family.startswith("DINOv2") else SHAPE | MLP
        if self.text is None:
            config = getattr(transformers, config_class)(**{**shape, **self.vision})
        else:
            both = {"vision_config": shape | self.vision, "text_config": TEXT | self.text}
            extra = {"projection_dim": 20} if self.family == "CLIP" else {}
            config = getattr(transformers, config_class)(**both, **extra)
        model = getattr(transformers, model_class)(config)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim:
                nn.init.normal_(parameter, std=0.2, generator=generator)
        model.save_pretrained(folder)
        if self.processor:
            getattr(transformers, self.processor)(**self.settings or {}).save_pretrained(folder)


CLASSES = {
    "CLIP": ("CLIPConfig", "CLIPModel"),
    "SigLIP": ("SiglipConfig", "SiglipModel"),
    "CLIP vision": ("CLIPVisionConfig", "CLIPVisionModel"),
    "SigLIP vision": ("SiglipVisionConfig", "SiglipVisionModel"),
    "ViT": ("ViTConfig", "ViTModel"),
    "ViT classifier": ("ViTConfig", "ViTForImageClassification"),
    "DINOv2": ("Dinov2Config", "Dinov2Model"),
    "DINOv2 with registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "DINOv3": ("DINOv3ViTConfig", "DINOv3ViTModel"),
}
CLIP_PROCESSORS = [SHORT, {**SHORT, **HALF}, {**SHORT, "do_normalize": False}, {**SHORT, "resample": 2}, LARGER]
SIGLIP_TEXT = {"vocab_size": 60}
ZOO = [
    *(Configuration("CLIP", vision, text) for vision, text in (
        ({}, {}), (GELU, GELU), (TANH, TANH), (TANH, GELU), (RELU, RELU), (QUICK, GELU), ({}, SMALL),
        ({}, {"eos_token_id": 2}), ({"layer_norm_eps": 1e-2}, {}), ({}, {"layer_norm_eps": 1e-3}),
    )),
    *(Configuration("CLIP", {}, SMALL, "CLIPImageProcessor", settings) for settings in CLIP_PROCESSORS),
    *(Configuration("SigLIP", vision, SIGLIP_TEXT | text) for vision, text in (
        ({}, {}), (GELU, GELU), (GELU, TANH), (QUICK, {}), ({"layer_norm_eps": 1e-2}, {}),
    )),
    Configuration("SigLIP", {}, SIGLIP_TEXT, "SiglipImageProcessor", {"size": SQUARE}),
    *(Configuration("CLIP vision", vision) for vision in (
        {}, GELU, {"num_hidden_layers": 3}, {"layer_norm_eps": 1e-6},
    )),
    Configuration("CLIP vision", {}, None, "CLIPImageProcessor", LARGER),
    *(Configuration("SigLIP vision", vision) for vision in (
        {}, GELU, RELU, {"vision_use_head": False}, {"layer_norm_eps": 1e-5}, {"layer_norm_eps": 1e-3},
    )),
    *(Configuration("ViT", vision) for vision in (
        {}, {"qkv_bias": False}, RELU, {"hidden_act": "tanh"}, {"layer_norm_eps": 1e-5}, {"intermediate_size": 47},
    )),
    Configuration("ViT", {}, None, "ViTImageProcessor", {"size": SQUARE}),
    *(Configuration("ViT classifier", {"num_labels": number}) for number in (2, 5)),
    *(Configuration("DINOv2", vision) for vision in ({}, {"mlp_ratio": 3}, {"use_swiglu_ffn": True}, TANH)),
    Configuration("DINOv2", {}, None, "BitImageProcessor", LARGER),
    Configuration("DINOv2", {"image_size": 40}, None, "BitImageProcessor", LARGER),
    *(Configuration("DINOv2 with registers", {"num_register_tokens": number}) for number in (1, 4)),
    *(Configuration("DINOv3", vision) for vision in (
        {}, {"num_register_tokens": 4}, GATED, NO_BIAS, {"rope_theta": 30.0}, {"key_bias": True},
        {"hidden_act": "silu"},
    )),
    Configuration("DINOv3", {}, None, "DINOv3ViTImageProcessor", {"size": SQUARE}),
]  # fmt: skip


@contextmanager
def tiny_siglip() -> Iterator[None]:
    """Register a tiny SigLIP encoder with timm, with an exact GELU as in most of timm's."""
    name, module = "vit_zoo_siglip_24", ModuleType("zoo_siglip_of_a_test")
    if is_model(name):  # registered by an earlier use in this process
        yield
        return
    size = {"input_size": (3, SIDE, SIDE), "num_classes": 0, "fixed_input_size": True, "first_conv": "patch_embed.proj"}
    module.default_cfgs = generate_default_cfgs({name: {**size, "classifier": "head"}})  # type: ignore[attr-defined]
    shape = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        arguments = {**shape, "class_token": False, "global_pool": "map", **kwargs}
        return build_model_with_cfg(VisionTransformer, name, pretrained, **arguments)

    build.__name__, build.__module__ = name, module.__name__
    sys.modules[module.__name__] = module
    register_model(build)
    yield
    del sys.modules[module.__name__]


def outcome(configuration: Configuration, folder: Path) -> tuple[str, dict[str, float]]:
    """Write and import a model: equal, refused with the reason, or wrong, and the differences by name."""
    configuration.save(folder)
    load = import_vision if configuration.text is None else import_clip
    try:
        model = load(str(folder))
    except UserError as error:
        return f"refused: {error}", {}
    differences = Origin("transformers", str(folder)).differences(model)
    is_equal = all(value <= TOLERANCES[name] for name, value in differences.items())
    return "equal" if is_equal else "wrong", differences


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    transformers.utils.logging.disable_progress_bar()
    rows: dict[str, list[tuple[str, dict[str, float]]]] = {}
    with tiny_siglip():
        for configuration in ZOO:
            with tempfile.TemporaryDirectory() as folder:
                rows.setdefault(configuration.family, []).append(outcome(configuration, Path(folder)))
    print("| family | models | equal | refused | wrong | features, tokens | pixels | resized |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for family, results in rows.items():
        words = [word.partition(":")[0] for word, _ in results]
        counts = " | ".join(str(words.count(word)) for word in ("equal", "refused", "wrong"))
        groups = (("features", "text_features", "tokens"), ("pixels",), ("resized_pixels",))
        largest = []
        for names in groups:
            values = [differences[name] for _, differences in results for name in names if name in differences]
            largest.append(f"{max(values):.0e}" if values else "")
        print(f"| {family} | {len(results)} | {counts} | {' | '.join(largest)} |")
    words = [word for results in rows.values() for word, _ in results]
    print(f"{len(words)} models, {sum(word == 'wrong' for word in words)} wrong in silence")


if __name__ == "__main__":
    main()
