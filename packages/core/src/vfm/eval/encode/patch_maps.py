"""Draw the principal components of an encoder's patches, their similarity to the image, and the attention.

Source: the colouring by principal components follows Oquab et al. 2023, DINOv2 (arXiv:2304.07193), figure 1.
"""

# B images, N patches, D width, S side of the image

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from vfm.base import UserError
from vfm.data import BadSample, Source, decode_image
from vfm.eval.encode.finite import check_finite
from vfm.interfaces import ImagesPanel, PanelImage
from vfm.models import (
    ClipModel,
    attention_map,
    attention_weights,
    cls_and_patch_tokens,
    eval_mode,
    patch_features,
    vision_tower,
)

MAP_SIDE = 96  # fewest pixels of one map
MAP_GAP = 8  # pixels between maps
LABEL_TEXT, LABEL_HEIGHT = 13, 20  # pixels, of the names above the maps
NUM_IMAGES = 9  # of the panel
CUT = (0.02, 0.98)  # quantiles that become the ends of the colour scale, so that outliers do not flatten the rest


@dataclass(frozen=True)
class PatchMaps:
    """One preprocessed image and its maps, uint8 (S', S', 3) each."""

    image: NDArray[np.uint8]
    components: NDArray[np.uint8]
    similarity: NDArray[np.uint8]
    attention: NDArray[np.uint8] | None  # None if the layers of the model do not expose attention

    def sheet(self) -> NDArray[np.uint8]:
        """Join the image and all maps side by side, each under its name."""
        parts = {
            "image": self.image,
            "components": self.components,
            "similarity": self.similarity,
            "attention": self.attention,
        }
        return side_by_side(*(labelled(part, name) for name, part in parts.items() if part is not None))


def enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge an image (S, S, 3) by an integer factor to at least `MAP_SIDE` pixels, so that details are visible."""
    factor = -(-MAP_SIDE // len(image))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def labelled(image: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Add a white strip with a name above an image.

    Args:
        image: (S, S, 3).
        name: The name.

    Returns:
        (S + LABEL_HEIGHT, S, 3).
    """
    strip = Image.new("RGB", (image.shape[1], LABEL_HEIGHT), "white")
    font = ImageFont.load_default(size=LABEL_TEXT)
    ImageDraw.Draw(strip).text((image.shape[1] / 2, LABEL_HEIGHT / 2), name, fill="black", font=font, anchor="mm")
    return np.concatenate([np.asarray(strip), image])


def side_by_side(*parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Join images of the same height, (H, S', 3) each, with a white gap between them."""
    gap = np.full((len(parts[0]), MAP_GAP, 3), 255, np.uint8)
    pieces = [parts[0]]
    for part in parts[1:]:
        pieces += [gap, part]
    return np.concatenate(pieces, axis=1)


def component_colours(features: Tensor) -> Tensor:
    """Map the first three principal components of patches to red, green and blue.

    All images share the components, so a colour has the same meaning in all of them. The sign of a component is
    arbitrary, so it is chosen such that the largest weight is positive.

    Args:
        features: (B, N, D).

    Returns:
        Colours from 0 to 1, (B, N, 3). Features with fewer than three directions leave the other channels at 0.5.
    """
    flat = features.flatten(0, 1).double()
    centred = flat - flat.mean(dim=0)
    _, singular_values, axes = torch.linalg.svd(centred, full_matrices=False)
    colours = torch.full((len(flat), 3), 0.5, dtype=torch.float64)
    for channel in range(min(3, len(singular_values))):
        # Directions without variance are noise, and would be stretched to full contrast.
        if singular_values[channel] <= 1e-6 * singular_values[0] or singular_values[0] == 0:
            break
        axis = axes[channel] * axes[channel][axes[channel].abs().argmax()].sign()
        colours[:, channel] = _stretched(centred @ axis)
    return colours.float().view(*features.shape[:2], 3)


def similarity_maps(image_features: Tensor, patch_tokens: Tensor) -> Tensor:
    """Compute the cosine of each patch with the feature of the whole image, stretched to 0..1 per image.

    Unlike attention it exists for any pooling, but a similar patch need not have contributed to the feature.

    Args:
        image_features: (B, D).
        patch_tokens: (B, N, D), in the same space.

    Returns:
        (B, N).
    """
    cosines = F.cosine_similarity(patch_tokens.double(), image_features.double()[:, None], dim=-1)
    return torch.stack(list(map(_stretched, cosines))).float()


@torch.no_grad()
def compute_patch_maps(
    encoder: Any, images: Sequence[Image.Image], names: Sequence[str] = (), model_name: str = "the model"
) -> list[PatchMaps]:
    """Compute the maps of a few images, with the same colours for all.

    Args:
        encoder: A `ClipModel` or `PooledVision`.
        images: RGB, of any size.
        names: Names of the images, for the error. Default: consecutive numbers.
        model_name: Name of the model, for the error.

    Raises:
        UserError: If the encoder has no patch tokens, or a feature is not finite.
    """
    model = encoder if isinstance(encoder, ClipModel) else encoder.module
    tower = vision_tower(model)
    device = next(encoder.module.parameters()).device
    fitted = [torch.from_numpy(encoder.preprocess.fit(image)) for image in images]
    pixels = encoder.preprocess.pixels(torch.stack(fitted).to(device))
    with eval_mode(encoder.module):
        features = patch_features(model, pixels, projected=False).float().cpu()
        whole, patches = _image_and_patches(model, pixels, features, projected=bool(tower.project) and model is encoder)
        attention = _attention(model, pixels, features.shape[1])
    for output in (features, whole, patches, *attention):
        check_finite(output, model_name, names or [f"image {number}" for number in range(len(images))])
    colours = component_colours(features)
    heats = [similarity_maps(whole.float().cpu(), patches.float().cpu()), *attention]
    from matplotlib import colormaps  # an extra, which no other function of `vfm.eval` needs

    magma = colormaps["magma"]
    views = []
    for number, image in enumerate(fitted):
        shown = enlarge(image.numpy())
        maps = [colours[number].numpy()]
        for heat in heats:
            maps.append(magma(heat[number].numpy())[:, :3])
        parts = []
        for values in maps:
            flat = (255 * values).round().astype(np.uint8)
            parts.append(_on_pixels(flat, tower.grid, len(shown)))
        views.append(PatchMaps(shown, parts[0], parts[1], parts[2] if attention else None))
    return views


def pca_sheet(encoder: Any, source: Source, directory: Path, *, num_images: int = NUM_IMAGES) -> ImagesPanel:
    """Write the first usable images of a dataset with their maps into `directory/pictures`, and build their panel."""
    shown = list(_first(source, num_images))
    folder = directory / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    views: list[PatchMaps] = []
    if shown:
        keys, images = zip(*shown, strict=True)
        views = compute_patch_maps(encoder, images, keys)
    for number, view in enumerate(views):
        file = f"pictures/semantic-{number}.png"
        Image.fromarray(view.sheet()).save(directory / file)
        entries.append(PanelImage(file=file, caption=keys[number]))
    note = (
        "Each image as the model gets it; its patches coloured by the first three principal components of their "
        "features, which all images share; the similarity of each patch to the feature of the whole image"
    )
    attends = bool(views) and views[0].attention is not None
    note += (
        "; and the attention of the last block's class token, or else of the patches on average." if attends else "."
    )
    width = (3 + attends) * (MAP_SIDE + MAP_GAP) - MAP_GAP
    return ImagesPanel(title="Maps of the patches", note=note, order=45, pictures=entries, width=width)


def _first(source: Source, num_images: int) -> Iterator[tuple[str, Image.Image]]:
    decoded = (_decoded(source, number) for number in range(len(source)))
    return islice(filter(None, decoded), num_images)


def _decoded(source: Source, number: int) -> tuple[str, Image.Image] | None:
    try:
        sample = source[number]
        return sample.key, decode_image(sample.image, sample.key)
    except BadSample:
        return None


def _image_and_patches(model: Any, pixels: Tensor, features: Tensor, *, projected: bool) -> tuple[Tensor, Tensor]:
    """Compute the features of the image and of its patches in one space.

    If the model has no common space, the mean of the patches replaces the feature of the image.
    """
    try:
        return cls_and_patch_tokens(model, pixels, projected=projected)
    except UserError:
        return features.mean(dim=1), features


def _attention(model: Any, pixels: Tensor, num_patches: int) -> list[Tensor]:
    """Compute the attention in the last block, (B, N), scaled to a maximum of 1 per image; [] if it is not exposed."""
    try:
        attention = attention_map(attention_weights(model, pixels), num_patches).float().cpu()
    except UserError:
        return []
    return [attention / attention.amax(dim=1, keepdim=True).clamp(min=1e-12)]


def _stretched(values: Tensor) -> Tensor:
    low, high = torch.quantile(values, torch.tensor(CUT, dtype=values.dtype))
    # Equal values have no range, and stay black.
    stretched: Tensor = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return stretched


def _on_pixels(flat: NDArray[np.uint8], grid: tuple[int, int], side: int) -> NDArray[np.uint8]:
    """Paint the values of patches, (N, 3), on an image (side, side, 3), with one colour per patch."""
    rows = np.arange(side) * grid[0] // side
    columns = np.arange(side) * grid[1] // side
    shown: NDArray[np.uint8] = flat.reshape(*grid, 3)[rows[:, None], columns]
    return shown
