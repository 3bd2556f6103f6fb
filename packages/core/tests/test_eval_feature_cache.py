"""The feature cache: equal numbers, no image decoded twice, never another model's features."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from eval_world import NAMES, labeled, png, pool, run_in, tiny_clip
from vfm.data import BadSample, DatasetSpec, Sample, open_dataset, write_index
from vfm.data.index.index import read_index
from vfm.data.tables.image_list import ImageEntry, write_image_lists
from vfm.eval import Encoded, encode_dataset, load_encoder
from vfm.eval.classify.stages import ZeroShot
from vfm.eval.encode.feature_cache import FOLDER, PUBLISHED, FeatureCache
from vfm.interfaces import ClipCheckpoint, ImageDataset
from vfm.models import load_clip
from vfm.plugin import ReadSettings
from vfm.storage.integrity import seal

CPU = torch.device("cpu")


def published(data: ImageDataset) -> ImageDataset:
    """Mark a dataset as published, as a run does in the store."""
    (data.path / PUBLISHED).write_bytes(seal({"identity": data.path.name, "files": {}}))
    return data


def encode(data: ImageDataset, *clips: ClipCheckpoint, language: str | None = None) -> Encoded:
    def check(sample: Sample) -> None:
        if language and not sample.texts.get(language):
            raise BadSample("missing_caption", sample.key)

    encoders = {f"m{n}": load_encoder(clip, CPU) for n, clip in enumerate(clips)}
    return encode_dataset(
        run_in(data.path / "work").ctx, open_dataset(data), encoders, ReadSettings(4, 0.9), check=check
    )


def spoil(data: ImageDataset) -> None:
    """Damage every image file without changing its size or time: decoding one now fails."""
    tar = data.path / "0.tar"
    status = tar.stat()
    tar.write_bytes(tar.read_bytes().replace(b"\x89PNG", b"spoi"))
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_next_evaluation_reads_the_cached_features(tmp_path: Path) -> None:
    data, clip = published(labeled(tmp_path / "data", broken=[3])), tiny_clip(tmp_path / "clip", 0)
    first = encode(data, clip)
    spoil(data)
    again = encode(data, clip)
    assert torch.equal(first.features["m0"], again.features["m0"])
    assert (first.numbers, first.samples, first.digests) == (again.numbers, again.samples, again.digests)
    assert 3 not in again.numbers


def test_another_model_or_preprocessing_is_encoded_again(tmp_path: Path) -> None:
    data, clip = published(labeled(tmp_path / "data")), tiny_clip(tmp_path / "clip", 0)
    encode(data, clip)
    both = encode(data, clip, tiny_clip(tmp_path / "other", 1))
    assert not torch.equal(both.features["m0"], both.features["m1"])
    assert torch.equal(
        both.features["m1"], encode(labeled(tmp_path / "plain"), tiny_clip(tmp_path / "o", 1)).features["m0"]
    )
    keys = {load_encoder(clip, CPU, mode).features_key for mode in (None, "shortest", "squash", "longest")}
    assert len(keys) == 3  # its own is shortest
    spoil(data)
    with pytest.raises(ValueError, match="cannot be used"):
        encode(data, tiny_clip(tmp_path / "third", 2))


def test_changed_image_files_are_encoded_again(tmp_path: Path) -> None:
    data, clip = published(labeled(tmp_path / "data")), tiny_clip(tmp_path / "clip", 0)
    first = encode(data, clip)
    other = labeled(tmp_path / "other", classes=6).path / "0.tar"  # with the same names and size
    tar = data.path / "0.tar"
    tar.write_bytes(other.read_bytes().ljust(tar.stat().st_size, b"\0")[: tar.stat().st_size])
    again = encode(data, clip)
    assert again.digests != first.digests
    assert not torch.equal(again.features["m0"], first.features["m0"])


def test_changes_of_listed_image_files_are_noticed(tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    picture.write_bytes(png("red"))
    spec = DatasetSpec(label_key="label", class_names=NAMES)
    shards = list(write_image_lists(tmp_path / "data", [ImageEntry("red", str(picture), label=0)], spec))
    write_index(tmp_path / "data", shards, spec)
    states = [read_index(tmp_path / "data").state()]
    for change in (lambda: os.utime(picture, ns=(1, 1)), picture.unlink):
        change()
        states.append(read_index(tmp_path / "data").state())
    assert len(set(states)) == 3


def test_samples_that_one_evaluation_skipped_are_added_by_the_next(tmp_path: Path) -> None:
    data, clip = published(pool(tmp_path / "data")), tiny_clip(tmp_path / "clip", 0)
    tar = data.path / "0.tar"
    tar.write_bytes(tar.read_bytes().replace(b'{"de": "red auf deutsch"}', b'{"xx": "red auf deutsch"}'))
    german, all_of_them = encode(data, clip, language="de"), encode(data, clip)
    assert (len(german.numbers), len(all_of_them.numbers)) == (6, 7)
    plain = encode(pool(tmp_path / "plain"), clip)
    torch.testing.assert_close(all_of_them.features["m0"], plain.features["m0"])
    assert encode(data, clip, language="de").numbers == german.numbers


def test_unpublished_data_and_models_in_training_are_not_cached(tmp_path: Path) -> None:
    data, clip = labeled(tmp_path / "data"), tiny_clip(tmp_path / "clip", 0)
    encode(data, clip)
    assert not (data.path / FOLDER).exists()
    stage = ZeroShot(kind="eval.zero_shot", name="z", models=[], data="data")
    stage.scores(run_in(tmp_path / "out", data=published(data)).ctx, load_clip(clip))
    assert not (data.path / FOLDER).exists()


def test_damaged_cache_is_written_again(tmp_path: Path) -> None:
    data, clip = published(labeled(tmp_path / "data")), tiny_clip(tmp_path / "clip", 0)
    first = encode(data, clip)
    [file] = (data.path / FOLDER).iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(encode(data, clip).features["m0"], first.features["m0"])
    assert file.read_bytes() == whole


@pytest.mark.parametrize("width", [0, 3])
def test_samples_are_added_at_any_width(width: int) -> None:
    kept = FeatureCache()
    kept.update([2, 0], [b"c" * 64, b"a" * 64], torch.arange(2 * width).view(2, width).float())
    kept.update([1], [b"b" * 64], torch.full((1, width), 9.0))
    assert kept.rows([0, 1, 2]).shape == (3, width)
    assert kept.rows([1, 2]).tolist() == [[9.0] * width, list(range(width))]
