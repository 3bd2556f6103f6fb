"""Two processes that evaluate a model in training get the scores of one, bit for bit."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from annotated_world import bright_parts, read
from dense_toy import BrightParts
from eval_world import labeled, tiny_clip
from train_toy import fork, run_group
from vfm.data.annotated import AnnotatedSource
from vfm.eval import load_encoder
from vfm.eval.base import ReadSettings
from vfm.eval.dense.annotated_images import each_image
from vfm.eval.dense.stages import Detection
from vfm.eval.detection.detection import predict
from vfm.interfaces import AnnotatedImages, Context, Evaluation, Runtime, load_plugins, stage_types
from vfm.train import distributed
from vfm.train.loop.evaluations import run_evaluations, values_of
from vfm.train.parallel.sharing import sharing

SCENES = {"data": "scenes", "num_resamples": 100, "max_bad_fraction": 0.4}
DENSE: list[dict[str, Any]] = [{"kind": f"eval.{name}", **SCENES} for name in ("detection", "segmentation", "panoptic")]
CLIP: list[dict[str, Any]] = [
    {"kind": "eval.dense_probe", "steps": 4, "folds": 2, **SCENES},
    {"kind": "eval.open_segmentation", "templates": ["a {}"], **SCENES},
    {"kind": "eval.attentive_probe", "train": "photos", "data": "photos", "lrs": [0.01], "epochs": 1},
]


def evaluate(root: Path, folder: str) -> None:
    """Evaluate a model with a dense head and a CLIP model; the first process writes the scores."""
    known, found = stage_types(load_plugins()), {}
    encoder = load_encoder(tiny_clip(root / folder / os.environ.get("RANK", "0") / "clip", 0), torch.device("cpu"))
    dense = BrightParts(8, ["boxes", "masks", "semantic", "panoptic"])
    inputs = {name: root / "data" / name for name in ("scenes", "photos")}
    with distributed(Runtime(device="cpu")) as world:
        ctx = Context("training", root / folder, root / folder / "work", inputs)
        for model, tasks in ((dense, DENSE), (encoder, CLIP)):
            configs = [known[one["kind"]].model_validate({"name": one["kind"][5:], **one}) for one in tasks]
            evaluations = [config for config in configs if isinstance(config, Evaluation)]
            for evaluation, scores in run_evaluations(ctx, evaluations, model, world, values_of):
                found[evaluation.kind] = scores
        scenes = AnnotatedSource(AnnotatedImages.load(inputs["scenes"]))
        with sharing(world):
            objects = predict(Detection(name="detection", **SCENES), ctx, scenes, {"model": dense})["model"]
            keys = list(each_image(scenes, ReadSettings(), ctx, lambda number: scenes.keys[number], lambda key: ""))
        (root / folder / f"kept-{world.rank}.json").write_text(json.dumps([len(objects), keys]))
        if world.is_main:
            (root / folder / "scores.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_evaluate_a_model_in_training_as_one(tmp_path: Path) -> None:
    bright_parts(tmp_path)
    labeled(tmp_path / "data/photos", 16, classes=2)
    read(tmp_path / "scenes", tmp_path / "set").path.rename(tmp_path / "data/scenes")
    (tmp_path / "set/train/3.png").write_bytes(b"damaged")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    evaluate(tmp_path, "one")
    torch.set_num_threads(threads)
    run_group(__file__, str(tmp_path))
    expected = json.loads((tmp_path / "one/scores.json").read_text())
    assert expected.keys() == {one["kind"] for one in (*DENSE, *CLIP)}
    assert json.loads((tmp_path / "two/scores.json").read_text()) == expected
    kept = [json.loads((tmp_path / name).read_text()) for name in ("one/kept-0.json", "two/kept-0.json")]
    assert kept[0] == kept[1]
    num_objects, keys = kept[0]
    assert num_objects > 0
    assert all(key for _, key in keys)
    without = [[number, ""] for number, _ in keys]
    assert json.loads((tmp_path / "two/kept-1.json").read_text()) == [0, without]  # results would fill its memory


if __name__ == "__main__":
    torch.set_num_threads(1)
    fork(2, lambda: evaluate(Path(sys.argv[1]), "two"))
