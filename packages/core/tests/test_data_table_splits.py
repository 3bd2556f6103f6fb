"""Parquet files of several splits in one folder: which names are splits, and which split a stage reads."""

from itertools import chain

import pyarrow.parquet as pq
import pytest

from data_samples import encoded
from test_data_saved_datasets import pictures, run
from vfm.base import UserError
from vfm.data import open_dataset
from vfm.data.labeled.stages import Labeled
from vfm.data.layouts.layout import find_layout
from vfm.data.pairs.stages import Pairs
from vfm.data.tar.writer import write_tar
from vfm.flow.requests.data_options import with_data_options
from vfm.flow.requests.datasets import fields_for, import_fields


def tables(folder, *names):
    """Write a small table with labels under each name."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pictures(2 * number, 2 * number + 1).drop(["caption"]), folder / name)
    return str(folder)


@pytest.mark.parametrize("place", ["", "/data"])
def test_parquet_of_the_hub_is_read_by_split(tmp_path, place):
    folder = tmp_path / f"repository{place}"
    folder.mkdir(parents=True)
    (tmp_path / "repository/README.md").write_text("a data card")
    pq.write_table(pictures(0, 1), folder / "train-00000-of-00002.parquet")
    pq.write_table(pictures(2), folder / "train-00001-of-00002.parquet")
    for path in (tmp_path / "repository", folder):
        pool, _ = run(Pairs(name="pool", path=str(path)), tmp_path)
        assert len(open_dataset(pool)) == 3
    pq.write_table(pictures(3, 4), folder / "test-00000-of-00001.parquet")
    for path in (tmp_path / "repository", folder):
        with pytest.raises(
            UserError, match=r"of 2 splits; give .*/test-00000-of-00001.parquet' or '.*/train-\*.parquet'$"
        ):
            Pairs(name="pool", path=str(path)).preflight(None)
        val, train = import_fields(str(path))
        assert val["path"] == f"{folder}/test-00000-of-00001.parquet"
        pool, _ = run(Pairs(name="pool", path=train["path"]), tmp_path)
        assert len(open_dataset(pool)) == 3
        made, _ = run(Pairs(name="pool", path=f"{folder}/test-*.parquet"), tmp_path)
        assert len(open_dataset(made)) == 2
        # The default of `split` is test.
        labeled, _ = run(Labeled(name="data", path=str(path), class_names=["cat", "dog"]), tmp_path)
        assert labeled.num_samples == 2


def test_other_parquet_of_the_hub_is_not_taken_for_a_split(tmp_path):
    for number, name in enumerate(("en", "de")):
        pq.write_table(pictures(number), tmp_path / f"{name}-00000-of-00001.parquet")
    assert len(find_layout(str(tmp_path), "auto", None, "train").paths) == 2
    pq.write_table(pictures(2), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"of 3 splits; give .*/de-0.*parquet' or .*/en-0.*parquet' or .*/train-0"):
        find_layout(str(tmp_path), "auto", None)


def test_the_only_split_of_parquet_is_not_used_for_another(tmp_path):
    pq.write_table(pictures(0, 1), tmp_path / "test-00000-of-00001.parquet")
    stage = Labeled(name="data", path=str(tmp_path), class_names=["cat", "dog"], split="train")
    with pytest.raises(UserError, match=r"Parquet without a split 'train'; set split: test$"):
        run(stage, tmp_path)


def test_images_beside_a_folder_data_with_parquet_are_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "0.png").write_bytes(encoded(0))
    pq.write_table(pictures(1), tmp_path / "data/features.parquet")
    assert find_layout(str(tmp_path), "auto", None).kind == "folder"


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train.parquet"], ["test.parquet"]),
        (["train_0.parquet", "train_1.parquet"], ["test_0.parquet"]),
        (["train.0.parquet", "train.1.parquet"], ["validation.0.parquet"]),
        (["train2017.parquet"], ["val2017.parquet"]),
        (["Train.parquet"], ["Test.parquet"]),
        (["train-0.parquet"], ["val-0.parquet"]),
        (["Train-00000-of-00002.parquet", "Train-00001-of-00002.parquet"], ["Test-00000-of-00001.parquet"]),
        (["mnist_train_0.parquet", "mnist_train_1.parquet"], ["mnist_test.parquet"]),
        (["mnist-train-00000-of-00001.parquet"], ["mnist-test-00000-of-00001.parquet"]),
        (["en.train.parquet", "fr.train.parquet"], ["en.val.parquet"]),
    ],
)
def test_usual_names_without_a_hyphen_are_splits_too(tmp_path, train, test):
    folder = tables(tmp_path, *train, *test)
    with pytest.raises(UserError, match="Parquet of 2 splits; give the files of one, '"):
        Pairs(name="pool", path=folder).preflight(None)
    chosen = next(name for name in ("test", "validation", "val") if name in test[0].lower())
    assert find_layout(folder, "auto", None, chosen).paths == [f"{folder}/{name}" for name in test]
    of_test, of_train = import_fields(folder)
    assert find_layout(of_test["path"], "auto", None).paths == [f"{folder}/{name}" for name in test]
    assert find_layout(of_train["path"], "auto", None).paths == [f"{folder}/{name}" for name in train]


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["train_0.parquet", "train_1.parquet", "val.parquet"], ["train_*.parquet", "val.parquet"]),
        (["test.9.parquet", "test.10.parquet", "train.parquet"], ["test.*.parquet", "train.parquet"]),
        (["a_val.parquet", "b_val.parquet", "c_train.parquet"], ["{a_val.parquet,b_val.parquet}", "c_train.parquet"]),
    ],
)
def test_the_error_gives_patterns_of_the_files_of_each_split(tmp_path, names, patterns):
    folder = tables(tmp_path, *names)
    with pytest.raises(UserError) as caught:
        find_layout(folder, "auto", None)
    assert str(caught.value).endswith(" or ".join(f"'{folder}/{pattern}'" for pattern in patterns))
    found = [find_layout(f"{folder}/{pattern}", "auto", None).paths for pattern in patterns]
    assert sorted(chain.from_iterable(found)) == sorted(f"{folder}/{name}" for name in names)


@pytest.mark.parametrize(
    "names",
    [
        ["trainer.parquet", "training_notes.parquet", "test.parquet"],
        ["part-0.parquet", "train.parquet"],
        ["invalid.parquet", "valid.parquet"],
        ["00000.parquet", "00001.parquet"],
        ["train_de-00000-of-00001.parquet", "train_en-00000-of-00001.parquet"],
        ["bullet_train.parquet", "steam_train.parquet", "strain.parquet"],
        ["contest.parquet", "mnist_train.parquet"],
    ],
)
@pytest.mark.parametrize("split", [None, "test"])
def test_other_names_are_no_splits(tmp_path, names, split):
    folder = tables(tmp_path, *names)
    assert find_layout(folder, "auto", None, split).paths == sorted(f"{folder}/{name}" for name in names)


def test_a_split_that_is_set_is_read_alone(tmp_path):
    folder = tables(tmp_path, "extra.parquet", "train.parquet")
    assert find_layout(folder, "auto", None, "train").paths == [f"{folder}/train.parquet"]


def test_a_pattern_in_the_error_leaves_other_files_out(tmp_path):
    folder = tables(tmp_path, "test.parquet", "train.parquet", "train_1.parquet", "trainer.parquet")
    with pytest.raises(UserError, match=r" or '.*/\{train.parquet,train_1.parquet\}'$"):
        find_layout(folder, "auto", None)


def test_names_of_the_hub_that_begin_with_different_splits_are_not_mixed(tmp_path):
    folder = tables(tmp_path, "train_sft-00000-of-00001.parquet", "test_sft-00000-of-00001.parquet")
    with pytest.raises(UserError, match="Parquet of 2 splits"):
        find_layout(folder, "auto", None)
    assert find_layout(folder, "auto", None, "test_sft").paths == [f"{folder}/test_sft-00000-of-00001.parquet"]


def test_tables_about_folders_of_images_and_tables_beside_images_are_no_splits(tmp_path):
    folder = tables(tmp_path / "classes", "train.parquet", "test.parquet")
    for name in ("train/cat", "test/cat"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "0.png").write_bytes(encoded(0))
    assert find_layout(folder, "auto", None, "test").kind == "folder"
    folder = tables(tmp_path / "images", "data/train.parquet", "data/test.parquet")
    (tmp_path / "images/0.png").write_bytes(encoded(0))
    assert find_layout(folder, "auto", None).kind == "folder"


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "train.parquet", "val.parquet"])
def test_labelled_images_of_another_split_are_read_only_if_it_is_set(tmp_path, name):
    folder = tables(tmp_path, name)
    split = name[: name.index("-" if "-" in name else ".")]
    stage = Labeled(name="data", path=folder, class_names=["cat", "dog"])
    with pytest.raises(UserError, match=rf"Parquet without a split 'test'; set split: {split}$"):
        stage.preflight(None)
    made, _ = run(stage.model_copy(update={"split": split}), tmp_path)
    assert made.num_samples == 2
    # Commands write the split into their recipe.
    fields = {"kind": "data.labeled", "path": folder, "split": split}
    assert import_fields(folder) == (fields, None)
    assert fields_for("data.labeled", folder) == fields
    assert fields_for("data.images", folder) == {"kind": "data.images", "path": folder}


def test_an_option_that_makes_captions_labels_also_sets_the_split(tmp_path):
    pq.write_table(pictures(0, 1), tmp_path / "train.parquet")
    fields, _ = import_fields(str(tmp_path))
    assert fields == {"kind": "data.pairs", "path": str(tmp_path)}
    labeled = with_data_options(fields, {"label_key": "label"}, {"data.labeled": Labeled})
    assert labeled == {"kind": "data.labeled", "path": str(tmp_path), "split": "train", "label_key": "label"}


def test_tables_about_tars_are_not_taken_for_the_data(tmp_path):
    folder = tables(tmp_path, "train.parquet", "test.parquet")
    write_tar(tmp_path / "train.tar", [("0", {"png": encoded(0), "txt": b"a caption"})])
    assert import_fields(folder) == ({"kind": "data.pairs", "path": folder}, None)
