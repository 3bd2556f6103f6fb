"""Features of the patches of all images of a dataset, in files, with the label maps."""

# N images, D width, h and w rows and columns of patches

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vfm.data.annotated import AnnotatedSource
from vfm.eval.dense.annotated_images import each_result
from vfm.eval.dense.stages import DenseProbe
from vfm.eval.encode.finite import check_finite
from vfm.eval.encode.hashes import ITEM_BYTES, item_digest
from vfm.eval.encode.row_files import RowFile, row_files
from vfm.interfaces import AnnotatedImages, Context
from vfm.models import ClipModel, eval_mode, vision_features
from vfm.train.parallel.sharing import without_values

LABELS_IN_MEMORY = 500  # label maps, some 100 MB


@dataclass(frozen=True)
class DenseImages:
    """The usable images of a dataset, and a file of their features for each model."""

    source: AnnotatedSource
    numbers: list[int]  # in the dataset
    digests: list[bytes]
    image_digests: list[bytes]
    files: dict[str, RowFile]  # by model
    labels: LabelReader

    @property
    def keys(self) -> list[str]:
        """Keys of the images."""
        return self.source.keys_of(self.numbers)

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """Features by model, fp16 (N, D, h, w)."""
        return {name: file.rows() for name, file in self.files.items()}


class LabelReader(Sequence[NDArray[np.integer]]):
    """The semantic maps of some images, (H, W) each, read on demand. The latest ones are cached in memory."""

    def __init__(self, source: AnnotatedSource, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self._read = lru_cache(LABELS_IN_MEMORY)(source.semantic)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: Any) -> Any:
        return self._read(self.numbers[row])


def read_dense(
    config: DenseProbe,
    ctx: Context,
    encoders: Mapping[str, Any],
    data: AnnotatedImages,
    part: str,
    device: torch.device,
    opened: ExitStack,
) -> DenseImages:
    """Read all images once, and write the features of each model to a file that `opened` removes."""
    source = AnnotatedSource(data)
    numbers: list[int] = []
    digests: list[bytes] = []
    image_digests: list[bytes] = []
    files = opened.enter_context(row_files(ctx.work / f"maps-{part}", encoders))

    def read(number: int) -> tuple[Image.Image, bytes]:
        image = source.image(number)
        pixels = image.tobytes()
        of_item = item_digest(source.keys[number], [pixels, source.semantic(number).tobytes()])
        return image, of_item + hashlib.sha256(pixels).digest()

    def encode(batch: list[tuple[int, tuple[Image.Image, bytes]]]) -> list[_EncodedImage]:
        images = []
        keys = []
        for number, (image, _) in batch:
            images.append(image)
            keys.append(source.keys[number])
        maps = {}
        for name, encoder in encoders.items():
            maps[name] = encode_maps(encoder, images, config.layers, config.image_size, device).half().cpu()
            check_finite(maps[name], f"{name}: features in half precision", keys)
        encoded_images = []
        for row, (_, (_, digest)) in enumerate(batch):
            # Clones, so that the maps of the whole batch can be freed.
            maps_of_image = {name: rows[row : row + 1].clone() for name, rows in maps.items()}
            encoded_images.append(_EncodedImage(digest, maps_of_image))
        return encoded_images

    encoded = each_result(
        source, config.reading, ctx, read, encode, batch_size=config.micro_batch_size,
        for_others=_EncodedImage.without_values, at_once=1,
    )  # fmt: skip
    for number, image in encoded:
        numbers.append(number)
        digests.append(image.digest[:ITEM_BYTES])
        image_digests.append(image.digest[ITEM_BYTES:])
        for name, row in image.maps.items():
            files[name].append(row)
    return DenseImages(source, numbers, digests, image_digests, files, LabelReader(source, numbers))


@dataclass(frozen=True)
class _EncodedImage:
    """The hash of an item and of its image, and its features by model, fp16 (1, D, h, w)."""

    digest: bytes
    maps: dict[str, Tensor]

    def without_values(self) -> _EncodedImage:
        """Drop the values for processes that do not write features."""
        return replace(self, maps={name: without_values(row) for name, row in self.maps.items()})


@torch.inference_mode()
def encode_maps(
    encoder: Any, images: list[Image.Image], layers: list[int], image_size: int | None, device: torch.device
) -> Tensor:
    """Compute the normalised patch tokens of some blocks as maps, concatenated along D.

    Args:
        encoder: A `ClipModel` or `PooledVision`.
        images: Images of any size. They are squashed.
        layers: Indices of the blocks.
        image_size: Side of the square in pixels. Default: the encoder's image size.
        device: Device of the encoder.

    Returns:
        (N, D, h, w).

    Raises:
        UserError: If the encoder has no patch tokens, no such block, or cannot take images of this size.
    """
    side = image_size or encoder.preprocess.image_size
    settings = {"image_size": side, "resize_mode": "squash", "crop_pct": 1.0}
    pixels = encoder.preprocess.model_copy(update=settings).inputs(images, device)
    model = encoder if isinstance(encoder, ClipModel) else encoder.module
    with eval_mode(encoder.module):
        return torch.cat([tokens.maps for tokens in vision_features(model, pixels, layers=layers)], dim=1)
