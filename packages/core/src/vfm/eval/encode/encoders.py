"""Checkpoints loaded as encoders in evaluation mode, with the cache key of their features."""

# M texts, D width

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vfm.base import positions
from vfm.eval.base import ResizeMode
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import checkpoint_hash
from vfm.interfaces import Artifact, ClipCheckpoint, VisionCheckpoint
from vfm.models import (
    ClipModel,
    EncoderPrecision,
    PooledVision,
    Preprocess,
    TextImageEncoder,
    load_clip,
    load_vision,
    vision_preprocess,
)
from vfm.train.parallel.sharing import in_batches, of_all, own_share

FEATURES_VERSION = 1  # raise when a change of the code changes the features of a checkpoint


@dataclass
class LoadedClip(ClipModel):
    """A CLIP model from a checkpoint. `features_key` identifies its image features in the cache."""

    features_key: str = ""


def load_encoder(
    checkpoint: Artifact,
    device: torch.device,
    resize_mode: ResizeMode | None = None,
    precision: EncoderPrecision = "fp32",
) -> LoadedClip | PooledVision:
    """Load the model of a ClipCheckpoint or a VisionCheckpoint in evaluation mode.

    Args:
        checkpoint: The artifact.
        device: Device of the model.
        resize_mode: How images that are not square are resized. Default: as the model was trained.
        precision: Precision of the forward pass.
    """
    if isinstance(checkpoint, ClipCheckpoint):
        clip = load_clip(checkpoint, device)
        preprocess = _with_resize_mode(clip.preprocess, resize_mode)
        parts = {part.name: getattr(clip, part.name) for part in fields(clip)}
        changed = {**parts, "preprocess": preprocess, "precision": precision}
        return LoadedClip(**changed, features_key=_features_key(checkpoint, preprocess, precision))
    assert isinstance(checkpoint, VisionCheckpoint), checkpoint
    module = load_vision(checkpoint, device=device).eval()
    preprocess = _with_resize_mode(vision_preprocess(module), resize_mode)
    return PooledVision(module, preprocess, _features_key(checkpoint, preprocess, precision), precision)


def _with_resize_mode(preprocess: Preprocess, resize_mode: ResizeMode | None) -> Preprocess:
    if not resize_mode:
        return preprocess
    return preprocess.model_copy(update={"resize_mode": resize_mode})


def _features_key(checkpoint: Artifact, preprocess: Preprocess, precision: EncoderPrecision) -> str:
    """Hash everything that the features of an image depend on, except the image."""
    facts = f"{FEATURES_VERSION} {checkpoint_hash(checkpoint)} {preprocess.model_dump_json()}"
    if precision != "fp32":  # so that older entries, all in fp32, stay valid
        facts += f" {precision}"
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def logit_scale(model: TextImageEncoder) -> float:
    """Compute the factor from cosines to logits."""
    log_scale: Tensor = model.module.logit_scale  # type: ignore[assignment]
    return float(log_scale.detach().exp())


def encode_texts(model: TextImageEncoder, texts: Sequence[str], batch_size: int, name: str = "the model") -> Tensor:
    """Encode texts as unit vectors.

    Repeated texts are common among web captions, and are encoded once. If several processes share the evaluation, each
    encodes a part and all of them get all features.

    Args:
        model: The encoder.
        texts: M texts.
        batch_size: Number of texts encoded at a time.
        name: The model's name, for the error.

    Returns:
        (M, D).

    Raises:
        UserError: If a feature is not finite.
    """
    different = list(dict.fromkeys(texts))
    rows = positions(different)
    batches = own_share(in_batches(different, batch_size))
    encoded = (_encode_finite(model, batch, batch_size, name) for batch in batches)
    features = torch.empty(0, 0)
    done = 0
    for part in of_all(encoded):
        if not done:  # filled in place, since concatenating the parts would take twice the memory
            features = torch.empty(len(rows), part.shape[1])
        features[done : done + len(part)] = part
        done += len(part)
    if len(rows) == len(texts):
        return features
    return features[torch.tensor([rows[text] for text in texts])]


def _encode_finite(model: TextImageEncoder, texts: Sequence[str], batch_size: int, name: str) -> Tensor:
    features = model.encode_texts(texts, batch_size)
    check_finite(features, name, texts)
    return features
