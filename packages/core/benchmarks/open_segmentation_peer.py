"""Open segmentation beside NACLIP's own code: python packages/core/benchmarks/open_segmentation_peer.py --naclip FOLDER

FOLDER is a checkout of https://github.com/sinahmr/NACLIP (MIT licence), which is no part of this project. Its model and
its `predict` run as they are, without mmsegmentation, of which they only need a base class. Both sides have equal
random weights, of the size of ViT-B/16, and equal vectors of the words. Compared are the patch features of `clip`,
`sclip` and `naclip` on several grids, and the cosines and classes of the pixels of whole pictures, with and without
windows and refinement. Writes `results/open_segmentation_peer.json`. About two CPU minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.eval.open_segmentation.last_block_rules import LastBlockRule, NaClip, Sclip, UnchangedClip
from vfm.eval.open_segmentation.segmenter import Segmenter, SlidingWindowSettings
from vfm.models import ClipModel, build_clip
from vfm.models.vision.last_block import last_block_reader, papers_positions

RESULTS = Path(__file__).parent / "results"
NEEDED = ("naclip.py", "pamr.py", "clip/model.py")
SIDE, PATCH, WORDS = 224, 16, 20
EMBED_DIM = 512
VISION = {"image_size": SIDE, "patch_size": PATCH, "width": 768, "layers": 12, "head_width": 64}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
# Their names of a rule: the architecture of the last block, and its attention.
RULES: dict[str, tuple[LastBlockRule, str, str]] = {
    "clip": (UnchangedClip(), "vanilla", "vanilla"),
    "sclip": (Sclip(), "vanilla", "csa"),
    "naclip": (NaClip(), "reduced", "naclip"),
}
GRIDS = ((14, 14), (14, 21), (21, 14), (28, 28))
PICTURES = ((224, 224), (224, 336), (301, 224))  # of windows: no size need be a multiple of the patch
WHOLE_PICTURES = ((224, 336),)


class Registry:
    """Stands for mmsegmentation's registry of models, which only notes the class."""

    @staticmethod
    def register_module() -> Any:
        return lambda kind: kind


STAND_INS: dict[str, dict[str, Any]] = {
    "mmengine": {},
    "mmengine.structures": {"PixelData": object},
    "mmseg": {},
    "mmseg.models": {},
    "mmseg.models.data_preprocessor": {"SegDataPreProcessor": object},
    "mmseg.models.segmentors": {"BaseSegmentor": nn.Module},
    "mmseg.registry": {"MODELS": Registry},
}


def import_peer(folder: Path) -> None:
    """Make the modules of a checkout importable; `clip` without its file `clip.py`, which downloads weights."""
    for name, members in STAND_INS.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    sys.modules["clip"] = ModuleType("clip")
    sys.modules["clip"].__path__ = [str(folder / "clip")]
    sys.path.insert(0, str(folder))


def random_model() -> ClipModel:
    model = build_clip({"embed_dim": EMBED_DIM, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}, seed=0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.visual.parameters():  # biases and norms, too, which begin as 0 and 1
            noise = torch.randn(parameter.shape, generator=draws)
            parameter.add_(noise, alpha=0.1 if parameter.ndim == 1 else 0.01)
    model.module.eval()
    return model


def their_net(model: ClipModel) -> Any:
    vision = (VISION[key] for key in ("image_size", "layers", "width", "patch_size"))
    text = (TEXT[key] for key in ("context_length", "vocab_size", "width", "heads", "layers"))
    net = import_module("clip.model").CLIP(EMBED_DIM, *vision, *text)
    net.load_state_dict(model.module.state_dict())
    return net.eval()


def their_segmenter(net: Any, words: Tensor, window: int | None, *, refine: bool) -> Any:
    """Return a `NACLIP` with the fields that its constructor sets, and these weights and words."""
    kind = import_module("naclip").NACLIP
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    made.net, made.query_features, made.num_queries, made.dtype = net, words, len(words), words.dtype
    made.slide_crop, made.slide_stride, made.align_corners = window or 0, SIDE // 2, False
    made.pamr = import_module("pamr").PAMR(10, dilations=(8, 16)) if refine else None
    made.postprocess_result = lambda scores, samples: scores[0]  # the scores themselves
    return made


def draw_picture(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return patches of colour with noise, (H, W, 3), so that there are edges to refine along."""
    colours = rng.integers(0, 256, (*(side // 28 + 1 for side in size), 3))
    pixels = colours.repeat(28, axis=0).repeat(28, axis=1)[: size[0], : size[1]]
    return (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)


def compare_features(model: ClipModel, net: Any) -> list[dict[str, Any]]:
    reader, draws, rows = last_block_reader(model, papers_positions), torch.Generator().manual_seed(2), []
    for grid in GRIDS:
        pixels = torch.randn(2, 3, PATCH * grid[0], PATCH * grid[1], generator=draws)
        block = reader.read(pixels)
        for name, (part, architecture, attention) in RULES.items():
            net.visual.set_params(architecture, attention, 5.0)
            theirs = net.encode_image(pixels, return_all=True)[:, 1:]
            ours = reader.embed(part.build(None)(block, None)).flatten(1, 2)
            found = {"largest_difference": largest(ours - theirs), "standard_deviation": float(theirs.std())}
            rows.append({"rule": name, "grid": grid, **found})
    return rows


def compare_pictures(model: ClipModel, net: Any) -> list[dict[str, Any]]:
    words = F.normalize(torch.randn(WORDS, EMBED_DIM, generator=torch.Generator().manual_seed(3)), dim=-1)
    reader, rng, rows = last_block_reader(model, papers_positions), np.random.default_rng(0), []
    rules = {name: part.build(None) for name, (part, _, _) in RULES.items()}
    for size, window in [*((size, SIDE) for size in PICTURES), *((size, None) for size in WHOLE_PICTURES)]:
        pixels = draw_picture(size, rng)
        inputs = model.preprocess.pixels(torch.from_numpy(pixels)[None])
        for refine in (False, True):
            view = SlidingWindowSettings(min(size), window, stride=0.5, refine=refine)
            peer = their_segmenter(net, words, window, refine=refine)
            for name, ours in Segmenter(model, reader, words, rules, view, "ours").cosines(Image.fromarray(pixels), ""):
                net.visual.set_params(*RULES[name][1:], 5.0)
                theirs = peer.predict(inputs, None)
                how = {"rule": name, "picture": size, "window": window or "whole", "refined": refine}
                differing = int((ours.argmax(0) != theirs.argmax(0)).sum())
                rows.append({**how, "largest_difference": largest(ours - theirs), "pixels_that_differ": differing})
                print(rows[-1], flush=True)
    return rows


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@torch.no_grad()
def measure(folder: Path) -> dict[str, Any]:
    import_peer(folder)
    model = random_model()
    net = their_net(model)
    features, pictures = compare_features(model, net), compare_pictures(model, net)
    return {
        "peer": "https://github.com/sinahmr/NACLIP",
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NEEDED},
        "largest_difference_of_features": {
            name: max(row["largest_difference"] for row in features if row["rule"] == name) for name in RULES
        },
        "largest_difference_of_cosines": max(row["largest_difference"] for row in pictures),
        "pixels": sum(row["picture"][0] * row["picture"][1] for row in pictures),
        "pixels_that_differ": sum(row["pixels_that_differ"] for row in pictures),
        "features": features,
        "pictures": pictures,
        "machine": f"{platform.machine()}, torch {torch.__version__}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--naclip", type=Path, required=True, help="a checkout of NACLIP's code")
    parser.add_argument("--out", type=Path, default=RESULTS / "open_segmentation_peer.json")
    given = parser.parse_args()
    if missing := [name for name in NEEDED if not (given.naclip / name).is_file()]:
        parser.error(f"{given.naclip}: expected a checkout of NACLIP's code; {missing[0]} is missing")
    record = measure(given.naclip)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in record.items() if key not in ("features", "pictures")}, indent=1))
