"""Several processes share an evaluation: the files are those of one process, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from annotated_world import bright_parts, read
from dense_toy import checkpoint
from eval_processes import evaluate, evaluate_in
from eval_world import NAMES, labeled, png, pool, tiny_clip
from vfm.data.choices.choices import Choice, write_choices
from vfm.data.videos.stages import Videos
from vfm.interfaces import AnnotatedImages, Context
from vfm.train import DistributedWorld
from vfm.train.parallel.sharing import in_batches, leave_to_first, of_all, own_share, sharing
from video_files import encode, grey_frames, write
from video_predictor import make_classifier

READING = {"micro_batch_size": 3, "max_bad_fraction": 0.4}
FEATURES = {"models": ["one", "other"], "data": "photos", **READING}
SCENES = {"data": "scenes", "num_resamples": 100, "micro_batch_size": 2, "max_bad_fraction": 0.4}
STAGES: list[dict[str, Any]] = [
    {"kind": "eval.zero_shot", "name": "zero_shot", **FEATURES},
    {"kind": "eval.knn", "name": "knn", "train": "known", **FEATURES},
    {"kind": "eval.linear_probe", "name": "probe", "train": "known", "penalties": [0.01], "max_iter": 20, **FEATURES},
    {"kind": "eval.linear_probe", "name": "sgd", "solver": "sgd", "epochs": 2, "train": "known", **FEATURES},
    {"kind": "eval.few_shot", "name": "few", "train": "known", "shots": [1], "start": "zero_shot", **FEATURES},
    {"kind": "eval.retrieval", "name": "retrieval", **FEATURES, "data": "pool", "micro_batch_size": 2},
    {"kind": "eval.mmvp_vlm", "name": "pairs", **FEATURES, "data": "pairs", "diva_scoring": True},
    {"kind": "eval.choices", "name": "choices", **FEATURES, "data": "pairs"},
    {"kind": "eval.video", "name": "videos", "models": ["greys"], "data": "clips", "num_crops": 1},
    {"kind": "eval.attentive_probe", "name": "attentive", "train": "known", "lrs": [0.01], "epochs": 1, **FEATURES},
    {"kind": "eval.detection", "name": "detection", "models": ["bright"], **SCENES},
    {"kind": "eval.segmentation", "name": "segmentation", "models": ["bright"], **SCENES},
    {"kind": "eval.panoptic", "name": "panoptic", "models": ["bright"], **SCENES},
    {"kind": "eval.dense_probe", "name": "dense", "models": ["one", "other"], "steps": 4, "folds": 2, **SCENES},
    {"kind": "eval.dense_probe", "name": "patches", "models": ["one"], "neighbours": {}, "train": "scenes", **SCENES},
    {"kind": "eval.open_segmentation", "name": "open", "models": ["one", "other"], "templates": ["a {}"], **SCENES},
]  # fmt: skip
REFUSED: list[dict[str, Any]] = [
    {"kind": "eval.zero_shot", "name": "bad", **FEATURES, "max_bad_fraction": 0.0},
    {"kind": "eval.zero_shot", "name": "nan", **FEATURES, "models": ["one", "damaged"]},
    {"kind": "eval.attentive_probe", "name": "large", "train": "known", "max_cache_gib": 1e-9, **FEATURES},
    {"kind": "eval.panoptic", "name": "broken", "models": ["bright"], **SCENES, "max_bad_fraction": 0.0},
    {"kind": "eval.knn", "name": "knn-after", "train": "known", **FEATURES},  # the processes still go together
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluate in one process and in three, whose shares differ."""
    root = tmp_path_factory.mktemp("shared")
    data = root / "data"
    for name, seed in {"one": 0, "other": 1}.items():
        tiny_clip(data / name, seed)
    damaged = tiny_clip(data / "damaged", 2)
    _damage(damaged.path / "open_clip_model.safetensors")
    labeled(data / "photos", 22, broken=[4, 5, 13], classes=4)
    labeled(data / "known", 32, broken=[7], classes=4)
    pool(data / "pool")
    pairs = [
        Choice(
            f"pair{n}", "ab"[n % 2], [png(NAMES[n % 7]), b"" if n == 4 else png(NAMES[(n + 1) % 7])], ["a", "b"], [0, 1]
        )
        for n in range(8)
    ]
    write_choices(data / "pairs", pairs)
    for n in range(5):
        frames = grey_frames(8 + n) if n % 2 else grey_frames(9)[::-1]
        write(data / "mp4" / ("darker", "brighter")[n % 2] / f"{n}.mp4", encode(np.ascontiguousarray(frames)))
    (data / "clips").mkdir()
    Videos(kind="data.videos", name="v", path=str(data / "mp4")).run(Context("v", data / "clips", data, {}))
    make_classifier(data / "greys")
    bright_parts(root)
    (read(root / "scenes", root / "set").path).rename(data / "scenes")
    checkpoint(data / "bright", AnnotatedImages.load(data / "scenes"))
    (root / "set/train/3.png").write_bytes(b"damaged")
    inputs = {path.name: str(path) for path in data.iterdir()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    evaluate(root, "1", [*STAGES, *REFUSED], inputs)
    torch.set_num_threads(threads)
    evaluate_in(3, root, "3", [*STAGES, *REFUSED], inputs)
    return root


def _damage(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["text_projection"][:] = float("nan")
    save_file(tensors, weights)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [3])
@pytest.mark.parametrize("stage", [stage["name"] for stage in STAGES])
def test_the_files_of_an_evaluation_are_those_of_one_process(root: Path, stage: str, number: int) -> None:
    expected, found = files(root / "1" / stage), files(root / str(number) / stage)
    assert expected.keys() == found.keys()
    assert any(name.startswith("results/") for name in expected)
    assert [name for name in expected if expected[name] != found[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3])
def test_bad_samples_of_any_process_are_counted_once(root: Path, number: int) -> None:
    def bad(stage: str) -> Any:
        return json.loads((root / str(number) / stage / "bad.json").read_text())

    assert bad("zero_shot") == {"unreadable_image": 3}
    assert bad("knn") == {"unreadable_image": 4}
    assert bad("pairs") == bad("choices") == {"unreadable_image": 1}
    assert bad("retrieval") == {}
    for stage in ("detection", "segmentation", "panoptic", "dense", "open"):
        assert bad(stage) == {"unreadable_image": 1}, stage


@pytest.mark.slow
@pytest.mark.parametrize("number", [3])
@pytest.mark.parametrize("stage", ["bad", "nan", "large", "broken"])
def test_all_processes_end_with_the_message_of_one(root: Path, stage: str, number: int) -> None:
    expected = (root / "1" / f"{stage}-0.txt").read_text()
    assert [(root / str(number) / f"{stage}-{rank}.txt").read_text() for rank in range(number)] == [expected] * number
    assert files(root / str(number) / "knn-after") == files(root / "1" / "knn-after")


def test_one_process_computes_every_batch_and_leaves_nothing() -> None:
    with sharing(DistributedWorld(torch.device("cpu"))):
        batches = list(in_batches(range(7), 3))
        assert batches == [[0, 1, 2], [3, 4, 5], [6]]
        assert list(of_all(map(sum, own_share(batches)))) == [3, 12, 6]
        leave_to_first()
