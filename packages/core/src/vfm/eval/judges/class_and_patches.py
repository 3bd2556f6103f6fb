"""The image feature by which DIVA's authors score MMVP-VLM: the class token's plus the mean of the patches'.

The official rule has the class token alone. Their code draws 76 patches with replacement, anew for every pass, so that
its scores are random; here all patches are taken, which is what their draws are on average. Source: DIVA
(arXiv:2407.20171), `condition/OpenAICLIP_for_clip_model.py` of the authors' code.
"""

# N items, D joint width

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.config import UserError
from vfm.models import ClipModel
from vfm.models.clip import evaluating
from vfm.models.image_tokens import image_tokens


class ClassAndPatches:
    """Takes a CLIP model's place where choices are scored."""

    def __init__(self, model: ClipModel) -> None:
        self.model, self.module = model, model.module

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        """Unit vectors, float32 (N, D) on the CPU.

        Raises:
            UserError: the model has no patch tokens, or cannot project them into its joint space.
        """
        with evaluating(self.module), torch.inference_mode():
            starts = range(0, len(images), batch_size)
            parts = [self._embed(images[start : start + batch_size]) for start in starts]
        return torch.cat(parts).clone()

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """The model's own."""
        return self.model.encode_texts(texts, batch_size)

    def _embed(self, images: Sequence[Image.Image]) -> Tensor:
        said = image_tokens(self.model, self.model.preprocess.inputs(images, self.model.device))
        if not said.are_projected:
            raise UserError(f"{self.model.name}: its patches have no way into the joint space: diva_scoring is not its")
        return F.normalize((said.embeds + said.patches.mean(dim=1)).float(), dim=-1).cpu()
