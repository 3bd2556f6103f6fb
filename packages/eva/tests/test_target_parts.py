"""What is predicted of masked patches is a part: pixels, codes, features, several at once, and one of a plugin."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

import colour_target
from eva_toy import NUM_MASKED, STUDENT, context, losses, random_inputs, stage
from vfm.models import build_vision, read_masked_modelling
from vfm.plugin import ClipCheckpoint, Pool, Preflight, UserError
from vfm_eva import EvaPretrain, Pixels
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.targets.codes import Codebook
from vfm_eva.targets.pixels import PixelTarget
from vfm_eva.targets.teacher import load_encoder

TARGETS: dict[str, dict[str, Any]] = {
    "pixels": {"target": {"type": "pixels"}},
    "codes": {"teacher": "teacher", "target": {"type": "codes", "num_codes": 8}},
    "colour": {"target": {"type": "colour", "brightness": 0.5}},
    "several": {
        "teachers": [
            {"teacher": "teacher", "class_weight": 1.0},
            {"target": {"type": "pixels"}, "weight": 0.5},
            {"target": {"type": "colour"}},
        ]
    },
}
WIDTHS = {"pixels": [192], "codes": [8], "colour": [3], "several": [64, 192, 3]}


def settings(name: str, **changes: Any) -> EvaPretrain:
    given = {key: value for key, value in stage().model_dump(exclude_unset=True).items() if key != "teacher"}
    return EvaPretrain.model_validate({**given, **TARGETS[name], **changes})


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_learned_and_each_has_a_head_of_its_width(
    name: str, tmp_path: Path, pool: Pool, teacher: ClipCheckpoint
) -> None:
    config = settings(name, steps=30, lr=1e-2, global_batch_size=16)
    config.preflight(Preflight({}, {"teacher": teacher.path, "pool": pool.path}))
    made: Any = config.run(context(tmp_path, pool=pool, teacher=teacher))
    curve = losses(tmp_path)
    assert sum(curve[-5:]) < sum(curve[:5]) - 0.05
    added = read_masked_modelling(made.path)
    heads = ["head", *(f"other_heads.{number}" for number in range(len(WIDTHS[name]) - 1))]
    assert [len(added[f"{head}.weight"]) for head in heads] == WIDTHS[name]


def test_codes_resume_with_the_centres_of_the_first_run(tmp_path: Path, pool: Pool, teacher: ClipCheckpoint) -> None:
    config = settings("codes", steps=2)
    first: Any = config.run(context(tmp_path / "a", pool=pool, teacher=teacher))
    file = tmp_path / "a/work/statistics_0.safetensors"
    assert Codebook.load(file).centres.shape == (8, 64)
    other = context(tmp_path / "b", pool=pool, teacher=teacher)
    Codebook(torch.zeros(8, 64)).save(tmp_path / "b/work/statistics_0.safetensors")
    second: Any = config.run(other)
    one, two = (read_masked_modelling(made.path)["head.bias"] for made in (first, second))
    assert not torch.equal(one, two)


def test_pixels_are_the_students_patches_with_mean_0_and_variance_1() -> None:
    student = build_vision(STUDENT, num_classes=0, seed=0)
    target, inputs = PixelTarget(Pixels(), student, None), random_inputs()
    found = target.targets(inputs, (4, 4))
    patch = inputs.images[1, :, 8:16, 24:32].float().flatten()
    torch.testing.assert_close(found[1, 1 * 4 + 3], (patch - patch.mean()) / patch.var().sqrt(), atol=1e-4, rtol=1e-4)
    task = EvaTask(student, target, num_masked=NUM_MASKED)
    loss, metrics = task(inputs)
    assert loss > 0
    assert metrics["constant_loss"] == pytest.approx(1.0, abs=0.1)


def test_kmeans_finds_clusters_and_refuses_too_few_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = 10 * torch.eye(3)
    rows = middles.repeat(20, 1) + 0.1 * torch.randn(60, 3, generator=generator)
    book = Codebook(torch.zeros(3, 3)).fitted([rows[:30], rows[30:]])
    codes = book(rows[None])[0]
    assert len(set(codes[:3].tolist())) == 3
    assert torch.equal(codes, codes[:3].repeat(20))
    torch.testing.assert_close(book.centres[codes[:3]], middles, atol=0.1, rtol=0)
    with pytest.raises(UserError, match="4 codes need as many different patches, got 2"):
        Codebook(torch.zeros(4, 3)).fitted([torch.eye(3)[:2]])


def test_a_plugins_target_is_known_by_its_type_and_mistakes_are_one_line() -> None:
    assert isinstance(settings("colour").target, colour_target.Colour)
    for changes, line in (
        ({"target": {"type": "pixels"}}, "target: pixels needs no teacher: leave out"),
        ({"target": {"type": "color"}}, "type 'color' is not known; did you mean 'colour'"),
        ({"target": {"type": "codes"}, "teacher": None}, "give exactly one of teacher, targets and teachers"),
        ({"teacher": None, "teachers": [{"target": {"type": "pixels"}, "loss": "phi_s"}]}, "loss has no effect"),
    ):
        with pytest.raises(ValidationError, match=line):
            stage(**changes)


def test_the_prediction_of_a_code_is_trained_by_cross_entropy(teacher: ClipCheckpoint) -> None:
    config = settings("codes")
    student = build_vision(STUDENT, num_classes=0, seed=0)
    target = config.target.build(student, load_encoder(teacher))
    prediction = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    codes = torch.arange(10).reshape(2, 5, 1) % 8
    counted = torch.tensor([[True] * 5, [True, False, False, False, False]])
    expected = F.cross_entropy(prediction[counted], codes[..., 0][counted])
    torch.testing.assert_close(target.patch_loss(prediction, codes, counted), expected)
    assert target.constant_loss(codes, counted) == pytest.approx(math.log(6))
