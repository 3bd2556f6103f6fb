"""Export of an encoder to Hugging Face's transformers, whose `TimmWrapper` classes read timm's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from vfm.models.small_models import ENCODERS
from vfm.models.vision.vision import VISION_CONFIG_FILE, save_vision


def timm_wrapper_mismatch(model: nn.Module) -> str:
    """Return why transformers cannot read an encoder; empty if it can."""
    config: Any = model.pretrained_cfg
    name = str(config.get("architecture"))
    return f"its architecture {name} is vfm's own, and transformers knows timm's only" if name in ENCODERS else ""


def save_timm_wrapper(model: nn.Module, directory: Path) -> None:
    """Save an encoder for `AutoModel` and, with a head, `AutoModelForImageClassification`; timm reads it too."""
    save_vision(model, directory)
    file = directory / VISION_CONFIG_FILE
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model_args"].pop("num_classes", None)  # transformers sets it itself, by the class of the model
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
