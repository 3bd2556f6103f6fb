"""Build CLIP models by open_clip, and save them as a ClipCheckpoint. open_clip loads the folder by `local-dir:`."""

# N items, B batch, S side of the image, L context length, D joint width

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.interfaces import ClipCheckpoint
from vfm.models.clip.clip_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_keys,
    clip_weights_file,
    get_clip_config,
    read_clip_config,
)
from vfm.models.clip.clip_module import build_module, load_weights, plain_config, set_image_size
from vfm.models.clip.text import build_tokenizer, check_tokenizer, encode_unpadded
from vfm.models.encoders import EncoderPrecision, autocast_encoder, eval_mode
from vfm.models.preprocess import Preprocess
from vfm.models.weights import save_state_dict
from vfm.storage.store_files import naming

Item = TypeVar("Item")


@dataclass
class ClipModel:
    """An open_clip model with its configuration, preprocessing and tokenizer."""

    module: nn.Module
    config: dict[str, Any]  # open_clip's `model_cfg`
    preprocess: Preprocess
    name: str = "custom"
    folder: Path | None = None  # folder it was loaded from, which may hold a Hugging Face tokenizer
    precision: EncoderPrecision = "fp32"  # precision of encode_images and encode_texts

    @property
    def embed_dim(self) -> int:
        """Width of the joint space."""
        return int(self.config["embed_dim"])

    @property
    def context_length(self) -> int:
        """Tokens of a text."""
        return int(self.config["text_cfg"].get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> ClipModel:
        """Move the weights in place and return the model."""
        self.module.to(device)
        return self

    @cached_property
    def tokenizer(self) -> Callable[..., Tensor]:
        """open_clip's tokenizer of this model, or the faster `WordTokenizer` with the same result.

        Raises:
            UserError: If the tokenizer cannot be loaded, or its tokens do not fit the text tower.
        """
        tokenizer = build_tokenizer(self.config["text_cfg"], self.context_length, self.name, self.folder)
        check_tokenizer(tokenizer, self.module, self.name)
        return tokenizer

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Convert texts to token ids, (N, L). Longer texts are cut before the end token."""
        return self.tokenizer(list(texts))

    def pixels(self, batch: NDArray[np.uint8] | Tensor) -> Tensor:
        """Normalise the pixels of uint8 images, (B, 3, S, S) or (B, S, S, 3), on their device."""
        return self.preprocess.pixels(batch)

    def encode_images(self, images: Sequence[Image.Image | NDArray[np.uint8]], batch_size: int = 256) -> Tensor:
        """Encode images as embeddings of unit length, float32 (N, D) on the CPU.

        Args:
            images: PIL images or uint8 (H, W, 3) arrays of any size.
            batch_size: Images encoded at a time.
        """
        encode: Callable[..., Tensor] = self.module.encode_image  # type: ignore[assignment]

        def embed(chunk: Sequence[Image.Image | NDArray[np.uint8]]) -> Tensor:
            return encode(self.preprocess.inputs(chunk, self.device))

        return self._encode(images, batch_size, embed)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts as embeddings of unit length, float32 (N, D) on the CPU."""

        def embed(chunk: Sequence[str]) -> Tensor:
            return encode_unpadded(self.module, self.tokenize(chunk), self.device)

        return self._encode(texts, batch_size, embed)

    def _encode(self, items: Sequence[Item], batch_size: int, embed: Callable[[Sequence[Item]], Tensor]) -> Tensor:
        # Filled in place, since concatenating chunks would take twice the memory. Allocated outside inference mode, so
        # that the result can be used in a later backward pass.
        embeddings = torch.empty(len(items), self.embed_dim)
        with eval_mode(self.module), torch.inference_mode(), autocast_encoder(self.precision, self.device):
            for start in range(0, len(items), batch_size):
                chunk = slice(start, start + batch_size)
                embeddings[chunk] = F.normalize(embed(items[chunk]).float(), dim=-1)
        return embeddings


def build_clip(
    model: str | Mapping[str, Any],
    *,
    image_size: int | None = None,
    context_length: int | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    noise: Mapping[str, float] | None = None,
    **overrides: Any,
) -> ClipModel:
    """Build a CLIP model with random weights.

    Args:
        model: An open_clip name (`vfm.models.small_models` adds small ones), or a model as `hf-hub:` or `local-dir:`
            that provides the configuration but no weights. A mapping in open_clip's form (`embed_dim`, `vision_cfg`,
            `text_cfg`, ...) builds a custom model. Its `vision_cfg` may name any timm encoder as `timm_model_name`.
        image_size: Side of the input in pixels. Default: the configuration's.
        context_length: Tokens of a text. Default: the configuration's.
        seed: Seed of the initial weights. torch's global generator is left unchanged.
        device: Device of the weights. They are drawn on the CPU, and stay there by default.
        noise: Keys of `vision_cfg` that regularise training only (`patch_dropout`, `timm_drop_path`). The module is
            built with them, but the saved configuration does not contain them.
        overrides: Further keys of the configuration (`init_logit_scale`, `init_logit_bias`, `quick_gelu`, ...).

    Raises:
        UserError: If the name or a key of the configuration is unknown, or the image size does not fit the patches.
    """
    if isinstance(model, str):
        name = model
        base = get_clip_config(model)
    else:
        name = "custom"
        base = dict(model)
    config = deepcopy({**base, **overrides})
    check_keys(config, name)
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
    if context_length is not None:
        config["text_cfg"]["context_length"] = context_length
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        vision = {**config["vision_cfg"], **(noise or {})}
        module = build_module({**config, "vision_cfg": vision}, name)
    preprocess = Preprocess.from_open_clip({}, config["vision_cfg"].get("image_size", 224))
    clip = ClipModel(module, config, preprocess, name)
    if device is None:
        return clip
    return clip.to(device)


def blueprint(
    model: str | Mapping[str, Any] | ClipCheckpoint,
    image_size: int | None = None,
    noise: Mapping[str, float] | None = None,
) -> ClipModel:
    """Build a CLIP model on the meta device, without weights, so that any size takes no memory and little time.

    Args:
        model: As in `build_clip`, or a checkpoint, of which only the configuration is read.
        image_size: As in `build_clip`.
        noise: As in `build_clip`.
    """
    if isinstance(model, ClipCheckpoint):
        config = read_clip_config(model.path)["model_cfg"]
    else:
        config = model
    with torch.device("meta"):
        clip = build_clip(config, image_size=image_size, noise=noise)
    if isinstance(model, ClipCheckpoint):
        clip.name = model.model
        clip.folder = model.path
    return clip


def load_clip(
    checkpoint: ClipCheckpoint | str | Path,
    device: str | torch.device | None = None,
    *,
    image_size: int | None = None,
    noise: Mapping[str, float] | None = None,
) -> ClipModel:
    """Load the model of a checkpoint folder, in evaluation mode.

    Args:
        checkpoint: The artifact, or any folder in open_clip's layout.
        device: Device of the weights. Default: the CPU.
        image_size: Side of the input in pixels. If it differs from the checkpoint's, learned position embeddings are
            resampled by open_clip (by timm in a timm tower), and rotary positions are computed for the new grid.
        noise: As in `build_clip`.

    Raises:
        UserError: If the folder is not in open_clip's layout, or its weights do not fit its configuration or the size.
    """
    if isinstance(checkpoint, ClipCheckpoint):
        folder = checkpoint.path
        name = checkpoint.model
    else:
        folder = Path(checkpoint)
        name = folder.name
    record = read_clip_config(folder)
    # open_clip's loader resamples positions of its own tower; a timm tower is resized after its weights are loaded.
    with naming(folder / CONFIG_FILE, "the configuration of a CLIP model"):
        has_timm_tower = bool(record["model_cfg"]["vision_cfg"].get("timm_model_name"))
        initial_size = None if has_timm_tower else image_size
        model = build_clip(record["model_cfg"], image_size=initial_size, noise=noise)
    model.name = name
    model.folder = folder
    load_weights(model.module, clip_weights_file(folder), model.name)
    vision = model.config["vision_cfg"]
    if has_timm_tower and image_size:
        vision["image_size"] = image_size
        set_image_size(model.module, vision, model.name)
    with naming(folder / CONFIG_FILE, "the configuration of a CLIP model"):
        model.preprocess = Preprocess.from_open_clip(record.get("preprocess_cfg", {}), vision.get("image_size", 224))
    model.module.eval()
    if device is None:
        return model
    return model.to(device)


def save_clip(model: ClipModel, directory: Path) -> ClipCheckpoint:
    """Save a model in open_clip's layout.

    `load_clip` reads the folder. So does open_clip itself, except in the case of `open_clip_incompatibility`.

    Args:
        model: The model.
        directory: Folder for `open_clip_config.json` and `open_clip_model.safetensors`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    facts = model.preprocess.model_dump(include={"mean", "std", "interpolation", "resize_mode"})
    # In a form that open_clip itself can load, if there is one.
    plain = plain_config(model.module, model.config, model.name)
    record = {"model_cfg": plain or model.config, "preprocess_cfg": facts}
    (directory / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    save_state_dict(model.module.state_dict(), directory / WEIGHTS_FILE)
    if model.config["text_cfg"].get("hf_tokenizer_name"):
        model.tokenizer.save_pretrained(directory)  # type: ignore[attr-defined]
    return ClipCheckpoint.create(
        directory,
        model=model.name,
        image_size=model.preprocess.image_size,
        embed_dim=model.embed_dim,
        context_length=model.context_length,
    )


def open_clip_incompatibility(model: ClipModel) -> str:
    """Explain in one line why open_clip itself cannot load the result of `save_clip`; empty in nearly all cases."""
    vision = model.config["vision_cfg"]
    encoder = vision.get("timm_model_name")
    size = model.preprocess.image_size
    if encoder and vision.get("act_kwargs"):
        return f"{model.name}: open_clip itself builds {encoder} with another GELU, so its features differ slightly"
    if plain_config(model.module, model.config, model.name):
        return ""
    return (
        f"{model.name}: vfm can load this checkpoint, open_clip itself cannot: it builds {encoder} only at the size in"
        f" its name, and timm has no equal encoder for {size} pixels"
    )
