"""The panel shows the masked patches and the cosine of each prediction."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from eva_toy import run
from vfm.eval import MAP_GAP, MAP_SIDE
from vfm.interfaces import ImagesPanel, load_panels
from vfm_eva.pretrain.panels import STRIPES, triptych


def test_a_triptych_has_image_mask_and_heat_map_side_by_side():
    image = torch.arange(3 * 32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).view(3, 32, 32)
    bool_mask = torch.zeros(16, dtype=torch.bool)
    bool_mask[1] = True  # first row, second column
    heat = torch.zeros(16)
    heat[4] = 1.0  # second row, first column
    drawn = triptych(image, bool_mask, heat, (4, 4))
    assert drawn.shape == (MAP_SIDE, 3 * MAP_SIDE + 2 * MAP_GAP, 3)
    left, middle, right = (
        drawn[:, start : start + MAP_SIDE] for start in (0, MAP_SIDE + MAP_GAP, 2 * (MAP_SIDE + MAP_GAP))
    )
    assert np.array_equal(left[::3, ::3], image.permute(1, 2, 0).numpy())
    assert set(np.unique(middle[:24, 24:48])) == set(STRIPES)
    seen = np.ones((MAP_SIDE, MAP_SIDE), bool)
    seen[:24, 24:48] = False
    assert np.array_equal(middle[seen], left[seen])
    bright = right.sum(axis=2) > 500
    assert bright[24:48, :24].all()
    assert bright.sum() == 24 * 24
    assert (drawn[:, MAP_SIDE : MAP_SIDE + MAP_GAP] == 255).all()


def test_a_run_leaves_a_sheet_of_which_three_fit_in_a_row(tmp_path, pool, teacher):
    made = run(tmp_path, {"steps": 2}, pool=pool, teacher=teacher)
    (sheet,) = (panel for panel in load_panels(made.path) if panel.title.startswith("Masked patches"))
    assert isinstance(sheet, ImagesPanel)
    assert 3 * sheet.width + 2 * 16 <= 944
    assert len(sheet.pictures) == 9
    for picture in sheet.pictures:
        with Image.open(made.path / picture.file) as drawn:
            assert drawn.size == (3 * MAP_SIDE + 2 * MAP_GAP, MAP_SIDE)
        cosine = float(picture.caption.split()[2])
        assert -1 <= cosine <= 1
        assert len(picture.caption) <= 40
