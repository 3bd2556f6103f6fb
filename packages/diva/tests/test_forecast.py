"""`vfm forecast`: a CLIP model, a generator and pairs become a recipe, a table of gains and the GPU hours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diva_families import add_text_encoder, family_clip, family_generator
from diva_toy import WORLD, run
from vfm.cli import app
from vfm.data.synthetic.stages import ShapesChoices
from vfm.plugin import ChoiceDataset, ClipCheckpoint, GeneratorCheckpoint
from vfm.statistics import Accuracy
from vfm_diva.forecast.law import LAW, exposure
from vfm_diva.forecast.predict import Knowledge, expected_gains


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ChoiceDataset:
    return run(ShapesChoices(name="pairs", world=WORLD, pairs_per_pattern=8), tmp_path_factory.mktemp("pairs"))


def forecast(folder: Path, clip: Path, generator: Path, pairs: Path, *more: str) -> tuple[int, str]:
    words = ["forecast", str(clip), "--generator", str(generator), "--pairs", str(pairs)]
    words += ["--store", str(folder / "store"), "--recipe", str(folder / "forecast.yaml"), *more]
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.output


def test_forecast_of_a_prior_lists_gains_and_hours(
    tmp_path: Path, clip: ClipCheckpoint, prior: GeneratorCheckpoint, pairs: ChoiceDataset
) -> None:
    code, output = forecast(tmp_path, clip.path, prior.path, pairs.path, "--preset", "toy-prior")
    assert code == 0, output
    assert "gain/colour" in output
    assert "preference/colour" in output
    assert "of the images better with their own statement, 50 % by chance. CLIP is right on" in " ".join(output.split())
    assert "gain to expect on all pairs: " in output
    assert "diva.tune with preset toy-prior" in output
    assert "GPU hours" in output


def test_forecast_of_random_stable_diffusion_says_that_it_knows_nothing(tmp_path: Path, pairs: ChoiceDataset) -> None:
    pytest.importorskip("transformers")
    clip, sd = family_clip("openai", tmp_path / "clip"), family_generator("sd", tmp_path / "sd")
    add_text_encoder(sd.path, "StableDiffusionPipeline")
    code, output = forecast(tmp_path, clip.path, sd.path, pairs.path)
    assert code == 0, output
    assert "knows nothing of colour" in output


def attribute(images: int, pairs: int, preference: float = 0.8) -> Knowledge:
    half = (0.25 / images) ** 0.5
    right = np.arange(pairs) < pairs // 4
    return Knowledge("size", preference, preference - half, preference + half, images, Accuracy("pairs", right))


def test_few_images_and_pairs_widen_the_interval_of_a_gain_which_tends_to_the_laws() -> None:
    widths = [float(expected_gains([attribute(count, count)]).widths[0]) for count in (16, 160, 1_600_000)]
    law = float(LAW.predict(exposure(0.8, 0.25))[1])
    assert widths[0] > widths[1] > widths[2] == pytest.approx(law, rel=1e-3)


def test_gain_of_all_pairs_weighs_attributes_by_their_pairs() -> None:
    known = [attribute(400, 40, 0.9), attribute(400, 120, 0.6)]
    expected = expected_gains(known)
    assert expected.total == pytest.approx(float(expected.gains @ [0.25, 0.75]))
    # An average over attributes is better known than the worst of them, but the law's slope is common to all.
    assert expected.total_width < expected.widths.max()
    many = expected_gains([attribute(10_000_000, 4)] * 10_000)
    assert many.total_width > LAW.slope_error * exposure(0.8, 0.25)


@pytest.mark.parametrize("swapped", ["generator", "pairs"])
def test_input_of_another_type_is_one_line(
    swapped: str, tmp_path: Path, clip: ClipCheckpoint, prior: GeneratorCheckpoint, pairs: ChoiceDataset
) -> None:
    places = {"generator": prior.path, "pairs": pairs.path, swapped: clip.path}
    code, output = forecast(tmp_path, clip.path, places["generator"], places["pairs"])
    expected = {"generator": "GeneratorCheckpoint", "pairs": "ChoiceDataset"}[swapped]
    assert code == 2
    assert f"expected a {expected}, got a ClipCheckpoint" in output
    assert "Traceback" not in output
