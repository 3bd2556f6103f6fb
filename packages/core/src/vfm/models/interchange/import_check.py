"""Comparison of an imported model with transformers on eight fixed images and texts, where transformers is installed.

A wrong activation, epsilon, mean or tokenizer changes features in silence. Here the folder is also read by the library
that wrote it, and ids, pixels and features of both are compared.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.interfaces import Context
from vfm.models.clip.clip import ClipModel
from vfm.models.clip.model_sources import first_line
from vfm.models.custom_code import without_custom_code
from vfm.models.interchange.hugging_face_processor import find_processor
from vfm.models.interchange.hugging_face_tokenizer import TOKENIZER_FILES
from vfm.models.preprocess import Preprocess
from vfm.models.transformers_encoders import MODEL_TYPES, transformers_record
from vfm.models.vision.vision import vision_preprocess
from vfm.models.vision.vision_towers import read_tokens, vision_tower

NUM_INPUTS = 8
# The largest difference between both libraries that counts as equal. Features and tokens: relative, by the L2 norm.
# Pixels: of plain images, in [0, 1]. Resized pixels: of images of other sizes, which PIL and torchvision resize with
# small differences, and whose central crop differs by a pixel where a margin is odd. Ids: share of texts.
TOLERANCES = {"features": 1e-3, "text_features": 1e-3, "tokens": 1e-3, "pixels": 1e-3, "resized_pixels": 0.15, "ids": 0}
TEXTS = ("a photo of a dog", "a", "red", "two cats on a sofa", "a map of the city", "blue sky", "an old car", "rain")
SIZES = ((40, 64), (64, 40), (48, 48), (90, 30), (300, 400), (33, 47))  # of the images that are not plain


def check_import(ctx: Context, model: ClipModel | nn.Module, folder: Path | None) -> None:
    """Compare a model with transformers and keep the differences as metrics, which are part of the manifest.

    Args:
        ctx: the stage's context.
        model: the imported model.
        folder: its folder in transformers' layout. Nothing is compared for other layouts and without transformers.

    Raises:
        UserError: If a difference is above its tolerance.
    """
    if not folder or not is_comparable(folder):
        return
    try:
        differences = differences_to_transformers(model, folder)
    except Exception as error:  # of transformers, in many types; the import does not depend on it
        ctx.warn(f"not compared with transformers: {first_line(error)}")
        return
    ctx.emit("metrics", step=0, samples=0, values={f"import/{name}": value for name, value in differences.items()})
    ctx.log(f"differences to transformers: {', '.join(f'{name} {value:.1e}' for name, value in differences.items())}")
    check_differences(differences, folder)


def is_comparable(folder: Path) -> bool:
    """Check whether a folder has a model of transformers that is read here, and transformers is installed."""
    record = transformers_record(folder) or {}
    return record.get("model_type") in MODEL_TYPES and find_spec("transformers") is not None


def check_differences(differences: dict[str, float], folder: Path) -> None:
    """Refuse a model whose ids, pixels or features differ.

    Raises:
        UserError: If a difference is above its tolerance.
    """
    for name, value in differences.items():
        if not value <= TOLERANCES[name]:  # NaN is also refused
            raise UserError(
                f"{folder}: {name.replace('_', ' ')} differ from transformers' by {value:.2g}, expected at most"
                f" {TOLERANCES[name]:g}; please report its config.json. compare: false imports it anyway"
            )


@torch.inference_mode()
def differences_to_transformers(model: ClipModel | nn.Module, folder: Path) -> dict[str, float]:
    """Compute the differences between an imported model and transformers by name, as in `TOLERANCES`.

    Args:
        model: the imported model, in evaluation mode.
        folder: its folder in transformers' layout, which transformers loads or raises errors of its own.
    """
    transformers: Any = import_module("transformers")  # an optional extra, half a second

    def load(kind: str, **arguments: Any) -> Any:
        with without_custom_code(str(folder)):
            return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **arguments)

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        peer = load("AutoModel", dtype=torch.float32).eval()
        processor = load("AutoImageProcessor") if find_processor(folder)[1] else None
        has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
        tokenizer = load("AutoTokenizer") if has_tokenizer and isinstance(model, ClipModel) else None
    finally:
        transformers.logging.set_verbosity(verbosity)
    preprocess = model.preprocess if isinstance(model, ClipModel) else vision_preprocess(model)
    differences = _clip_differences(model, peer) if isinstance(model, ClipModel) else _encoder_differences(model, peer)
    if processor:
        differences |= _pixel_differences(preprocess, processor)
    if tokenizer and isinstance(model, ClipModel):
        differences["ids"] = _id_difference(model, tokenizer)
    return differences


def _clip_differences(model: ClipModel, peer: Any) -> dict[str, float]:
    pixels = _noise(model.preprocess.image_size)
    ids = _random_ids(peer.config.text_config, model.context_length)
    theirs = peer(input_ids=ids, pixel_values=pixels)
    image, text = model.module.encode_image(pixels), model.module.encode_text(ids)  # type: ignore[operator]
    return {
        "features": _relative(F.normalize(image, dim=-1), theirs.image_embeds),
        "text_features": _relative(F.normalize(text, dim=-1), theirs.text_embeds),
    }


def _encoder_differences(model: Any, peer: Any) -> dict[str, float]:
    tower = vision_tower(model)
    peer = getattr(peer, "vision_model", peer)  # of a model with texts
    pixels = _noise(tower.image_size[0])
    theirs, tokens = peer(pixel_values=pixels), read_tokens(tower, pixels, -1)
    ours = torch.cat([tokens.prefix, tokens.patches], dim=1)
    is_clip = "clip" in str(peer.config.model_type)  # its tokens have no final norm
    differences = {"tokens": _relative(ours if is_clip else model.norm(ours), theirs.last_hidden_state)}
    if getattr(theirs, "pooler_output", None) is not None and peer.config.model_type != "vit":
        pooled = model.forward_head(model.forward_features(pixels), pre_logits=True)
        differences["features"] = _relative(pooled, theirs.pooler_output)
    return differences


def _pixel_differences(preprocess: Preprocess, processor: Any) -> dict[str, float]:
    """Compare pixels, in [0, 1], of images of one colour and of smooth images that are resized."""
    plain = [Image.new("RGB", (50, 40), colour) for colour in ((0, 128, 255), (250, 40, 90))]
    smooth = [_smooth_image(size, number) for number, size in enumerate(SIZES)]
    differences = {}
    for name, images in (("pixels", plain), ("resized_pixels", smooth)):
        theirs = [_resized_as(preprocess, processor, image) for image in images]
        ours = preprocess.inputs(images, torch.device("cpu"))
        largest = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
        differences[name] = largest * min(preprocess.std)
    return differences


def _resized_as(preprocess: Preprocess, processor: Any, image: Image.Image) -> Tensor:
    """Compute transformers' pixels of an image, at the model's size if the processor makes images of another."""
    pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"]
    if pixels.shape[-1] != preprocess.image_size:
        size = (preprocess.image_size, preprocess.image_size)
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
    return pixels[0]


def _id_difference(model: ClipModel, tokenizer: Any) -> float:
    """Compute the share of texts whose ids differ, up to the first end token: libraries differ in what follows."""
    arguments = {"padding": "max_length", "max_length": model.context_length, "truncation": True}
    theirs = tokenizer(list(TEXTS), return_tensors="pt", **arguments).input_ids
    ours = model.tokenize(TEXTS)
    ends = (theirs == tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else torch.zeros_like(theirs)
    lengths = [int(row.nonzero()[0]) + 1 if row.any() else len(row) for row in ends]
    different = [not torch.equal(a[:n], b[:n]) for a, b, n in zip(ours, theirs, lengths, strict=True)]
    return sum(different) / len(different)


def _random_ids(config: Any, length: int) -> Tensor:
    """Draw ids of texts that end in the end token and are padded with it. 2 stands for the largest id in old files."""
    known = config.eos_token_id in range(3, config.vocab_size)
    end = config.eos_token_id if known else config.vocab_size - 1
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, max(4, min(config.vocab_size - 1, 1000)), (NUM_INPUTS, length), generator=draw)
    ids[ids == end] = 3
    for number, row in enumerate(ids):
        row[length - 1 - number % length :] = end
    return ids


def _noise(side: int) -> Tensor:
    return torch.randn(NUM_INPUTS, 3, side, side, generator=torch.Generator().manual_seed(0))


def _smooth_image(size: tuple[int, int], number: int) -> Image.Image:
    """Draw an image of a few colours that flow into each other."""
    seeds = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(seeds).resize(size, Image.Resampling.BICUBIC)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
