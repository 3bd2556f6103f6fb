"""Charts of a training: curves are named in words, and the loss comes first, since the first has the main colour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vfm.base import UserError
from vfm.train.loop.training_charts import MAX_POINTS, charts_of, in_words, training_charts


def line(step: int, **values: float | None) -> dict[str, Any]:
    return {"step": step, "samples": 8 * step, "split": "train", **{f"train/{name}": v for name, v in values.items()}}


def names(lines: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {chart.title: [series.name for series in chart.series] for chart in charts_of(lines)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train/contrastive_loss", "contrastive loss"),
        ("train/lr", "learning rate"),
        ("train/grad_norm", "gradient norm"),
        ("train/effective_rank/image", "effective rank: image"),
        ("val/image_retrieval_recall@1", "image retrieval recall@1"),
        ("loss", "loss"),
    ],
)
def test_names_in_words(name: str, words: str) -> None:
    assert in_words(name) == words


def test_the_loss_comes_before_its_parts_and_no_name_says_its_chart_again() -> None:
    lines = [
        {**line(step, **{"anchor_loss": 0.5, "denoising_loss": 1.0, "loss": 1.5 - step, "effective_rank/text": 3.0,
                "effective_rank/image": 4.0, "grad_norm": 1.0, "lr": 0.1})}
        for step in (1, 2)
    ]  # fmt: skip
    assert names(lines) == {
        "Training loss": ["loss", "anchor loss", "denoising loss"],
        "Gradient norm": ["gradient norm"],
        "Learning rate": ["learning rate"],
        "Effective rank": ["text", "image"],
    }


def test_a_loss_of_one_part_is_one_curve_under_the_name_that_says_more() -> None:
    lines = [line(step, loss=2.0 / step, contrastive_loss=2.0 / step, grad_norm=1.0, lr=0.1) for step in (1, 2)]
    chart = charts_of(lines)[0]
    assert [(series.name, series.y) for series in chart.series] == [("contrastive loss", [2.0, 1.0])]


def test_scores_that_are_equal_throughout_are_two_curves() -> None:
    values = {"val/zero_shot/acc1": 0.5, "val/zero_shot/mean_per_class_recall": 0.5}
    lines = [{"step": step, "samples": step, "split": "val", "eval": "zero_shot", **values} for step in (1, 2)]
    assert names(lines)["During training: zero shot"] == ["acc1", "mean per class recall"]


def test_a_long_training_is_thinned_and_a_missing_value_is_a_gap(tmp_path: Path) -> None:
    lines = [line(step, loss=None if step % 2 else 1.0, grad_norm=1.0, lr=0.1) for step in range(1, 2 * MAX_POINTS)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    loss = training_charts(tmp_path / "metrics.jsonl")[0].series[0]
    assert len(loss.x) <= MAX_POINTS
    assert loss.x[:3] == [1, 3, 5]
    assert set(loss.y) == {None}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: not readable as metrics"):
        training_charts(tmp_path / "metrics.jsonl")
