"""Fine-tuning with `sampler: {balanced: label}`: the classes of a step are about equally many."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from eva_toy import context
from test_eva_finetune import encoder, stage
from vfm.data import DatasetSpec, Shard, TrainingData, open_dataset, write_index, write_tar
from vfm.models import build_vision, vision_preprocess
from vfm.plugin import LabeledDataset, UserError
from vfm_eva.finetune.labeled_images import MakeLabeled

CLASSES = [0] * 28 + [1] * 3 + [2]


def long_tail(folder: Path) -> LabeledDataset:
    """Write images of three classes, of which most are of the first."""
    rows = []
    for number, label in enumerate(CLASSES):
        buffer = BytesIO()
        Image.new("RGB", (32, 32), ["red", "lime", "blue"][label]).save(buffer, "PNG")
        rows.append((str(number), {"png": buffer.getvalue(), "cls": str(label).encode()}))
    folder.mkdir(parents=True)
    shards = [Shard.of(folder / "0.tar", write_tar(folder / "0.tar", rows))]
    spec = DatasetSpec(label_key="cls", class_names=["red", "lime", "blue"])
    return LabeledDataset.create(folder, num_samples=write_index(folder, shards, spec), class_names=spec.class_names)


def test_classes_are_drawn_equally_often_with_crops_of_their_own(tmp_path: Path) -> None:
    data = long_tail(tmp_path / "data")
    start = encoder(tmp_path / "encoder")
    balanced = stage(loading={"sampler": {"balanced": "label"}}, global_batch_size=32)
    balanced.run(context(tmp_path / "run", encoder=start, train=data))
    source = open_dataset(data)
    make = MakeLabeled.of(vision_preprocess(build_vision("eva02_pico_patch8_32", seed=0)), (0.3, 1.0), 0.5, None)
    steps = list(TrainingData.of(balanced, source, make).steps(0, 12))
    labels = Counter(label for step in steps for batch in step for label in batch.inputs.labels.tolist())
    assert all(labels[label] == pytest.approx(128, abs=24) for label in range(3)), labels
    seeds = [seed for step in steps for batch in step for seed in batch.inputs.erasing_seeds.tolist()]
    assert len(set(seeds)) == len(seeds)  # the single image of a class is in a step several times


def test_columns_that_the_data_lack_are_refused_before_the_training(tmp_path: Path) -> None:
    data = long_tail(tmp_path / "data")
    with pytest.raises(UserError, match=r"sampler: expected a column of the data, label .*, got 'site'"):
        TrainingData.of(stage(loading={"sampler": {"balanced": "site"}}), open_dataset(data), MakeLabeled)  # type: ignore[arg-type]
