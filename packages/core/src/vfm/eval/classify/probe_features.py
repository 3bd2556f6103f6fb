"""Choose the tokens and layers that probes are trained on, and optionally scale them to unit length.

Sources: CLIP (Radford et al. 2021, arXiv:2103.00020, section 3.2) probes image features before the projection into
the joint space. EVA's released linear probe reads the class token. DINOv2 (Oquab et al. 2023, arXiv:2304.07193, and
its code) reads the class tokens of the last one or four blocks and the mean over the patches of the last one. None of
them scales the features to unit length.
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
    """Wrap encoders so that they compute the features that a probe reads. Other kinds of encoders are unchanged."""
    wrapped: dict[str, ImageEncoder] = {}
    for name, encoder in encoders.items():
        is_known = isinstance(encoder, ClipModel | PooledVision)
        wrapped[name] = ProbeFeatures(encoder, chosen) if is_known else encoder
    return wrapped


@dataclass(frozen=True)
class ProbeFeatures:
    """An image encoder whose vectors are the input of a probe."""

    encoder: Any  # ClipModel or PooledVision
    chosen: ProbeInput

    @property
    def features_key(self) -> str:
        """Key of the features in the cache, empty if the encoder is not cached."""
        key = getattr(self.encoder, "features_key", "")
        if not key:
            return ""
        facts = f"{key} {self.chosen.model_dump_json()}"
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Encode images as features, float32 (N, ...) on the CPU.

        Raises:
            UserError: If `chosen` needs patch tokens or a class token that the encoder does not have.
        """
        if isinstance(self.encoder, ClipModel):
            model = self.encoder
        else:
            model = self.encoder.module
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
        # Copy outside inference mode, because probes train on these features and autograd rejects inference tensors.
        return torch.cat(parts).clone()


def probe_features(model: ClipModel | nn.Module, pixels: Tensor, chosen: ProbeInput) -> Tensor:
    """Compute the features of a batch of images.

    Args:
        model: A CLIP model or a timm model, in evaluation mode.
        pixels: Normalised images, (B, 3, H, W).
        chosen: The tokens, layers and scale.

    Returns:
        (B, D) for the pooling of the model, or for the class token or mean in a single layer. (B, layers * D) for
        several layers, and (B, (layers + 1) * D) for the class tokens with the mean over the last layer's patches.

    Raises:
        UserError: If the model has no patch tokens, no class token or fewer layers.
    """
    if chosen.pool == "own":
        features = _own(model, pixels, projected=chosen.projected)
    else:
        features = _tokens(model, pixels, chosen)
    if not chosen.normalize:
        return features
    return F.normalize(features, dim=-1)


def _own(model: ClipModel | nn.Module, pixels: Tensor, *, projected: bool) -> Tensor:
    """Compute the image features of the model, for a CLIP model in the joint space or before the projection."""
    if not isinstance(model, ClipModel):
        pooled: Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
        return pooled
    if not projected:
        try:
            tower = vision_tower(model)
            # Before the projection, as in CLIP's paper (appendix A.3).
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
    features = []
    for layer in layers:
        features.append(_class_token(tower, layer.prefix))
    if chosen.pool == "cls_mean":
        features.append(means[-1])
    return torch.cat(features, dim=-1)


def _class_token(tower: VisionTower, prefix: Tensor) -> Tensor:
    token: Tensor = tower.norm(prefix[:, 0])
    return token
