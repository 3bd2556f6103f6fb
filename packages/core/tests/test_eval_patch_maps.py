"""Maps of patches: colours compared with scikit-learn's PCA, positions, and the sheet of a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from eval_world import labeled, tiny_clip
from vfm.base import UserError
from vfm.data import open_dataset
from vfm.eval import load_encoder
from vfm.eval.encode.patch_maps import component_colours, compute_patch_maps, pca_sheet, similarity_maps
from vfm.models import PooledVision, build_vision, vision_preprocess

CPU = torch.device("cpu")


def test_colours_are_the_ranks_of_scikit_learns_components() -> None:
    features = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    found = component_colours(features).view(-1, 3).double().numpy()
    peer = PCA(3).fit_transform(features.view(-1, 8).double().numpy())
    for channel in range(3):
        inside = (found[:, channel] > 0) & (found[:, channel] < 1)
        correlation = np.corrcoef(found[inside, channel], peer[inside, channel])[0, 1]
        assert abs(correlation) == pytest.approx(1)
    assert found.min() == 0
    assert found.max() == 1


def test_colours_do_not_depend_on_a_sign_and_few_directions_leave_grey() -> None:
    features = torch.randn(2, 9, 1) @ torch.randn(1, 6)
    colours = component_colours(features)
    assert torch.all(colours[..., 1:] == 0.5)
    assert torch.all(component_colours(torch.ones(2, 9, 6)) == 0.5)
    assert torch.allclose(component_colours(features + 5), colours, atol=1e-5)


def test_similarity_is_highest_where_patch_and_image_features_agree() -> None:
    patches = torch.randn(2, 16, 8)
    whole = torch.stack([patches[0, 3], patches[1, 7]])
    assert similarity_maps(whole, patches).argmax(dim=1).tolist() == [3, 7]


def test_maps_match_the_positions_of_their_patches(tmp_path: Path) -> None:
    """The right half of the image differs, and so does that of its maps."""
    encoder = load_encoder(tiny_clip(tmp_path, 0), CPU)
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    (view,) = compute_patch_maps(encoder, [Image.fromarray(pixels)])
    assert view.image.shape == view.components.shape == view.similarity.shape == (96, 96, 3)
    assert view.attention is not None
    sheet = view.sheet()
    assert sheet.shape == (20 + 96, 4 * 96 + 24, 3)
    assert np.array_equal(sheet[20:, :96], view.image)
    strips = [sheet[:20, place * 104 : place * 104 + 96] for place in range(4)]
    for strip in strips:  # its name is written in it, and does not reach the edge
        assert strip.min() < 100
        assert np.all(strip[:, [0, -1]] == 255)
    assert len({strip.tobytes() for strip in strips}) == 4, "four different names"
    left, right = view.components[:48, :48], view.components[:48, 48:]
    assert (left == left[0, 0]).all()
    assert (right == right[0, 0]).all()
    assert not (left[0, 0] == right[0, 0]).all()


@pytest.mark.parametrize("name", ["eva02_pico_patch8_32", "vit_pico_patch8_32"])
def test_sheet_has_readable_images_with_their_keys(name: str, tmp_path: Path) -> None:
    model = build_vision(name, num_classes=3, seed=0)
    encoder = PooledVision(model.train(), vision_preprocess(model))
    data = labeled(tmp_path / "data", 8, broken=[0, 3])
    panel = pca_sheet(encoder, open_dataset(data), tmp_path / "out", num_images=4)
    assert [picture.caption for picture in panel.pictures] == ["0001", "0002", "0004", "0005"]
    for picture in panel.pictures:
        with Image.open(tmp_path / "out" / picture.file) as image:
            assert image.size == (4 * 96 + 24, 20 + 96)
    assert model.training, "a model in training mode stays in it"


def test_model_without_patches_is_refused() -> None:
    model = build_vision("resnet18", num_classes=0)
    with pytest.raises(UserError, match="no patch tokens"):
        compute_patch_maps(PooledVision(model, vision_preprocess(model)), [Image.new("RGB", (32, 32))])
