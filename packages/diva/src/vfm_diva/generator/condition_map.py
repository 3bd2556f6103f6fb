"""Map from CLIP's joint space to the context of a prior's network, and to its vector. It is trained with the prior."""

# B batch, D width of the joint space, K context tokens, W their width, P width of the vector

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import ClipModel, save_state_dict
from vfm.plugin import UserError, store_files
from vfm_diva.generator.conditioning import Conditioning

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PROBE = "a photo of a thing"
MapLayers = Literal["linear", "mlp"]
SAME_SPACE = 0.99  # minimum cosine of the probe's embeddings; an unchanged text tower gives 1


def unit_rms(embeds: Tensor) -> Tensor:
    """Scale embeddings so that their channels have a root mean square of 1.

    A linear layer needs inputs of this size.
    """
    return F.normalize(embeds.float(), dim=-1) * math.sqrt(embeds.shape[-1])


class ConditionMap(nn.Module):
    """Map from CLIP's joint space to the context tokens of a generator.

    It is trained with the generator. It is a linear layer, or layer norm, linear layer, GELU and linear layer
    (GenHancer). If the network takes a vector, the map also computes it.

    It expects text embeddings. CLIP's image embeddings differ from them by a nearly constant vector, the modality gap
    (arXiv:2203.02053), and `toward_text` adds it. The weights identify the joint space by the embedding of a fixed
    text.

    Args:
        embed_dim: Width D of the joint space.
        num_tokens: Number K of context tokens.
        width: Width W of a context token.
        vector_width: Width P of the vector, or 0 for networks without a vector.
        layers: Layers of the map.
    """

    gap: Tensor
    probe: Tensor

    def __init__(
        self, embed_dim: int, num_tokens: int, width: int, vector_width: int = 0, layers: MapLayers = "linear"
    ) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = {"embed_dim": embed_dim, "num_tokens": num_tokens, "width": width}
        if vector_width:
            self.sizes["vector_width"] = vector_width
        if layers != "linear":
            self.sizes["layers"] = layers
        self.linear = _layers(layers, embed_dim, num_tokens * width)
        self.vector = _layers(layers, embed_dim, vector_width) if vector_width else None
        # Buffers, so that the files of the map have them: without the gap and the probe it cannot be used.
        self.register_buffer("gap", torch.zeros(embed_dim))
        self.register_buffer("probe", torch.zeros(embed_dim))

    def forward(self, embeds: Tensor, *, noise: Tensor | None = None, is_empty: Tensor | None = None) -> Conditioning:
        """Map text-like embeddings to context tokens, (B, K, W), and to the vector, (B, P).

        Args:
            embeds: Embeddings of any scale, (B, D).
            noise: Noise that is added when channels have a root mean square of 1, (B, D).
            is_empty: True for samples without a condition, (B,) bool.
        """
        embeds = unit_rms(embeds)
        if noise is not None:
            embeds = embeds + noise
        if is_empty is not None:
            # Zeros are what classifier-free guidance later compares with, and no unit vector is near them.
            embeds = embeds.masked_fill(is_empty[:, None], 0.0)
        tokens: Tensor = self.linear(embeds)  # (B, K W)
        vector = None if self.vector is None else self.vector(embeds)
        return Conditioning(tokens.view(-1, self.sizes["num_tokens"], self.sizes["width"]), vector)

    def from_images(self, image_embeds: Tensor) -> Conditioning:
        """Map image embeddings, (B, D), to context tokens."""
        conditioning: Conditioning = self(self.toward_text(image_embeds))
        return conditioning

    def toward_text(self, image_embeds: Tensor) -> Tensor:
        """Scale image embeddings to unit length and add the modality gap, (B, D)."""
        return F.normalize(image_embeds.float(), dim=-1) + self.gap

    def empty(self, num_samples: int) -> Conditioning:
        """Compute the context of samples without a condition."""
        embeds = self.gap.new_ones(num_samples, len(self.gap))
        is_empty = torch.ones(num_samples, dtype=torch.bool, device=self.gap.device)
        conditioning: Conditioning = self(embeds, is_empty=is_empty)
        return conditioning

    def record_space(self, clip: ClipModel) -> None:
        """Store the probe's embedding, by which the CLIP model's joint space is recognized.

        On the meta device nothing is stored.
        """
        if not self.probe.is_meta:
            self.probe.copy_(clip.encode_texts([PROBE])[0])

    def check_width(self, clip: ClipModel) -> None:
        """Check that a CLIP model's joint space has the map's width. No weights are read.

        Raises:
            UserError: If the widths differ.
        """
        width = self.sizes["embed_dim"]
        if clip.embed_dim != width:
            raise UserError(
                f"the generator's condition map expects embeddings of width {width}, got {clip.name} with "
                f"{clip.embed_dim}: train a diva.prior on this CLIP model"
            )

    def check_space(self, clip: ClipModel) -> None:
        """Check that a CLIP model has the joint space that the map was trained on.

        Equal widths do not guarantee this. On the meta device there is nothing to compare.

        Raises:
            UserError: If the embedding of the probe differs.
        """
        if self.probe.is_meta:
            return
        cosine = float(self.probe.cpu() @ clip.encode_texts([PROBE])[0])
        if cosine < SAME_SPACE:
            raise UserError(
                f"the generator was trained on another CLIP model than {clip.name}: expected cosine 1 of one text's "
                f"embeddings, got {cosine:.2f}; train a diva.prior on this one"
            )

    def save(self, directory: Path) -> None:
        """Write the sizes of the map as JSON, and its weights as safetensors."""
        save_state_dict(self.state_dict(), directory / WEIGHTS_FILE)
        (directory / CONFIG_FILE).write_text(json.dumps(self.sizes, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, *, weights: bool = True) -> ConditionMap | None:
        """Load a saved map.

        Args:
            directory: Folder of the generator.
            weights: False gives a map on the meta device.

        Returns:
            The map, or None without one in the folder.
        """
        file = directory / CONFIG_FILE
        sizes = store_files.read_record(file) if file.is_file() else {}
        if not sizes:
            return None
        if not weights:
            with torch.device("meta"):
                return cls(**sizes)
        condition_map = cls(**sizes)
        condition_map.load_state_dict(store_files.read_safetensors(directory / WEIGHTS_FILE))
        return condition_map


def _layers(kind: MapLayers, width: int, out: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, out)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def save_without_map(directory: Path) -> None:
    """Write an empty configuration.

    It marks a prior that was trained here on text states without a map.
    """
    directory.mkdir(exist_ok=True)
    (directory / CONFIG_FILE).write_text("{}\n", encoding="utf-8")
