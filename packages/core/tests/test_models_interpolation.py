"""Interpolation: the ends are exact, the middle matches the formula, different architectures are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vfm import ClipCheckpoint, Context, UserError
from vfm.data.synthetic.stages import ShapesClasses
from vfm.data.synthetic.world import World
from vfm.eval.classify.stages import ZeroShot
from vfm.eval.interpolation.interpolation import interpolate
from vfm.eval.interpolation.interpolation_line import Point, trade_off_panel
from vfm.eval.interpolation.stages import Interpolate, LineEvaluation
from vfm.interfaces import LinesPanel, load_panels
from vfm.models import build_clip, load_clip, save_clip

VIT: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
RESNET = {**VIT, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}}


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_ends_equal_the_two_models_and_the_middle_matches_the_formula(config: dict[str, Any]) -> None:
    start, end = (build_clip(config, seed=seed) for seed in (0, 1))
    for name, buffer in end.module.named_buffers():
        if "num_batches" in name:
            buffer += 7
    for alpha, source in ((0.0, start), (1.0, end)):
        mixed = interpolate(start, end, alpha).module.state_dict()
        assert all(torch.equal(value, mixed[name]) for name, value in source.module.state_dict().items())
    third = interpolate(start, end, 0.3).module.state_dict()
    others = end.module.state_dict()
    for name, value in start.module.state_dict().items():
        expected = 0.7 * value.double() + 0.3 * others[name].double() if value.is_floating_point() else value
        torch.testing.assert_close(third[name].double(), expected.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 16}, r"text_projection is \[32, 24\] in the first, \[32, 16\] in the second"),
        ({"quick_gelu": True}, "quick_gelu is None in the first, True in the second"),
        ({"init_logit_bias": -10.0}, r"logit_bias is absent in the first, \[\] in the second"),
        ({"vision_cfg": {**VIT["vision_cfg"], "head_width": 8}}, "vision_cfg.head_width is 16 in the first, 8"),
    ],
)
def test_different_architectures_are_refused_with_the_first_difference(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"custom and custom cannot be interpolated: {message}"):
        interpolate(build_clip(VIT, seed=0), build_clip({**VIT, **change}, seed=0), 0.5)
    noise = {**VIT["vision_cfg"], "patch_dropout": 0.5}
    interpolate(build_clip(VIT, seed=0), build_clip({**VIT, "vision_cfg": noise, "init_logit_scale": 1.0}), 0.5)


def test_different_preprocessing_is_refused() -> None:
    start, end = build_clip(VIT, seed=0), build_clip(VIT, seed=1)
    end.preprocess = end.preprocess.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    with pytest.raises(UserError, match="mean is"):
        interpolate(start, end, 0.5)


def test_stage_evaluates_along_the_line_and_saves_the_model_at_alpha(tmp_path: Path) -> None:
    inputs = {name: tmp_path / name for name in ("start", "end", "val")}
    for seed, name in enumerate(("start", "end")):
        save_clip(build_clip(VIT, seed=seed), inputs[name])
    for name in ("w", "val"):
        (tmp_path / name).mkdir()
    world = World(image_size=32, shapes=["circle", "square"], colours=["red", "blue"])
    ShapesClasses(name="val", world=world, num_samples=12).run(Context("val", inputs["val"], tmp_path / "w", {}))
    evaluation = ZeroShot(name="zero_shot", data="val")
    line = LineEvaluation(tasks=[evaluation], alphas=[0.0, 1.0])
    stage = Interpolate(name="wise", start="start", end="end", alpha=0.4, evaluation=line)
    directory = tmp_path / "wise"
    directory.mkdir()
    checkpoint = stage.run(Context("wise", directory, tmp_path / "work", inputs))
    assert isinstance(checkpoint, ClipCheckpoint)
    models = {
        alpha: interpolate(*(load_clip(inputs[n]) for n in ("start", "end")), alpha=alpha) for alpha in (0, 0.4, 1)
    }
    weights = load_clip(checkpoint).module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in models[0.4].module.state_dict().items())
    rows = [json.loads(line) for line in (directory / "line.jsonl").read_text().splitlines()]
    first: Any = None
    for row, (alpha, model) in zip(rows, models.items(), strict=True):
        (tmp_path / "scratch").mkdir(exist_ok=True)
        scores = evaluation.scored(Context("s", tmp_path / "scratch", tmp_path / "work", inputs), model)
        first = scores if not alpha else first
        gaps = [(score, score.difference(start)) for score, start in zip(scores, first, strict=True)]
        gains = {one.metric: [one.value - first[n].value, gap.low, gap.high] for n, (one, gap) in enumerate(gaps)}
        gains = gains if alpha else {name: [0.0, 0.0, 0.0] for name in gains}
        values = {score.metric: score.value for score in scores}
        assert row == {"alpha": alpha, "eval": "zero_shot", **values, "gains": gains}
    (chart,) = load_panels(directory)
    assert isinstance(chart, LinesPanel)
    assert [series.x for series in chart.series] == [[0.0, 0.4, 1.0]] * len(chart.series)
    assert {"acc1", "acc5"} >= {series.name for series in chart.series} - {"mean_per_class_recall"}
    for series in chart.series:
        expected = [row[series.name] for row in rows]
        assert series.y == expected
        assert series.low == [expected[0] + row["gains"][series.name][1] for row in rows]
        assert series.high == [expected[0] + row["gains"][series.name][2] for row in rows]
    assert not (tmp_path / "work" / "evals").exists()


def points(**values: list[float]) -> list[dict[str, Point]]:
    rows = zip(*values.values(), strict=True)
    return [{name: Point(value) for name, value in zip(values, row, strict=True)} for row in rows]


def test_trade_off_panel_plots_each_evaluation_over_the_first() -> None:
    found = {
        "mmvp": points(pair_acc=[0.2, 0.3], x=[1.0, 1.0]),
        "zero_shot": points(acc1=[0.9, 0.7]),
        "retrieval": points(recall=[0.5, 0.6]),
    }
    panel = trade_off_panel(found, "tuned", "Bands.")
    assert (panel.x_label, panel.curve) == ("mmvp pair acc", "tuned")
    assert [(series.name, series.x, series.y, series.low) for series in panel.series] == [
        ("zero shot acc1", [0.2, 0.3], [0.9, 0.7], None),
        ("retrieval recall", [0.2, 0.3], [0.5, 0.6], None),
    ]
    paired = [{"acc1": Point(0.9, (0.0, 0.0, 0.0))}, {"acc1": Point(0.7, (-0.2, -0.3, -0.1))}]
    (series,) = trade_off_panel({"mmvp": found["mmvp"], "zero_shot": paired}, "tuned", "Bands.").series
    assert series.low == [0.9, pytest.approx(0.6)]
    assert series.high == [0.9, pytest.approx(0.8)]
