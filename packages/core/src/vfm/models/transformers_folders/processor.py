"""Convert the settings of Hugging Face's image processors to a `Preprocess`, and back.

A setting that `Preprocess` cannot express is refused by name, since features would change silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfm.base import UserError, drop_none
from vfm.models.preprocess import Preprocess
from vfm.storage.store_files import naming, read_record

PROCESSOR_FILE = "preprocessor_config.json"
NESTED_FILE = "processor_config.json"  # of transformers 5, with the image processor under a key
PROCESSOR_FILES = (NESTED_FILE, PROCESSOR_FILE)
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers

_HALF = [0.5, 0.5, 0.5]
_OPENAI = Preprocess(image_size=1)
_BYTE = 1 / 255  # factor of `Preprocess.pixels`
_IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# Values that a processor has for the keys that its file leaves out, by the beginning of its class's name. Without
# `do_center_crop` it has no crop.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": {"image_mean": list(_OPENAI.mean), "image_std": list(_OPENAI.std), "resample": 3, "do_center_crop": True},
    "Siglip2": {"image_mean": _HALF, "image_std": _HALF, "resample": 2},
    "Siglip": {"image_mean": _HALF, "image_std": _HALF, "resample": 3},
    "ViT": {"image_mean": _HALF, "image_std": _HALF, "resample": 2},
    "DINOv3ViT": {**_IMAGENET, "resample": 2},
    "Bit": {"image_mean": list(_OPENAI.mean), "image_std": list(_OPENAI.std), "resample": 3, "do_center_crop": True},
    "DINOv2": {**_IMAGENET, "resample": 3, "do_center_crop": True},  # a folder without a processor's file
}
# By the type of the model.
_CLASSES = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2", "vit": "ViT", "dinov3_vit": "DINOv3ViT"}
_CLASSES |= {"clip_vision_model": "CLIP", "siglip_vision_model": "Siglip"}
_CLASSES |= {"dinov2": "DINOv2", "dinov2_with_registers": "DINOv2"}
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # models that take images of any size


def processor_config(preprocess: Preprocess) -> dict[str, Any]:
    """Build `preprocessor_config.json` for CLIPImageProcessor."""
    side = preprocess.image_size
    squash = preprocess.resize_mode == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side} if squash else {"shortest_edge": side},
        "resample": RESAMPLE[preprocess.interpolation],
        "do_center_crop": not squash,
        "crop_size": {"height": side, "width": side},
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def folder_preprocess(folder: Path, model_type: str, image_size: int) -> Preprocess:
    """Read the preprocessing of a folder's model. Without a processor file, use the defaults of the model type.

    Args:
        folder: The folder, in Hugging Face's layout.
        model_type: Type of the model, such as `clip`, `siglip` or `dinov2`.
        image_size: Side of the model's input.

    Raises:
        UserError: If a file is damaged, or a setting cannot be honoured.
    """
    file, settings = find_processor(folder)
    with naming(file, "the settings of an image processor"):
        return read_processor(settings, image_size, model_type)


def encoder_preprocess(folder: Path, model_type: str, image_size: int) -> Preprocess:
    """Read the preprocessing of a folder's encoder.

    timm saves it, so a crop may be smaller than the resized image. The processor of an encoder for images of any size,
    such as DINOv2, may make images of another size. The result resizes as the processor does, to the encoder's size.

    Args:
        folder: The folder, in Hugging Face's layout.
        model_type: Type of the model.
        image_size: Side of the encoder's input.

    Raises:
        UserError: If a file is damaged, or a setting cannot be honoured.
    """
    file, settings = find_processor(folder)
    with naming(file, "the settings of an image processor"):
        side = processor_side(settings) if model_type in _ANY_SIZE else None
        preprocess = read_processor(settings, side or image_size, model_type, may_crop=True)
    return preprocess.model_copy(update={"image_size": image_size})


def find_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find the file of a folder's image processor and its settings.

    A folder without a processor has empty settings.

    Raises:
        UserError: If the file is damaged.
    """
    for name in PROCESSOR_FILES:
        record = read_record(folder / name) if (folder / name).is_file() else {}
        settings = record.get("image_processor") if name == NESTED_FILE else record
        if settings:
            return folder / name, settings
    return folder / PROCESSOR_FILE, {}


def processor_side(settings: Mapping[str, Any]) -> int | None:
    """Find the side of the square images that a processor makes, if its settings have it."""
    key = "crop_size" if settings.get("do_center_crop") and settings.get("crop_size") else "size"
    size = settings.get(key)
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    return size if isinstance(size, int) else None


def read_processor(
    settings: Mapping[str, Any], image_size: int, model_type: str = "clip", *, may_crop: bool = False
) -> Preprocess:
    """Convert the settings of an image processor.

    Args:
        settings: Content of its file.
        image_size: Side of the model's input.
        model_type: Type of the model. It names the class if the file does not.
        may_crop: Accept a crop that is smaller than the resized image.

    Raises:
        UserError: If a setting cannot be honoured.
    """
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or _CLASSES[model_type]
    defaults = next((value for start, value in _DEFAULTS.items() if str(name).startswith(start)), {})
    facts = {**defaults, **drop_none(settings)}
    for key in ("image_mean", "image_std", "resample"):
        if key not in facts:
            raise UserError(f"{key}: expected a value, since the defaults of {name} are not known")
    interpolations = dict(zip(RESAMPLE.values(), RESAMPLE, strict=True))
    if facts["resample"] not in interpolations:
        raise UserError(f"resample: expected 2 (bilinear) or 3 (bicubic), got {facts['resample']}")
    mean, std = _normalisation(facts)
    crop_pct = _crop_pct(facts, image_size) if may_crop else 1.0
    cfg = {
        "mean": mean,
        "std": std,
        "interpolation": interpolations[facts["resample"]],
        "resize_mode": "shortest" if crop_pct < 1 else _resize_mode(facts, image_size),
    }
    return Preprocess.from_open_clip(cfg, image_size).model_copy(update={"crop_pct": crop_pct})


def _crop_pct(facts: Mapping[str, Any], image_size: int) -> float:
    """Find the share of a larger shortest edge that the central crop keeps; 1.0 for all other settings."""
    size, crop = facts.get("size"), facts.get("crop_size", image_size)
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    is_cropped = facts.get("do_center_crop") and crop in (image_size, {"height": image_size, "width": image_size})
    if not (is_cropped and facts.get("do_resize", True) and edge and edge > image_size):
        return 1.0
    share: float = image_size / edge
    return share if int(image_size / share) == edge else image_size / (edge + 0.5)


def _normalisation(facts: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Find mean and deviation for pixels in [0, 1], with the factor of another range in both."""
    factor = facts.get("rescale_factor", _BYTE) if facts.get("do_rescale", True) else 1.0
    normalize = facts.get("do_normalize", True)
    mean = _channels(facts["image_mean"]) if normalize else (0.0, 0.0, 0.0)
    std = _channels(facts["image_std"]) if normalize else (1.0, 1.0, 1.0)
    scale = 1.0 if abs(factor - _BYTE) < 1e-9 else _BYTE / factor
    return tuple(value * scale for value in mean), tuple(value * scale for value in std)


def _channels(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(values)


def _resize_mode(facts: Mapping[str, Any], image_size: int) -> str:
    """Choose how images become squares of the model's size.

    Raises:
        UserError: If images get another size, or are not resized, cropped and padded as in `Preprocess`.
    """
    if not facts.get("do_resize", True):
        raise UserError("do_resize: expected true, got false; images of any other size would not fit the model")
    for key in ("do_pad", "crop_pct"):
        if facts.get(key):
            raise UserError(f"{key}: not supported, got {facts[key]}")
    size, crops = facts.get("size", image_size), facts.get("do_center_crop", False)
    side = {"height": image_size, "width": image_size}
    crop = facts.get("crop_size", image_size)
    if crops and crop not in (image_size, side):
        raise UserError(f"crop_size: expected the model's size, {image_size}, got {crop}")
    if size == side or (size == image_size and not crops):
        return "squash"
    if crops and size in (image_size, {"shortest_edge": image_size}):
        return "shortest"
    expected = "{shortest_edge: %d}, or this height and width" if crops else "this height and width: %d"
    raise UserError(f"size: expected {expected % image_size}, got {size}")
