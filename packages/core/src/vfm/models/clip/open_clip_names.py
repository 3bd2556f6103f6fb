"""Find the architecture of open_clip that a state dict fits, by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip
from torch import Tensor

from vfm.models.clip.clip import blueprint
from vfm.models.clip.clip_config import get_clip_config
from vfm.models.weights import shapes_of

VOCABULARY, WIDTH = 49408, 512  # open_clip's defaults of a text tower


def open_clip_architecture(tensors: Mapping[str, Tensor]) -> str | None:
    """Find the shortest name of open_clip with these tensors.

    Sizes in the configuration are compared first, since building a model takes a second.

    Returns:
        The name, or None if open_clip has no such model.
    """
    shapes = shapes_of(tensors)
    fitting: list[str] = [name for name in open_clip.list_models() if _sizes_fit(get_clip_config(name), shapes)]
    # The shortest, as longer names add a variant of training (quickgelu, worldwide) to an architecture.
    for name in sorted(fitting, key=lambda name: (len(name), name)):
        if shapes_of(blueprint(name).module.state_dict()) == shapes:
            return name
    return None


def _sizes_fit(config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> bool:
    vision = config["vision_cfg"]
    text = config["text_cfg"]
    patches = shapes.get("visual.conv1.weight")
    if patches and (vision.get("width"), vision.get("patch_size")) != (patches[0], patches[-1]):
        return False
    embedding = next((shape for key, shape in shapes.items() if key.endswith("token_embedding.weight")), None)
    sizes = [text.get("vocab_size", VOCABULARY), text.get("width", WIDTH)]
    return sizes == embedding and bool(patches) != ("timm_model_name" in vision)
