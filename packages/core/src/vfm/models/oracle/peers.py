"""Comparison of an imported model with transformers, open_clip's or timm's own loader, preprocessing and tokenizer."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models.clip.clip import ClipModel
from vfm.models.custom_code import without_custom_code
from vfm.models.oracle.inputs import NUM_INPUTS, TEXTS, noise, pixel_differences, relative, share_of_different_ids
from vfm.models.transformers_folders.files import TOKENIZER_FILES
from vfm.models.transformers_folders.processor import find_processor
from vfm.models.vision.vision import vision_preprocess
from vfm.models.vision.vision_towers import read_tokens, vision_tower
from vfm.models.weights import load_state_dict


def transformers_differences(model: ClipModel | nn.Module, source: str, weights: str | None = None) -> dict[str, float]:
    """Compute the differences between an imported model and transformers by name.

    Args:
        model: The imported model, in evaluation mode.
        source: Its folder in transformers' layout. transformers loads it, or raises its own errors.
        weights: None, since the folder has its weights.
    """
    transformers: Any = import_module("transformers")  # an optional extra, half a second
    folder = Path(source)

    def load(kind: str, **arguments: Any) -> Any:
        with without_custom_code(source):
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
    differences = (
        _transformers_clip(model, peer) if isinstance(model, ClipModel) else _transformers_encoder(model, peer)
    )
    if processor:

        def transform(image: Image.Image) -> Tensor:
            pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
            return pixels

        differences |= pixel_differences(preprocess, transform)
    if tokenizer and isinstance(model, ClipModel):
        arguments = {"padding": "max_length", "max_length": model.context_length, "truncation": True}
        theirs = tokenizer(list(TEXTS), return_tensors="pt", **arguments).input_ids
        differences["ids"] = share_of_different_ids(model.tokenize(TEXTS), theirs, tokenizer.eos_token_id)
    return differences


def _transformers_clip(model: ClipModel, peer: Any) -> dict[str, float]:
    pixels = noise(model.preprocess.image_size)
    ids = _random_ids(peer.config.text_config, model.context_length)
    theirs = peer(input_ids=ids, pixel_values=pixels)
    image, text = model.module.encode_image(pixels), model.module.encode_text(ids)  # type: ignore[operator]
    return {
        "features": relative(F.normalize(image, dim=-1), theirs.image_embeds),
        "text_features": relative(F.normalize(text, dim=-1), theirs.text_embeds),
    }


def _transformers_encoder(model: Any, peer: Any) -> dict[str, float]:
    tower = vision_tower(model)
    peer = getattr(peer, "vision_model", peer)  # of a model with texts
    pixels = noise(tower.image_size[0])
    theirs, tokens = peer(pixel_values=pixels), read_tokens(tower, pixels, -1)
    ours = torch.cat([tokens.prefix, tokens.patches], dim=1)
    is_clip = "clip" in str(peer.config.model_type)  # its tokens have no final norm
    differences = {"tokens": relative(ours if is_clip else model.norm(ours), theirs.last_hidden_state)}
    if getattr(theirs, "pooler_output", None) is not None and peer.config.model_type != "vit":
        pooled = model.forward_head(model.forward_features(pixels), pre_logits=True)
        differences["features"] = relative(pooled, theirs.pooler_output)
    return differences


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


def open_clip_differences(model: ClipModel, source: str, weights: str | None = None) -> dict[str, float]:
    """Compute the differences between an imported CLIP model and open_clip by name.

    A file does not specify its preprocessing and tokenizer, so only features are compared.

    Args:
        model: The imported model, in evaluation mode.
        source: Name of the model in open_clip, or `local-dir:FOLDER`.
        weights: open_clip's tag or a file. A folder needs none.
    """
    peer: Any
    peer, _, transform = open_clip.create_model_and_transforms(source, pretrained=weights)
    peer.eval()
    tokenizer = open_clip.get_tokenizer(source, context_length=model.context_length)
    pixels, theirs = noise(model.preprocess.image_size), tokenizer(list(TEXTS))
    module: Any = model.module
    image, text = module.encode_image(pixels), module.encode_text(theirs)
    differences = {
        "features": relative(F.normalize(image, dim=-1), peer.encode_image(pixels, normalize=True)),
        "text_features": relative(F.normalize(text, dim=-1), peer.encode_text(theirs, normalize=True)),
    }
    if not (weights and Path(weights).is_file()):
        differences |= pixel_differences(model.preprocess, transform)
    return differences | {"ids": share_of_different_ids(model.tokenize(TEXTS), theirs, None)}


def timm_differences(model: Any, source: str, weights: str | None = None) -> dict[str, float]:
    """Compute the differences between an imported encoder and timm by name. EVA's files are read by timm as well.

    Args:
        model: The imported encoder, in evaluation mode.
        source: Name of the encoder in timm, or `local-dir:FOLDER`.
        weights: A file. Default: the weights of the name or folder.
    """
    peer: Any = _timm_with_file(model, source, Path(weights)) if weights else timm.create_model(source, pretrained=True)
    peer.eval()
    preprocess = vision_preprocess(model)
    pixels = noise(preprocess.image_size)
    features, theirs = model.forward_features(pixels), peer.forward_features(pixels)
    differences = {
        "tokens": relative(features, theirs),
        "features": relative(model.forward_head(features), peer.forward_head(theirs)),
    }
    transform: Any = create_transform(**resolve_model_data_config(peer), is_training=False)
    return differences | pixel_differences(preprocess, transform)


def _timm_with_file(model: nn.Module, source: str, file: Path) -> nn.Module:
    """Build timm's encoder with a file's tensors, read safely, and converted by the filter next to the architecture."""
    arguments: dict[str, Any] = {"num_classes": model.num_classes}
    if getattr(model, "global_pool", None) in ("avg", "token"):
        arguments["global_pool"] = model.global_pool
    peer: nn.Module = timm.create_model(source, **arguments)
    convert: Any = getattr(sys.modules[type(peer).__module__], "checkpoint_filter_fn", lambda tensors, model: tensors)
    peer.load_state_dict(convert(load_state_dict(file), peer))
    return peer
