"""Drawn objects: small ones over large ones, outlines between objects of a class, names that are not cut off."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from PIL import Image

from vfm.data.annotated import encode_mask
from vfm.data.annotated.panels import palette
from vfm.eval.dense.dense_panels import with_legend
from vfm.eval.dense.object_drawing import SHOWN_SIDE, draw_objects

NAMES = ["person", "a class with a very long name"]


def mask_of(left: int, top: int, right: int, bottom: int) -> bytes:
    mask = np.zeros((SHOWN_SIDE, SHOWN_SIDE), dtype=bool)
    mask[top:bottom, left:right] = True
    return encode_mask(mask)


def drawn(boxes: list[tuple[int, int, int, int]], labels: list[int], *, masks: bool) -> np.ndarray:
    picture = Image.new("RGB", (SHOWN_SIDE, SHOWN_SIDE), (90, 90, 90))
    counts = [mask_of(*box) if masks else None for box in boxes]
    scores = np.linspace(0.9, 0.5, len(boxes))
    return np.asarray(draw_objects(picture, np.array(labels), np.array(boxes, dtype=float), counts, NAMES, scores))


def test_small_masks_lie_over_large_ones_whatever_their_order() -> None:
    large, small = (20, 60, 300, 300), (100, 150, 160, 200)
    inside = np.s_[170:190, 110:150]
    alone = drawn([small], [1], masks=True)[inside]
    for boxes, labels in (([large, small], [0, 1]), ([small, large], [1, 0])):
        assert (drawn(boxes, labels, masks=True)[inside] == alone).all()


def test_an_outline_is_between_two_objects_of_a_class() -> None:
    pixels = drawn([(20, 60, 150, 200), (150, 60, 280, 200)], [0, 0], masks=True)
    row = pixels[130]
    assert (row[149] == palette(2)[0]).all()
    assert (row[150] == palette(2)[0]).all()
    assert not (row[100] == palette(2)[0]).all()


def test_names_are_whole_at_every_edge() -> None:
    # A ground in the colour of the class is as wide wherever the box is, and lies in the picture.
    widths = set()
    for left, top in ((50, 100), (300, 100), (50, 0), (300, 0), (300, 310)):
        pixels = drawn([(left, top, left + 10, min(SHOWN_SIDE, top + 10))], [1], masks=False)
        coloured = (pixels == palette(2)[1]).all(axis=-1)
        widths.add(int(coloured.sum(axis=1).max()))
    assert len(widths) == 1
    assert 150 < widths.pop() < SHOWN_SIDE


def test_a_legend_has_the_colour_of_each_class_and_breaks_lines() -> None:
    names = [f"class number {number}" for number in range(12)]
    source = SimpleNamespace(dataset=SimpleNamespace(class_names=names))
    sheet = Image.new("RGB", (300, 40), (1, 2, 3))
    labels = np.array([-1, 0, 3, 4, 7, 11])
    shown = np.asarray(with_legend(sheet, labels, source, palette(12)))  # type: ignore[arg-type]
    assert shown.shape[1] == 300
    assert (shown[:40] == (1, 2, 3)).all()
    found = {tuple(colour) for colour in shown[40:].reshape(-1, 3).tolist()}
    expected = {label: tuple(palette(12)[label].tolist()) in found for label in range(12)}
    assert [label for label, there in expected.items() if there] == [0, 3, 4, 7, 11]
