"""The features that probes are trained on: which tokens of which layers, as they are or of unit length.

Sources: CLIP (Radford et al. 2021, arXiv:2103.00020, section 3.2) probes image features before the projection into the
joint space; EVA's released linear probe reads the class token, DINOv2's (Oquab et al. 2023, arXiv:2304.07193, and its
code) the class tokens of the last one or four blocks and the mean over the last one's patches. None of them scales the
features to unit length.
"""

# B batch, N images, P prefix tokens, D width of the tower

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.base import UserError
from vfm.eval.classify.stages import ProbeInput
from vfm.models import ClipModel, ImageEncoder, PooledVision, vision_tower
from vfm.models.vision.vision_towers import VisionTower, read_layers


def with_probe_features(encoders: Mapping[str, ImageEncoder], chosen: ProbeInput) -> dict[str, ImageEncoder]:
    """Return the encoders with the features that a probe reads; an encoder of another kind keeps its own."""
    return {
        name: ProbeFeatures(encoder, chosen) if isinstance(encoder, ClipModel | PooledVision) else encoder
        for name, encoder in encoders.items()
    }


@dataclass(frozen=True)
class ProbeFeatures:
    """An encoder of images whose vectors are the input of a probe."""

    encoder: Any  # ClipModel or PooledVision
    chosen: ProbeInput

    @property
    def features_key(self) -> str:
        """Identifies the features in the cache; empty if the encoder's are not cached."""
        key = getattr(self.encoder, "features_key", "")
        facts = f"{key} {self.chosen.model_dump_json()}"
        return hashlib.sha256(facts.encode()).hexdigest()[:32] if key else ""

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Return features, float32 (N, ...) on the CPU.

        Raises:
            UserError: the encoder has no patch tokens or no class token, which `chosen` needs.
        """
        model = self.encoder if isinstance(self.encoder, ClipModel) else self.encoder.module
        device = next(self.encoder.module.parameters()).device
        parts = []
        was_training = self.encoder.module.training
        self.encoder.module.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(images), batch_size):
                    pixels = self.encoder.preprocess.inputs(images[start : start + batch_size], device)
                    parts.append(probe_features(model, pixels, self.chosen).float().cpu())
        finally:
            self.encoder.module.train(was_training)
        # A copy outside inference mode: autograd refuses inference tensors, and probes train on these features.
        return torch.cat(parts).clone()


def probe_features(model: ClipModel | nn.Module, pixels: Tensor, chosen: ProbeInput) -> Tensor:
    """Return the features of a batch of images.

    Args:
        model: a CLIP model or a timm model, in evaluation mode.
        pixels: normalised images, (B, 3, H, W).
        chosen: tokens, layers and scale.

    Returns:
        (B, D) for the model's own pooling, for the class token or the mean of one layer; (B, layers * D) of several,
        and (B, (layers + 1) * D) for the class tokens and the mean over the last layer's patches.

    Raises:
        UserError: the model has no patch tokens, no class token or fewer layers.
    """
    features = (
        _own(model, pixels, projected=chosen.projected) if chosen.pool == "own" else _tokens(model, pixels, chosen)
    )
    return F.normalize(features, dim=-1) if chosen.normalize else features


def _own(model: ClipModel | nn.Module, pixels: Tensor, *, projected: bool) -> Tensor:
    """Return the model's own image features: of a CLIP model in the joint space, or before the projection."""
    if not isinstance(model, ClipModel):
        pooled: Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
        return pooled
    if not projected:
        try:
            tower = vision_tower(model)
            return tower.pool(read_layers(tower, pixels, [-1])[0])
        except UserError:  # no transformer, or a pooling head that projects
            pass
    embeds: Tensor = model.module.encode_image(pixels)  # type: ignore[operator]
    return embeds


def _tokens(model: ClipModel | nn.Module, pixels: Tensor, chosen: ProbeInput) -> Tensor:
    tower = vision_tower(model)
    if chosen.pool != "mean" and not tower.has_class_token:
        raise UserError(f"{tower.name}: it has no class token; set features: {{pool: mean}}")
    if chosen.layers > tower.depth:
        raise UserError(f"{tower.name}: features.layers must be at most {tower.depth}, its blocks; got {chosen.layers}")
    layers = read_layers(tower, pixels, list(range(-chosen.layers, 0)))
    means = [tower.norm(layer.patches).mean(dim=1) for layer in layers]
    if chosen.pool == "mean":
        return torch.cat(means, dim=-1)
    class_tokens = [_class_token(tower, layer.prefix) for layer in layers]
    return torch.cat([*class_tokens, *(means[-1:] if chosen.pool == "cls_mean" else [])], dim=-1)


def _class_token(tower: VisionTower, prefix: Tensor) -> Tensor:
    token: Tensor = tower.norm(prefix[:, 0])
    return token
