"""The map that a prior is trained with: from CLIP's joint space to the context of its cross attention."""

# B batch, D width of the joint space, K context tokens, W their width

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.weights import save_state_dict
from vfm_diva.told import Told

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PROBE = "a photo of a thing"
SAME_SPACE = 0.99  # cosine of the probe's embeddings; a text tower that was not trained further gives 1


def unit_rms(embeds: Tensor) -> Tensor:
    """Embeddings whose channels have a root mean square of 1: a scale at which a linear layer starts well."""
    return F.normalize(embeds.float(), dim=-1) * math.sqrt(embeds.shape[-1])


class ConditionMap(nn.Module):
    """A linear map from CLIP's joint space to a few context tokens, trained with the generator.

    It is made for text embeddings. CLIP's image embeddings lie apart from them by a nearly constant vector, the
    modality gap (arXiv:2203.02053), which `toward_text` adds. The weights remember the space by one text's embedding.

    Args:
        embed_dim: D.
        num_tokens: K.
        width: W.
    """

    gap: Tensor
    probe: Tensor

    def __init__(self, embed_dim: int, num_tokens: int, width: int) -> None:
        super().__init__()
        self.facts = {"embed_dim": embed_dim, "num_tokens": num_tokens, "width": width}
        self.linear = nn.Linear(embed_dim, num_tokens * width)
        self.register_buffer("gap", torch.zeros(embed_dim))
        self.register_buffer("probe", torch.zeros(embed_dim))

    def forward(self, embeds: Tensor, *, noise: Tensor | None = None, is_empty: Tensor | None = None) -> Told:
        """Context of text-like embeddings.

        Args:
            embeds: (B, D), of any scale.
            noise: added at the scale where channels have a root mean square of 1, (B, D).
            is_empty: samples whose condition is withheld, (B,) bool.

        Returns:
            Tokens (B, K, W).
        """
        embeds = unit_rms(embeds)
        if noise is not None:
            embeds = embeds + noise
        if is_empty is not None:
            embeds = embeds.masked_fill(is_empty[:, None], 0.0)
        tokens: Tensor = self.linear(embeds)
        return Told(tokens.view(-1, self.facts["num_tokens"], self.facts["width"]))

    def of_images(self, image_embeds: Tensor) -> Told:
        """The context of image embeddings, (B, D)."""
        told: Told = self(self.toward_text(image_embeds))
        return told

    def toward_text(self, image_embeds: Tensor) -> Tensor:
        """Image embeddings of unit length moved to where texts lie, (B, D)."""
        return F.normalize(image_embeds.float(), dim=-1) + self.gap

    def empty(self, num_samples: int) -> Told:
        """The context of samples without a condition."""
        nothing = self.gap.new_ones(num_samples, len(self.gap))
        told: Told = self(nothing, is_empty=torch.ones(num_samples, dtype=torch.bool, device=self.gap.device))
        return told

    def remember_space(self, clip: ClipModel) -> None:
        """Notes whose joint space this is."""
        self.probe.copy_(clip.encode_texts([PROBE])[0])

    def check_width(self, clip: ClipModel) -> None:
        """Refuses a CLIP model whose joint space has another width; looks at no weights.

        Raises:
            UserError: the width differs.
        """
        width = self.facts["embed_dim"]
        if clip.embed_dim != width:
            raise UserError(
                f"the generator's condition map takes embeddings of width {width}; {clip.name} makes {clip.embed_dim}: "
                f"train a diva.prior over this CLIP model"
            )

    def check_space(self, clip: ClipModel) -> None:
        """Refuses a CLIP model with another joint space, which would be nonsense of the right width.

        Raises:
            UserError: the embedding of the probe differs.
        """
        cosine = float(self.probe.cpu() @ clip.encode_texts([PROBE])[0])
        if cosine < SAME_SPACE:
            raise UserError(
                f"the generator was trained over another CLIP model than {clip.name}: the cosine of one text's "
                f"embeddings is {cosine:.2f}, not 1; train a diva.prior over this one"
            )

    def save(self, directory: Path) -> None:
        """Writes the map: its facts as JSON, its weights as safetensors."""
        save_state_dict(self.state_dict(), directory / WEIGHTS_FILE)
        (directory / CONFIG_FILE).write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, *, weights: bool = True) -> ConditionMap | None:
        """Reads a map back, or None where there is none; without weights it lies on the meta device."""
        file = directory / CONFIG_FILE
        facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not facts:
            return None
        if not weights:
            with torch.device("meta"):
                return cls(**facts)
        condition_map = cls(**facts)
        condition_map.load_state_dict(load_file(directory / WEIGHTS_FILE))
        return condition_map


def mark_of_states(directory: Path) -> None:
    """Writes that a prior trained here has no map: it is told the states of texts as they are."""
    directory.mkdir(exist_ok=True)
    (directory / CONFIG_FILE).write_text("{}\n", encoding="utf-8")
