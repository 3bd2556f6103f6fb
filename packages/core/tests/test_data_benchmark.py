"""CLIP_benchmark folders: splits, order of shards, class names and templates beside them, several labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_world import NAMES, png, run_in
from vfm.base import UserError
from vfm.data import open_dataset, write_tar
from vfm.data.labeled.stages import Digits, Labeled, Tagged
from vfm.data.labeled.tags import read_tags
from vfm.data.pairs.stages import Pairs
from vfm.data.prompts.clip_benchmark import names_and_templates
from vfm.interfaces import ImageDataset, LabeledDataset, Pool, Preflight, TaggedImages

NOTHING = Preflight({}, {})


def folder(
    place: Path, member: str, values: Sequence[bytes], *, split: str = "test", shards: int = 2, **beside: str
) -> Path:
    """Write a CLIP_benchmark folder of coloured images, distributed over the shards in turn."""
    (place / split).mkdir(parents=True, exist_ok=True)
    size = -(-len(values) // shards)
    for number in range(shards):
        rows = list(enumerate(values))[number * size : (number + 1) * size]
        samples = [(f"s{n:07d}", {"webp" if n % 2 else "png": png(NAMES[n % 7]), member: value}) for n, value in rows]
        write_tar(place / split / f"{number}.tar", samples)
    (place / split / "nshards.txt").write_text(f"{shards}\n")
    for name, text in beside.items():
        (place / f"{name}.txt").write_text(text)
    return place


def classes(place: Path, labels: Sequence[int] = tuple(range(7)), **more: Any) -> Path:
    values = [str(label).encode() for label in labels]
    names = more.pop("classnames", "\n".join(NAMES) + "\n")
    templates = "a {c} thing.\n{c}, seen from afar\n"
    return folder(place, "cls", values, classnames=names, zeroshot_classification_templates=templates, **more)


def labeled(path: Path, **fields: Any) -> Labeled:
    return Labeled(kind="data.labeled", name="set", path=str(path), **fields)


def test_split_is_read_in_shard_order_with_names_and_templates_beside_it(tmp_path: Path) -> None:
    place = classes(tmp_path / "wds_colours", [n % 7 for n in range(24)], shards=12)
    classes(place, [3, 3], split="train")
    made = labeled(place).run(run_in(tmp_path / "a").ctx)
    assert isinstance(made, LabeledDataset)
    assert (made.num_samples, made.class_names) == (24, NAMES)
    assert made.templates == ["a {} thing.", "{}, seen from afar"]
    assert open_dataset(made).keys == [f"s{n:07d}" for n in range(24)]  # not 0, 1, 10, 11, 2 as in a directory listing
    assert labeled(place, split="train").run(run_in(tmp_path / "b").ctx).num_samples == 2
    assert labeled(place / "train").run(run_in(tmp_path / "c").ctx).num_samples == 2


def test_retrieval_folder_has_one_caption_per_line(tmp_path: Path) -> None:
    values = [f"a {name} one\nthe {name}".encode() for name in NAMES]
    place = folder(tmp_path / "wds_pairs", "txt", values, dataset_type="retrieval\n")
    pool = Pairs(kind="data.pairs", name="pool", path=str(place)).run(run_in(tmp_path / "made").ctx)
    assert isinstance(pool, Pool)
    assert open_dataset(pool)[1].texts == {"en": ["a green one", "the green"]}


def test_several_labels_per_image_are_read_from_arrays_and_lists(tmp_path: Path) -> None:
    truth = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    arrays = []
    for row in truth:
        buffer = io.BytesIO()
        np.save(buffer, row)
        arrays.append(buffer.getvalue())
    beside = {"classnames": "red\ngreen\nblue\n", "dataset_type": "multilabel"}
    place = folder(tmp_path / "wds_tags", "npy", arrays, **beside)
    lists = [b'{"has": ["red", 2]}', b'{"has": []}', b'{"has": ["green"]}', b'{"has": [0, 1, 2]}']
    other = folder(tmp_path / "lists", "json", lists, **beside)
    for path, key in ((place, "npy"), (other, "json.has")):
        stage = Tagged(kind="data.tagged", name="tags", path=str(path), labels_key=key)
        stage.preflight(NOTHING)
        made = stage.run(run_in(tmp_path / f"made-{key}").ctx)
        assert isinstance(made, TaggedImages)
        moved = made.path.rename(tmp_path / f"published-{key}")  # as when a run publishes it
        made = TaggedImages.load(moved)
        assert read_tags(made).tolist() == truth.astype(bool).tolist()
        assert made.num_images == [2, 2, 2]
        assert len(open_dataset(ImageDataset.load(made.linked(made.data)))) == 4


def test_label_array_of_another_length_than_the_class_names_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(4))
    place = folder(tmp_path / "tags", "npy", [buffer.getvalue()] * 4, classnames="red\ngreen\nblue")
    stage = Tagged(kind="data.tagged", name="tags", path=str(place))
    with pytest.raises(UserError, match=r"an array of \(4,\) for 3 classes"):
        stage.preflight(NOTHING)
    with pytest.raises(UserError, match=r"4 labels do not fit the 3 class names; the first is .*0\.tar:s0000000"):
        stage.model_copy(update={"verify": False}).run(run_in(tmp_path / "made").ctx)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, np.ones(3))
    return buffer.getvalue()


def words() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(["red", "green", "blue"]))
    return buffer.getvalue()


def test_samples_that_are_not_read_for_the_index_are_counted_when_their_labels_are(tmp_path: Path) -> None:
    place = folder(tmp_path / "tags", "npy", [b"", b"", words(), words()], classnames="red\ngreen\nblue")
    stage = Tagged(kind="data.tagged", name="tags", path=str(place), verify=False, max_bad_fraction=0.5)
    with pytest.raises(UserError, match=r"4 of 4 samples are bad: missing_label \(4\)"):
        stage.run(run_in(tmp_path / "made").ctx)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("flags", [npz(), words(), b"PK\3\4", b""])
def test_labels_that_are_no_array_of_flags_are_counted(tmp_path: Path, flags: bytes, verify: bool) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([1, 0, 1]))
    place = folder(tmp_path / "tags", "npy", [buffer.getvalue(), flags], classnames="red\ngreen\nblue")
    stage = Tagged(kind="data.tagged", name="tags", path=str(place), verify=verify, max_bad_fraction=0.5)
    ctx = run_in(tmp_path / "made").ctx
    made = stage.run(ctx)
    assert isinstance(made, TaggedImages)
    assert (ctx.bad, made.num_images) == ({"missing_label": 1}, [1, 0, 1])
    assert read_tags(made).tolist() == [[True, False, True], *([[False] * 3] if not verify else [])]


def test_one_label_out_of_range_stops_the_stage(tmp_path: Path) -> None:
    place = classes(tmp_path / "set", [n % 7 for n in range(99)] + [7])
    with pytest.raises(UserError, match=r"1 labels do not fit the 7 class names; .*1\.tar:s0000099 \(label 7 of"):
        labeled(place, max_bad_fraction=0.5).run(run_in(tmp_path / "made").ctx)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda p: (p / "test/1.tar").unlink(), "1.tar: no such file; nshards.txt counts 2 shards"),
        (lambda p: (p / "test/nshards.txt").write_text("two"), "expected a number of shards, got 'two'"),
        (lambda p: (p / "test").rename(p / "train"), "no split 'test'; choose from train"),
        (lambda p: (p / "classnames.txt").write_text("red\n\nblue\n"), "the name of class 1 is empty"),
        (lambda p: (p / "classnames.txt").unlink(), "no classnames.txt next to it; give class_names"),
        (lambda p: (p / "zeroshot_classification_templates.txt").write_text("a\n"), "has no {} for the class name"),
    ],
)
def test_errors_of_a_benchmark_folder_are_raised_in_preflight(tmp_path: Path, spoil: Any, line: str) -> None:
    place = classes(tmp_path / "set")
    spoil(place)
    with pytest.raises(UserError) as caught:
        labeled(place).preflight(NOTHING)
    assert line in str(caught.value)


def test_other_class_names_change_the_id(tmp_path: Path) -> None:
    place = classes(tmp_path / "set")
    assert str(place / "classnames.txt") in labeled(place / "test").sources()


def test_names_and_templates_come_from_the_clip_benchmark_package(tmp_path: Path) -> None:
    pytest.importorskip("clip_benchmark")
    names, templates = names_and_templates("mnist")
    assert (names, templates) == ([str(n) for n in range(10)], ['a photo of the number: "{}".'])
    assert len(names_and_templates("imagenet1k/ar")[0]) == 1000
    own, cifar = names_and_templates("vtab/cifar10")
    assert (own, len(cifar)) == ([], 18)  # torchvision has its names
    with pytest.raises(UserError, match="clip_benchmark lists no dataset 'minst'; did you mean 'mnist'"):
        names_and_templates("minst")
    place = classes(tmp_path / "set", [0, 1], shards=1)
    made = labeled(place, names_of="mnist").run(run_in(tmp_path / "made").ctx)
    assert made.class_names == names
    assert any(file.endswith("en_classnames.json") for file in labeled(place, names_of="mnist").sources())


def test_digits_equal_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    parts = [Digits(kind="data.digits", name="d", split=s).run(run_in(tmp_path / s).ctx) for s in ("train", "test")]
    found = [open_dataset(part)[n] for part in parts for n in range(part.num_samples)]
    assert [sample.label for sample in found] == load_digits().target.tolist()
    from vfm.data.samples.images import decode_image

    grey = np.asarray(decode_image(found[900].image, "digit"))[..., 0]
    assert np.abs(grey / 255 * 16 - load_digits().images[900]).max() < 0.05


def test_caption_file_with_several_languages(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("red"))
    (tmp_path / "a.txt").write_text("A cat.\nde.utf8=Eine Katze.\nfr.utf8=Un chat.\n", encoding="utf-8")
    texts = {"en": "txt.first", "de": "txt.de.utf8", "all": "txt.lines", "it": "txt.it.utf8"}
    stage = Pairs(kind="data.pairs", name="p", path=str(tmp_path), texts=texts)
    [sample] = [open_dataset(stage.run(run_in(tmp_path / "made").ctx))[0]]
    assert sample.texts["en"] == ["A cat."]
    assert sample.texts["de"] == ["Eine Katze."]
    assert len(sample.texts["all"]) == 3
    assert "it" not in sample.texts
