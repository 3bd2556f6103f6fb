"""What an encoder's patches say, for people: features as colours, how like the whole each is, and where it looks.

Source: the colouring by principal components is that of Oquab et al. 2023, DINOv2 (arXiv:2304.07193), figure 1.
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
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vfm.config import UserError
from vfm.data import BadSample, Source
from vfm.data.images import decode_image
from vfm.models.attention import attention_map, attention_weights
from vfm.models.clip import ClipModel, evaluating
from vfm.models.patch_features import cls_and_patch_tokens, patch_features, vision_tower
from vfm.panels import ImagesPanel, Picture

SIDE = 96  # pixels of one part at least
GAP = 8  # between the parts
NUM_PICTURES = 9
CUT = (0.02, 0.98)  # quantiles that become the ends of a colour


@dataclass(frozen=True)
class View:
    """One image as the model meets it, and its maps, uint8 (S', S', 3) each."""

    image: NDArray[np.uint8]
    components: NDArray[np.uint8]
    similarity: NDArray[np.uint8]
    attention: NDArray[np.uint8] | None  # None: the model's layers show none

    def sheet(self) -> NDArray[np.uint8]:
        """All side by side."""
        parts = (self.image, self.components, self.similarity, self.attention)
        return side_by_side(*(part for part in parts if part is not None))


def magnified(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (S, S, 3) by a whole factor, so that it has `SIDE` pixels at least and small ones can be seen."""
    factor = -(-SIDE // len(picture))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def side_by_side(*parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Parts of one picture, (S', S', 3) each, with a white gap between them."""
    gap = np.full((len(parts[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (gap, part)][1:], axis=1)


def component_colours(features: Tensor) -> Tensor:
    """The first three principal components of patches as red, green and blue.

    All images share their components, so one colour means one thing in all of them. The sign of each is chosen so that
    its largest weight is positive.

    Args:
        features: (B, N, D).

    Returns:
        (B, N, 3), 0 to 1; where there are fewer than three directions the rest is 0.5.
    """
    flat = features.flatten(0, 1).double()
    centred = flat - flat.mean(dim=0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    colours = torch.full((len(flat), 3), 0.5, dtype=torch.float64)
    for channel in range(min(3, len(spread))):
        if spread[channel] <= 1e-6 * spread[0] or spread[0] == 0:
            break
        axis = axes[channel] * axes[channel][axes[channel].abs().argmax()].sign()
        colours[:, channel] = _stretched(centred @ axis)
    return colours.float().view(*features.shape[:2], 3)


def similarity_maps(image_features: Tensor, patch_tokens: Tensor) -> Tensor:
    """How near each patch comes to what the model says of the whole image: their cosine, stretched to 0..1 an image.

    It is no attention: a patch is like the whole, whether or not a layer looked at it. So it is there for any pooling.

    Args:
        image_features: (B, D).
        patch_tokens: (B, N, D), in the same space.

    Returns:
        (B, N).
    """
    cosines = F.cosine_similarity(patch_tokens.double(), image_features.double()[:, None], dim=-1)
    return torch.stack([_stretched(row) for row in cosines]).float()


@torch.no_grad()
def semantic_views(encoder: Any, images: Sequence[Image.Image]) -> list[View]:
    """The maps of a few images, which share their colours.

    Args:
        encoder: a `ClipModel` or `PooledVision`.
        images: RGB, of any size.

    Raises:
        UserError: the encoder has no patch tokens.
    """
    model = encoder if isinstance(encoder, ClipModel) else encoder.module
    tower = vision_tower(model)
    device = next(encoder.module.parameters()).device
    fitted = [torch.from_numpy(encoder.preprocess.fit(image)) for image in images]
    pixels = encoder.preprocess.pixels(torch.stack(fitted).to(device))
    with evaluating(encoder.module):
        features = patch_features(model, pixels, projected=False).float().cpu()
        whole, patches = _whole_and_parts(model, pixels, features, projected=bool(tower.project) and model is encoder)
        looks = _looks(model, pixels, features.shape[1])
    colours = component_colours(features)
    heats = [similarity_maps(whole.float().cpu(), patches.float().cpu()), *looks]
    magma = colormaps["magma"]
    views = []
    for number, picture in enumerate(fitted):
        shown = magnified(picture.numpy())
        maps = [colours[number].numpy(), *(magma(heat[number].numpy())[:, :3] for heat in heats)]
        flat = [(255 * values).round().astype(np.uint8) for values in maps]
        parts = [_on_pixels(values, tower.grid, len(shown)) for values in flat]
        views.append(View(shown, parts[0], parts[1], parts[2] if looks else None))
    return views


def pca_sheet(encoder: Any, source: Source, directory: Path, *, num_pictures: int = NUM_PICTURES) -> ImagesPanel:
    """Writes the first usable pictures of a data set with their maps into `directory/pictures`; returns their panel."""
    shown = list(_first(source, num_pictures))
    folder = directory / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    views = semantic_views(encoder, [image for _, image in shown]) if shown else []
    for number, view in enumerate(views):
        file = f"pictures/semantic-{number}.png"
        Image.fromarray(view.sheet()).save(directory / file)
        pictures.append(Picture(file=file, caption=shown[number][0]))
    note = (
        "Each picture as the model meets it; its patches coloured by the first three principal components of their "
        "features, which all pictures share; how near each patch comes to what the model says of the whole picture"
    )
    attends = bool(views) and views[0].attention is not None
    note += "; and what the last block's class token looks at, or else the patches on average." if attends else "."
    width = (3 + attends) * (SIDE + GAP) - GAP
    return ImagesPanel(title="What the patches say", note=note, order=45, pictures=pictures, width=width)


def _first(source: Source, num_pictures: int) -> Iterator[tuple[str, Image.Image]]:
    found = (decoded for number in range(len(source)) if (decoded := _decoded(source, number)))
    return islice(found, num_pictures)


def _decoded(source: Source, number: int) -> tuple[str, Image.Image] | None:
    try:
        sample = source[number]
        return sample.key, decode_image(sample.image, sample.key)
    except BadSample:
        return None


def _whole_and_parts(model: Any, pixels: Tensor, features: Tensor, *, projected: bool) -> tuple[Tensor, Tensor]:
    """The image's feature and its patches' in one space; of a model whose pooling has another, the patches' mean."""
    try:
        return cls_and_patch_tokens(model, pixels, projected=projected)
    except UserError:
        return features.mean(dim=1), features


def _looks(model: Any, pixels: Tensor, num_patches: int) -> list[Tensor]:
    """The last block's attention, (B, N), each image's largest 1; nothing where the model's layers show none."""
    try:
        attention = attention_map(attention_weights(model, pixels), num_patches).float().cpu()
    except UserError:
        return []
    return [attention / attention.amax(dim=1, keepdim=True).clamp(min=1e-12)]


def _stretched(values: Tensor) -> Tensor:
    low, high = torch.quantile(values, torch.tensor(CUT, dtype=values.dtype))
    stretched: Tensor = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return stretched


def _on_pixels(flat: NDArray[np.uint8], grid: tuple[int, int], side: int) -> NDArray[np.uint8]:
    """Values of patches, (N, 3), as an image (side, side, 3), each patch in one colour."""
    rows, columns = (np.arange(side) * count // side for count in grid)
    shown: NDArray[np.uint8] = flat.reshape(*grid, 3)[rows[:, None], columns]
    return shown
