"""Comparison of an imported CLIP model with open_clip's own loader, preprocessing and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
from torch.nn import functional as F

from vfm.models.clip.clip import ClipModel
from vfm.models.oracle.inputs import TEXTS, noise, pixel_differences, relative, share_of_different_ids


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
