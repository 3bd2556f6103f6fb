"""The first screen of a page: main results in words, answers and a curve, unless a stage has put panels there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from report_world import Elements, photo, run, written  # noqa: F401  (a fixture)
from vfm.base import metric_in_words
from vfm.interfaces import ImagesPanel, LinesPanel, PanelImage, Series, TextPanel
from vfm.report.run_summary import MAX_POINTS, RunSummary, speed_charts


def add_panels(run: RunSummary) -> None:  # noqa: F811
    directory = run.stages[0].directory
    photo(directory / "a.png", 8, 8)
    pictures = [PanelImage(file="a.png", caption="taken for a cat", right=False)]
    ImagesPanel(title="Answers of the model", pictures=pictures).save(directory)
    ImagesPanel(title="Some images", pictures=[PanelImage(file="a.png")], order=70).save(directory)
    series = [Series(name="loss", x=[1, 2], y=[2.0, 1.0])]
    LinesPanel(title="Loss of this run", order=1, series=series, x_label="step", y_label="loss").save(directory)
    LinesPanel(title="Learning rate of this run", order=2, series=series, x_label="step", y_label="lr").save(directory)


def first_screen(page: str) -> str:
    return Elements(page[: page.index('id="stages"')]).words


def test_answers_a_curve_and_the_main_metric_come_first(run: RunSummary, tmp_path: Path) -> None:  # noqa: F811
    add_panels(run)
    page = written(run, tmp_path / "report.html")
    first = first_screen(page)
    assert "Answers of the model" in first
    assert "Loss of this run" in first
    assert "Learning rate of this run" not in first
    assert "Some images" not in first
    assert page.count("Answers of the model") == 1
    words = "zero_shot: top-1 accuracy 40.0 % (clip), 50.0 % (diva), n = 1,200, chance 10.0 %."
    assert -1 < first.find("diva is better than clip") < first.find(words) < first.find("Answers of the model")


@pytest.mark.parametrize(("width", "shown"), [(128, 6), (640, 2)])
def test_a_long_sheet_is_cut_on_the_first_screen_and_whole_in_its_stage(
    width: int,
    shown: int,
    run: RunSummary,  # noqa: F811
    tmp_path: Path,
) -> None:
    directory = run.stages[0].directory
    photo(directory / "a.png", 8, 8)
    pictures = [PanelImage(file="a.png", caption=f"image {number}", right=True) for number in range(9)]
    ImagesPanel(title="Many images", order=1, pictures=pictures, width=width).save(directory)
    page = written(run, tmp_path / "report.html")
    captions = [f"image {number}" for number in range(9)]
    assert [caption for caption in captions if caption in first_screen(page)] == captions[:shown]
    stages = Elements(page[page.index('id="stages"') :]).words
    assert [caption for caption in captions if caption in stages] == captions


def test_panels_for_the_top_replace_them(run: RunSummary, tmp_path: Path) -> None:  # noqa: F811
    add_panels(run)
    TextPanel(title="What was found", text="All is well.", front=True).save(run.stages[0].directory)
    first = first_screen(written(run, tmp_path / "report.html"))
    # The decision on the comparison follows in the results.
    assert -1 < first.find("All is well.") < first.find("diva is better than clip")
    assert "Answers of the model" not in first
    assert "top-1 accuracy 40.0 %" not in first


def test_speed_waits_and_memory_are_charts_of_the_stage(run: RunSummary, tmp_path: Path) -> None:  # noqa: F811
    values = [
        {"train/samples_per_second": 10.0 + i, "train/data_wait_pct": 1.0, "train/loss": 2.0} for i in range(2000)
    ]
    charts = speed_charts([{"step": i, "values": value} for i, value in enumerate(values)])
    assert [chart.title for chart in charts] == ["Samples per second", "Waiting for data, %"]
    assert MAX_POINTS / 2 < len(charts[0].series[0].x) <= MAX_POINTS
    assert speed_charts([{"step": 1, "values": values[0]}]) == [], "one point is no curve"
    stages = [replace(run.stages[0], speed=charts), *run.stages[1:]]
    page = written(replace(run, stages=stages), tmp_path / "report.html")
    assert "Waiting for data, %" in Elements(page[page.index('id="stages"') :]).words


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("acc1", "top-1 accuracy"),
        ("acc1/tail", "top-1 accuracy, tail"),
        ("fs4_acc1", "top-1 accuracy from 4 images of a class"),
        ("image_retrieval_recall@5", "image retrieval, recall at 5"),
        ("lp_acc1", "top-1 accuracy of a linear probe"),
        ("pq", "panoptic quality"),
        ("box_ap50", "box AP at IoU 0.50"),
        ("box_ap_small", "box AP, small"),
        ("some_metric_of_a_plugin", "some metric of a plugin"),
    ],
)
def test_metrics_have_names_in_words(metric: str, words: str) -> None:
    assert metric_in_words(metric) == words
