"""Results as data frames, by pandas itself: the same columns and rows as the Arrow table, whatever made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import vfm
from dense_toy import checkpoint
from eval_world import NAMES, labeled, png, tiny_clip
from test_cli_dense import FACTS
from vfm.api.results import Results
from vfm.interfaces import AnnotatedImages


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model, a detector, labelled images and one image."""
    here = tmp_path_factory.mktemp("pandas")
    tiny_clip(here / "clip", 0)
    labeled(here / "labeled", 21, broken=[3])
    checkpoint(here / "detector", AnnotatedImages.create(here / "data", **FACTS), tasks=["boxes", "masks"])
    pixels = np.full((12, 20, 3), 20, dtype=np.uint8)
    pixels[2:7, 8:14] = 220
    Image.fromarray(pixels).save(here / "scene.png")
    (here / "red.png").write_bytes(png(NAMES[0], 1))
    return here


def frame_of(results: Results) -> pd.DataFrame:
    """The data frame, after comparing it with the table."""
    frame, table = results.to_pandas(), results.table()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == table.column_names
    assert len(frame) == len(table) > 0
    for name in table.column_names:
        plain = [value.tolist() if isinstance(value, np.ndarray) else value for value in frame[name]]
        same = [
            b is None if np.isscalar(a) and pd.isna(a) else a == b
            for a, b in zip(plain, table[name].to_pylist(), strict=True)
        ]
        assert all(same), name
    return frame


def test_runs_and_evaluations(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = {"stages": [{"kind": "shapes.classes", "name": "val", "num_samples": 120}]}
    run = vfm.run(made, progress=False)
    scores = vfm.evaluate([models / "clip"], run["val"], "zero_shot", progress=False)
    frame = frame_of(scores)
    assert {"metric", "value", "n"} <= set(frame.columns)
    assert frame["value"].between(0, 1).any()


def test_embeddings_and_predictions(models: Path) -> None:
    vectors = vfm.embed(models / "clip", models / "labeled", progress=False)
    frame = frame_of(vectors)
    assert np.stack(frame["embedding"]).shape == vectors.vectors.shape
    frame_of(vfm.predict(models / "clip", [models / "red.png"], ["red", "blue"]))


def test_objects_of_a_detector(models: Path) -> None:
    frame = frame_of(vfm.predict(models / "detector", models / "scene.png", min_score=0.0))
    assert (frame["right"] > frame["left"]).all()


def test_trainings(tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(torch.rand(8, 3), torch.rand(8, 1))
    model = torch.nn.Linear(3, 1)
    fitted = vfm.fit(
        model,
        data,
        loss=lambda net, batch: (net(batch[0]) - batch[1]).square().mean(),
        steps=3,
        folder=tmp_path / "fit",
        progress=False,
    )
    assert frame_of(fitted)["train/loss"].notna().all()
