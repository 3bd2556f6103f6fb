"""EVA-01's segmenter as its released code builds it, a ViT-Adapter and a Mask2Former, on weights and images drawn here.

mmcv and the public EVA repository are no dependencies. Their Python files are enough (no compiled part is used): put
mmcv 1.7.2, addict, yapf, opencv-python-headless and the folder EVA-01/seg on PYTHONPATH, and run this file to write
`vit_adapter.json`, which the test reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from detectron2_peer import draw

WIDTH, DEPTH, HEADS, HIDDEN, CLASSES, SIDE = 32, 4, 2, 48, 5, 64
CHANNELS, DECODER_HEADS, QUERIES, ENCODER_LAYERS, DECODER_LAYERS = 32, 4, 6, 2, 4
FILE = Path(__file__).with_name("vit_adapter.json")
RELEASES = {"plain": False, "relative": True}  # the second has relative positions and layer scale


def weights(shapes: dict[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights of a state dict: norms and variances near 1, the rest small, counters 0."""
    found = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        if name.endswith(("num_batches_tracked", "relative_position_index")):
            found[name] = torch.zeros(tuple(shape), dtype=torch.int64)
            continue
        values = draw(tuple(shape), number)
        fan = max(1, values[0].numel() if len(shape) > 1 else 1)
        near_one = name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight"))
        scale = 2.0 if "sampling_offsets" in name else 0.5 if len(shape) == 1 else 2 / fan**0.5
        found[name] = 1 + 0.3 * values if near_one else scale * values
    return found


def image() -> Tensor:
    """Return two normalised images."""
    return draw((2, 3, SIDE, SIDE), 900)


@cache
def load_public() -> tuple[Any, Any]:
    """Import the adapter and the head; what they need of mmsegmentation is registries and a base class."""
    from mmcv.runner import BaseModule
    from mmcv.utils import Registry

    def module(name: str, **members: Any) -> ModuleType:
        made = sys.modules[name] = ModuleType(name)
        made.__dict__.update(members)
        return made

    class BaseDecodeHead(BaseModule):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()

    class Uncompiled(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)

    def sample(*args: Any) -> Tensor:
        from ops.functions.ms_deform_attn_func import ms_deform_attn_core_pytorch

        return ms_deform_attn_core_pytorch(args[0], args[1], args[3], args[4])  # type: ignore[no-any-return]

    sys.modules["mmcv._ext"] = Uncompiled("mmcv._ext")
    module("MultiScaleDeformableAttention", ms_deform_attn_forward=sample)
    registry = Registry("models")
    module("mmcv_custom", load_checkpoint=None)
    module("mmseg", __path__=[])
    module("mmseg.models", __path__=[])
    module("mmseg.models.builder", BACKBONES=registry, HEADS=registry, build_loss=lambda config: None)
    module("mmseg.models.decode_heads", __path__=[])
    module("mmseg.models.decode_heads.decode_head", BaseDecodeHead=BaseDecodeHead)
    module("mmseg.utils", get_root_logger=None)
    module("timm.models.layers", **__import__("timm.layers", fromlist=["layers"]).__dict__)
    for root in sys.path:
        if (folder := Path(root) / "mmseg_custom").is_dir():
            break
    for name in ("", ".core", ".models", ".models.backbones", ".models.decode_heads", ".models.plugins",
                 ".models.utils"):  # fmt: skip
        package = module(f"mmseg_custom{name}", __path__=[str(folder.joinpath(*name.split(".")))])
        if name in (".core", ".models.utils"):
            package.build_sampler = package.multi_apply = package.reduce_mean = None  # type: ignore[attr-defined]
            package.get_uncertain_point_coords_with_randomness = None  # type: ignore[attr-defined]
    import mmseg_custom.models.plugins.msdeformattn_pixel_decoder
    import mmseg_custom.models.utils.positional_encoding
    import mmseg_custom.models.utils.transformer  # noqa: F401
    from mmseg_custom.models.backbones.beit_adapter import BEiTAdapter
    from mmseg_custom.models.decode_heads.mask2former_head import Mask2FormerHead

    return BEiTAdapter, Mask2FormerHead


def build(relative: bool) -> nn.ModuleDict:
    """Build the public model as EVA's configurations do, at tiny width."""
    from mmcv.utils import ConfigDict

    adapter, head = load_public()
    backbone = adapter(
        img_size=SIDE, patch_size=16, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=HIDDEN / WIDTH,
        qkv_bias=True, use_abs_pos_emb=True, use_rel_pos_bias=relative, init_values=1.0 if relative else None,
        drop_path_rate=0.5, conv_inplane=8, n_points=4, deform_num_heads=4, cffn_ratio=0.25, deform_ratio=0.5,
        with_cp=True, interaction_indexes=[[0, 0], [1, 1], [2, 2], [3, 3]],
    )  # fmt: skip
    ffn = {"embed_dims": CHANNELS, "feedforward_channels": 4 * CHANNELS, "num_fcs": 2, "ffn_drop": 0.0,
           "act_cfg": {"type": "ReLU", "inplace": True}}  # fmt: skip
    positions = {"type": "SinePositionalEncoding", "num_feats": CHANNELS // 2, "normalize": True}
    pixels = {
        "type": "MSDeformAttnPixelDecoder", "num_outs": 3, "norm_cfg": {"type": "GN", "num_groups": 32},
        "act_cfg": {"type": "ReLU"}, "positional_encoding": positions, "init_cfg": None,
        "encoder": {
            "type": "DetrTransformerEncoder", "num_layers": ENCODER_LAYERS, "init_cfg": None,
            "transformerlayers": {
                "type": "BaseTransformerLayer", "operation_order": ("self_attn", "norm", "ffn", "norm"),
                "attn_cfgs": {
                    "type": "MultiScaleDeformableAttention", "embed_dims": CHANNELS, "num_heads": DECODER_HEADS,
                    "num_levels": 3, "num_points": 4, "im2col_step": 64, "dropout": 0.0, "batch_first": False,
                    "norm_cfg": None, "init_cfg": None,
                },
                "ffn_cfgs": {"type": "FFN", **ffn},
            },
        },
    }  # fmt: skip
    decoder = {
        "type": "DetrTransformerDecoder", "return_intermediate": True, "num_layers": DECODER_LAYERS, "init_cfg": None,
        "transformerlayers": {
            "type": "DetrTransformerDecoderLayer", "feedforward_channels": 4 * CHANNELS,
            "operation_order": ("cross_attn", "norm", "self_attn", "norm", "ffn", "norm"),
            "attn_cfgs": {
                "type": "MultiheadAttention", "embed_dims": CHANNELS, "num_heads": DECODER_HEADS, "attn_drop": 0.0,
                "proj_drop": 0.0, "dropout_layer": None, "batch_first": False,
            },
            "ffn_cfgs": {**ffn, "dropout_layer": None, "add_identity": True},
        },
    }  # fmt: skip
    decode_head = head(
        in_channels=[WIDTH] * 4, feat_channels=CHANNELS, out_channels=CHANNELS, in_index=[0, 1, 2, 3],
        num_things_classes=CLASSES, num_stuff_classes=0, num_queries=QUERIES, num_transformer_feat_level=3,
        pixel_decoder=ConfigDict(pixels), transformer_decoder=ConfigDict(decoder), positional_encoding=positions,
        loss_cls=ConfigDict({"class_weight": None}), loss_mask=None, loss_dice=None,
    )  # fmt: skip
    return nn.ModuleDict({"backbone": backbone, "decode_head": decode_head}).eval()


def some(values: Tensor, step: int = 1) -> list[float]:
    """Return some of the values: of every channel or every `step`-th one, and of maps a few places."""
    chosen = values[:, ::step, 1::4, ::3] if values.ndim == 4 else values
    return [round(value, 5) for value in chosen.flatten().tolist()]


def results(relative: bool) -> dict[str, Any]:
    """Return what the public model computes: shapes of its state dict, maps of the adapter, predictions and scores."""
    model = build(relative)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    drawn = weights(shapes)
    index = {name: value for name, value in model.state_dict().items() if name.endswith("relative_position_index")}
    model.load_state_dict({**drawn, **index})
    information = [{"ori_shape": (SIDE, SIDE, 3)}] * 2
    with torch.no_grad():
        maps = model["backbone"](image())
        classes, masks = model["decode_head"](maps, information)
        scores = model["decode_head"].forward_test(maps, information, None)
    return {
        "shapes": shapes,
        "maps": [some(one, 5) for one in maps],
        "classes": some(classes[-1]),
        "masks": some(masks[-1]),
        "scores": some(scores),
    }


if __name__ == "__main__":
    found = {name: results(relative) for name, relative in RELEASES.items()}
    FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")
