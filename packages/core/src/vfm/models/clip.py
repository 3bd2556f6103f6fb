"""CLIP models: open_clip builds them, and a ClipCheckpoint is a folder that open_clip itself loads by `local-dir:`."""

# N items, B batch, S side of the image, L context length, D joint width

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from vfm.artifacts import ClipCheckpoint
from vfm.models.clip_config import CONFIG_FILE, WEIGHTS_FILE, check_keys, clip_config, read_config, weights_file
from vfm.models.clip_module import build_module, load_weights, plain_config, set_image_size
from vfm.models.preprocess import Preprocess
from vfm.models.short_texts import encode_short
from vfm.models.tokens import build_tokenizer
from vfm.models.weights import save_state_dict

Item = TypeVar("Item")


@dataclass
class ClipModel:
    """An open_clip model with what is needed to use it: its configuration, its way with images, its tokenizer."""

    module: nn.Module
    config: dict[str, Any]  # open_clip's `model_cfg`
    preprocess: Preprocess
    name: str = "custom"
    folder: Path | None = None  # where it was loaded from: a Hugging Face tokenizer may lie there

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
        """Where the weights are."""
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> ClipModel:
        """Moves the weights, and returns itself."""
        self.module.to(device)
        return self

    @cached_property
    def tokenizer(self) -> Callable[..., Tensor]:
        """open_clip's tokenizer of this model, or what makes the same faster."""
        return build_tokenizer(self.config["text_cfg"], self.context_length, self.name, self.folder)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids, (N, L); a longer text is cut, its end token kept."""
        return self.tokenizer(list(texts))

    def pixels(self, batch: NDArray[np.uint8] | Tensor) -> Tensor:
        """Normalised input from uint8 (B, 3, S, S) or (B, S, S, 3), on the batch's device."""
        return self.preprocess.pixels(batch)

    def encode_images(self, images: Sequence[Image.Image | NDArray[np.uint8]], batch_size: int = 256) -> Tensor:
        """Image embeddings of unit length, float32 (N, D) on the CPU.

        Args:
            images: PIL images or uint8 (H, W, 3) arrays of any size.
        """
        encode: Callable[..., Tensor] = self.module.encode_image  # type: ignore[assignment]

        def embed(chunk: Sequence[Image.Image | NDArray[np.uint8]]) -> Tensor:
            return encode(self.preprocess.inputs(chunk, self.device))

        return self._encode(images, batch_size, embed)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Text embeddings of unit length, float32 (N, D) on the CPU."""

        def embed(chunk: Sequence[str]) -> Tensor:
            return encode_short(self.module, self.tokenize(chunk), self.device)

        return self._encode(texts, batch_size, embed)

    def _encode(self, items: Sequence[Item], batch_size: int, embed: Callable[[Sequence[Item]], Tensor]) -> Tensor:
        # Written in place, since to put parts together would take twice the memory; and not made in inference mode, so
        # that the result may take part in a later backward pass.
        embeddings = torch.empty(len(items), self.embed_dim)
        with evaluating(self.module), torch.inference_mode():
            for start in range(0, len(items), batch_size):
                some = slice(start, start + batch_size)
                embeddings[some] = F.normalize(embed(items[some]).float(), dim=-1)
        return embeddings


def build_clip(
    model: str | Mapping[str, Any],
    *,
    image_size: int | None = None,
    context_length: int | None = None,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    noise: Mapping[str, float] | None = None,
    **overrides: Any,
) -> ClipModel:
    """A CLIP model with random weights.

    Args:
        model: an open_clip name (`vfm.models.presets` adds small ones); `hf-hub:` or `local-dir:` (the configuration of
            that model, not its weights); or a custom model as a mapping in open_clip's form (`embed_dim`, `vision_cfg`,
            `text_cfg`, ...), where `vision_cfg` may name any timm encoder as `timm_model_name`.
        image_size: side of the input in pixels; default: the configuration's.
        context_length: tokens of a text; default: the configuration's.
        seed: draws the initial weights from this seed and leaves torch's generator as it was.
        noise: keys of `vision_cfg` for a training alone (`patch_dropout`, `timm_drop_path`): the module has them,
            the configuration, which is saved, has not.
        overrides: other keys of the configuration (`init_logit_scale`, `init_logit_bias`, `quick_gelu`, ...).

    Raises:
        UserError: the name or a key of the configuration is not known, or the image size does not fit the patches.
    """
    name = model if isinstance(model, str) else "custom"
    config = deepcopy({**(clip_config(model) if isinstance(model, str) else model), **overrides})
    check_keys(config, name)
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
    if context_length is not None:
        config["text_cfg"]["context_length"] = context_length
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        module = build_module({**config, "vision_cfg": {**config["vision_cfg"], **(noise or {})}}, name)
    preprocess = Preprocess.from_open_clip({}, config["vision_cfg"].get("image_size", 224))
    return ClipModel(module.to(device), config, preprocess, name)


def blueprint(
    model: str | Mapping[str, Any] | ClipCheckpoint,
    image_size: int | None = None,
    noise: Mapping[str, float] | None = None,
) -> ClipModel:
    """A CLIP model on the meta device: shapes without weights, so a model of any size costs neither memory nor time.

    Args:
        model: as `build_clip`; or a checkpoint, of which the configuration alone is read.
    """
    config = read_config(model.path)["model_cfg"] if isinstance(model, ClipCheckpoint) else model
    with torch.device("meta"):
        made = build_clip(config, image_size=image_size, noise=noise, device="meta")
    if isinstance(model, ClipCheckpoint):
        made.name, made.folder = model.model, model.path
    return made


def load_clip(
    checkpoint: ClipCheckpoint | str | Path,
    device: str | torch.device = "cpu",
    *,
    image_size: int | None = None,
    noise: Mapping[str, float] | None = None,
) -> ClipModel:
    """The model of a checkpoint folder, in evaluation mode.

    Args:
        checkpoint: the artifact, or any folder in open_clip's layout.
        image_size: side of the input in pixels; at another than the checkpoint's its learned positions are resampled as
            open_clip does, or timm where the vision tower is timm's, and rotary ones follow the grid.
        noise: as `build_clip`.

    Raises:
        UserError: the folder is not in open_clip's layout, or its weights do not fit its configuration or the size.
    """
    folder = checkpoint.path if isinstance(checkpoint, ClipCheckpoint) else Path(checkpoint)
    record = read_config(folder)
    of_timm = bool(record["model_cfg"]["vision_cfg"].get("timm_model_name"))  # resampled when its weights are there
    model = build_clip(record["model_cfg"], image_size=None if of_timm else image_size, noise=noise)
    model.name = checkpoint.model if isinstance(checkpoint, ClipCheckpoint) else folder.name
    model.folder = folder
    load_weights(model.module, weights_file(folder), model.name)
    vision = model.config["vision_cfg"]
    if of_timm and image_size:
        vision["image_size"] = image_size
        set_image_size(model.module, vision, model.name)
    model.preprocess = Preprocess.from_open_clip(record.get("preprocess_cfg", {}), vision.get("image_size", 224))
    model.module.eval()
    return model.to(device)


def save_clip(model: ClipModel, directory: Path) -> ClipCheckpoint:
    """Writes a model in open_clip's layout (`open_clip_config.json`, `open_clip_model.safetensors`).

    What is written, `load_clip` reads; open_clip by itself too, but for what `why_not_open_clip` says.
    """
    directory.mkdir(parents=True, exist_ok=True)
    facts = model.preprocess.model_dump(include={"mean", "std", "interpolation", "resize_mode"})
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


def why_not_open_clip(model: ClipModel) -> str:
    """What keeps open_clip by itself from loading what `save_clip` writes, as a line for the user; mostly nothing."""
    if plain_config(model.module, model.config, model.name):
        return ""
    encoder, size = model.config["vision_cfg"]["timm_model_name"], model.preprocess.image_size
    return (
        f"{model.name}: vfm loads this checkpoint, open_clip by itself does not: it builds {encoder} at the size of its"
        f" name only, and timm has no equal one of {size} pixels"
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the former mode of every part after."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
