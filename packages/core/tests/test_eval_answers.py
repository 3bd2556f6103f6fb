"""Which images the sheets of evaluations call right and wrong, by which readers of a report filter."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_world import NAMES, ColourModel, labeled, pairs, pool, run_in
from vfm.eval.choices.choices import score_mmvp_vlm
from vfm.eval.classify.zero_shot import score_zero_shot
from vfm.eval.retrieval.retrieval import score_retrieval
from vfm.interfaces import ImagesPanel, PanelImage, load_panels

MODELS = {"other": ColourModel(-1.0), "model": ColourModel()}  # of opposites, and of colours
OPPOSITE = {"red": "cyan", "green": "magenta", "blue": "yellow", "cyan": "red", "magenta": "green", "yellow": "blue"}


def pictures(directory: Path, title: str) -> list[PanelImage]:
    """Return the pictures of the only sheet whose title begins so."""
    (sheet,) = (
        panel for panel in load_panels(directory) if isinstance(panel, ImagesPanel) and panel.title.startswith(title)
    )
    return sheet.pictures


def test_zero_shot_shows_an_image_of_each_class_that_is_right_or_wrong(tmp_path: Path) -> None:
    data = labeled(tmp_path / "data", 14)
    score_zero_shot(run_in(tmp_path / "right").ctx, MODELS, data)
    right = pictures(tmp_path / "right", "Images that model classifies")
    assert [(one.caption, one.right) for one in right] == [(f"{name} · rank 1", True) for name in NAMES]
    assert all((tmp_path / "right" / one.file).is_file() for one in right)
    score_zero_shot(run_in(tmp_path / "wrong").ctx, {"model": MODELS["other"]}, data)
    wrong = pictures(tmp_path / "wrong", "Images that model classifies")
    assert len(wrong) == 7
    assert not any(one.right for one in wrong)
    taken = dict(one.caption.partition(" · ")[0].split(", taken for ") for one in wrong)
    assert {name: taken[name] for name in OPPOSITE} == OPPOSITE


@pytest.mark.parametrize("last", MODELS)
def test_captions_that_find_their_image_are_right_and_those_that_miss_it_wrong(tmp_path: Path, last: str) -> None:
    score_retrieval(run_in(tmp_path / "out").ctx, {last: MODELS[last]}, pool(tmp_path / "data", captions=1))
    for title in ("Captions that find", "Captions that miss", "Images that miss"):
        shown = pictures(tmp_path / "out", title)
        assert {one.right for one in shown} == {last == "model"}, title
        ranks = [one for one in shown if "rank" in one.caption]
        assert ranks
        assert all(one.caption.endswith("rank 1") == one.right for one in ranks)


@pytest.mark.parametrize("last", MODELS)
def test_statements_of_flipped_pairs_are_right_or_wrong_by_the_later_model(tmp_path: Path, last: str) -> None:
    (first,) = MODELS.keys() - {last}
    models = {first: MODELS[first], last: MODELS[last]}
    score_mmvp_vlm(run_in(tmp_path / "out").ctx, models, pairs(tmp_path / "data"), prompt="{}")
    shown = pictures(tmp_path / "out", "Items that flipped")
    assert len(shown) == 12, "two images of each of six pairs"
    assert {one.right for one in shown} == {last == "model"}
    assert all(one.caption.endswith("wrong → right" if one.right else "right → wrong") for one in shown)
