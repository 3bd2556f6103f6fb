"""The gain of each step of a pipeline: its evaluation in words, as bars, and on images that only it gets right."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from eval_world import run_in
from test_eval_summary import report
from vfm.base import UserError
from vfm.eval.compare.ablation import compare_steps
from vfm.eval.compare.stages import Ablation, AblationStep
from vfm.eval.encode.image_panels import CaptionedImage, changed_panel
from vfm.interfaces import BarsPanel, ImagesPanel, Report, TextPanel, load_panels


def curation(directory: Path) -> Report:
    """Write a report of a subset, a control and a balanced subset, with a sheet of three items that changed."""
    made = report(directory, 0, 400, random=0.3, shuffled=0.2, balanced=0.6)
    images = [CaptionedImage(Image.new("RGB", (8, 8), (40 * i, 0, 0)), f"item {i}", right=i < 2) for i in range(3)]
    changed_panel(directory, ("random", "balanced"), images, 2, 1, note="Its class.").save(directory)
    return made


def test_steps_are_sentences_bars_and_images(tmp_path: Path) -> None:
    made = curation(tmp_path / "r")
    step = AblationStep(title="Curation", report="r", metric_name="accuracy")
    result = compare_steps(Ablation(name="steps", steps=[step]), run_in(tmp_path / "out", r=made).ctx)
    text, images, bars = load_panels(result.path)
    assert isinstance(text, TextPanel)
    assert isinstance(bars, BarsPanel)
    assert isinstance(images, ImagesPanel)
    assert all(panel.front for panel in (text, bars, images))
    gain = next(test for test in made.comparisons if (test.model, test.metric) == ("balanced", "acc1"))
    control = next(test for test in made.comparisons if (test.model, test.metric) == ("shuffled", "acc1"))
    values = {metric.model: 100 * metric.value for metric in made.metrics if metric.name == "acc1"}
    assert text.text == (
        f"Curation: accuracy {values['random']:.1f}\N{NO-BREAK SPACE}% → {values['balanced']:.1f}\N{NO-BREAK SPACE}%,"
        f" {100 * gain.difference:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})."
        f" Control: shuffled \N{MINUS SIGN}{-100 * control.difference:.1f}."
    )
    assert bars.labels == [f"Curation: {name}" for name in values]
    assert bars.values == [round(value, 1) for value in values.values()]
    assert [image.caption for image in images.pictures] == ["Curation · item 0", "Curation · item 1"]
    assert all((result.path / image.file).read_bytes().startswith(b"\xff\xd8") for image in images.pictures)  # JPEG
    assert {test.metric for test in result.comparisons} == {"Curation: accuracy"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "acc2"}, "has no metric 'acc2'; did you mean 'acc"),
        ({"model": "balance"}, "did you mean 'balanced'"),
    ],
)
def test_what_a_report_lacks_is_named(fields: dict[str, str], message: str, tmp_path: Path) -> None:
    made = curation(tmp_path / "r")
    step = AblationStep(title="Curation", report="r", **fields)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        compare_steps(Ablation(name="steps", steps=[step]), run_in(tmp_path / "out", r=made).ctx)


def test_a_report_of_one_model_has_no_step(tmp_path: Path) -> None:
    alone = report(tmp_path / "r", 0, 40, only=0.3)
    step = AblationStep(title="Curation", report="r")
    with pytest.raises(UserError, match="expected an evaluation of two models or more, got 1"):
        compare_steps(Ablation(name="steps", steps=[step]), run_in(tmp_path / "out", r=alone).ctx)
