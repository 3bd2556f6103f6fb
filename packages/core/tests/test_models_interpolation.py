"""Between two models: the ends bit for bit, the middle by hand, and no line between models of two kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vfm import ClipCheckpoint, Context, UserError
from vfm.data.shapes.world import World
from vfm.eval.stages import ZeroShot
from vfm.models import build_clip, load_clip, save_clip
from vfm.models.interpolation import _trade_off_panel, interpolate
from vfm.panels import load_panels
from vfm.stages.models import Interpolate
from vfm.stages.shapes import ShapesClasses

VIT: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
RESNET = {**VIT, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}}


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_ends_are_the_two_models_to_the_bit_and_between_them_lies_their_mixture(config: dict[str, Any]) -> None:
    start, end = (build_clip(config, seed=seed) for seed in (0, 1))
    for name, buffer in end.module.named_buffers():
        if "num_batches" in name:
            buffer += 7
    for alpha, source in ((0.0, start), (1.0, end)):
        made = interpolate(start, end, alpha).module.state_dict()
        assert all(torch.equal(value, made[name]) for name, value in source.module.state_dict().items())
    third = interpolate(start, end, 0.3).module.state_dict()
    others = end.module.state_dict()
    for name, value in start.module.state_dict().items():
        wanted = 0.7 * value.double() + 0.3 * others[name].double() if value.is_floating_point() else value
        torch.testing.assert_close(third[name].double(), wanted.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embed_dim": 16}, r"text_projection is \[32, 24\] in the one, \[32, 16\] in the other"),
        ({"quick_gelu": True}, "quick_gelu is None in the one, True in the other"),
        ({"init_logit_bias": -10.0}, r"logit_bias is absent in the one, \[\] in the other"),
        ({"vision_cfg": {**VIT["vision_cfg"], "head_width": 8}}, "vision_cfg.head_width is 16 in the one, 8"),
    ],
)
def test_models_of_two_kinds_are_refused_by_their_first_difference(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"custom and custom cannot be interpolated: {said}"):
        interpolate(build_clip(VIT, seed=0), build_clip({**VIT, **change}, seed=0), 0.5)
    noise = {**VIT["vision_cfg"], "patch_dropout": 0.5}
    interpolate(build_clip(VIT, seed=0), build_clip({**VIT, "vision_cfg": noise, "init_logit_scale": 1.0}), 0.5)


def test_models_that_see_pictures_differently_are_refused() -> None:
    start, end = build_clip(VIT, seed=0), build_clip(VIT, seed=1)
    end.preprocess = end.preprocess.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    with pytest.raises(UserError, match="mean is"):
        interpolate(start, end, 0.5)


def test_the_stage_draws_the_curve_and_makes_the_model_of_its_alpha(tmp_path: Path) -> None:
    inputs = {name: tmp_path / name for name in ("start", "end", "val")}
    for seed, name in enumerate(("start", "end")):
        save_clip(build_clip(VIT, seed=seed), inputs[name])
    for name in ("w", "val"):
        (tmp_path / name).mkdir()
    world = World(image_size=32, shapes=["circle", "square"], colours=["red", "blue"])
    ShapesClasses(name="val", world=world, num_samples=12).run(Context("val", inputs["val"], tmp_path / "w", {}))
    evaluation = ZeroShot(name="zero_shot", data="val")
    stage = Interpolate(name="wise", start="start", end="end", alpha=0.4, alphas=[0.0, 1.0], evals=[evaluation])
    directory = tmp_path / "wise"
    directory.mkdir()
    made = stage.run(Context("wise", directory, tmp_path / "work", inputs))
    assert isinstance(made, ClipCheckpoint)
    models = {alpha: interpolate(*(load_clip(inputs[n]) for n in ("start", "end")), alpha) for alpha in (0, 0.4, 1)}
    weights = load_clip(made).module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in models[0.4].module.state_dict().items())
    rows = [json.loads(line) for line in (directory / "line.jsonl").read_text().splitlines()]
    for row, (alpha, model) in zip(rows, models.items(), strict=True):
        (tmp_path / "scratch").mkdir(exist_ok=True)
        scores = evaluation.scores(Context("s", tmp_path / "scratch", tmp_path / "work", inputs), model)
        assert row == {"alpha": alpha, "eval": "zero_shot", **scores}
    (chart,) = load_panels(directory)
    assert [series.x for series in chart.series] == [[0.0, 0.4, 1.0]] * len(chart.series)
    assert {"acc1", "acc5"} >= {series.name for series in chart.series} - {"mean_per_class_recall"}
    assert not (tmp_path / "work" / "evals").exists()


def test_two_evaluations_are_shown_one_against_the_other() -> None:
    found = {
        "mmvp": [{"pair_acc": 0.2, "x": 1.0}, {"pair_acc": 0.3, "x": 1.0}],
        "zero_shot": [{"acc1": 0.9}, {"acc1": 0.7}],
        "retrieval": [{"recall": 0.5}, {"recall": 0.6}],
    }
    panel = _trade_off_panel(found)
    assert panel.x_label == "mmvp pair acc"
    assert [(series.name, series.x, series.y) for series in panel.series] == [
        ("zero shot acc1", [0.2, 0.3], [0.9, 0.7]),
        ("retrieval recall", [0.2, 0.3], [0.5, 0.6]),
    ]
