"""`vfm eval`: the recipe that it writes, its result files, and one line for each mistake."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from cli_world import run_here
from eval_world import NAMES, pairs, png, sugarcrepe, tiny_clip
from test_data_benchmark import classes, folder
from vfm.data import write_tar
from vfm.models import build_vision, save_vision

TASKS = "zero_shot,knn"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CLIP models, an encoder, a root with data sets of suites, tars and class folders."""
    world = tmp_path_factory.mktemp("evaluated")
    for seed, name in enumerate(("old", "new")):
        tiny_clip(world / name, seed)
    save_vision(build_vision("vit_pico_patch8_32", seed=0, num_classes=0), world / "encoder")
    for name in ("wds_imagenetv2", "wds_vtab-dtd_test"):
        classes(world / "root" / name, [n % 7 for n in range(14)])
        classes(world / "root" / name, [n % 7 for n in range(28)], split="train")
    captions = [f"a {name} one\nthe {name}".encode() for name in NAMES]
    folder(world / "root/wds_flickr30k", "txt", captions, dataset_type="retrieval")
    for number, name in enumerate(NAMES * 2):
        place = world / "photos/test" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(name, number + 1))
    rows = [(name, {"png": png(name), "json": json.dumps({"en": name, "de": f"{name}!"}).encode()}) for name in NAMES]
    write_tar(world / "pairs.tar", rows)
    return world


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


def recipe_of(*words: str) -> dict[str, dict[str, object]]:
    """The stages of the recipe that a command writes, by name."""
    done = run_here("eval", *words, "--dry-run")
    assert done.code == 0, done.err
    return {stage["name"]: stage for stage in yaml.safe_load(done.out)["stages"]}


def test_a_suite_evaluates_what_is_on_the_disk_and_lists_the_rest(here: Path) -> None:
    done = run_here("eval", "old", "new", "--suite", "diva29", "--root", "root", "--quiet", "--name", "suite")
    assert done.code == 0, done.err
    results = here / "store/runs/suite/results"
    record = json.loads((results / "imagenetv2-zero_shot_new.json").read_text())
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(record)  # clip_benchmark's own
    assert record["n"] == 14
    assert len(record["checkpoint_sha256"]) == len(record["data_sha256"]) == 64
    assert record["seconds"] >= 0
    assert set(record["ci95"]) == set(record["metrics"]) >= {"acc1", "mean_per_class_recall"}
    with (results / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == sorted(rows[0])
    assert {(row["dataset"], row["name"]) for row in rows} == {
        (name, model) for name in ("imagenetv2", "vtab-dtd", "flickr30k") for model in ("old", "new")
    }
    summary = json.loads((here / "store/runs/suite/artifacts/summary/artifact.json").read_text())
    names = {metric["name"] for metric in summary["metrics"]}
    assert names == {
        "mean of classification: 2 of 27 sets",
        "mean of retrieval: 1 of 2 sets",
        "mean of all groups: 3 of 29 sets",
    }
    [gain] = [test for test in summary["comparisons"] if "27" in test["metric"]]
    assert (gain["model"], gain["baseline"]) == ("new", "old")
    page = (here / "store/runs/suite/report.html").read_text()
    assert page.index("All data sets") < page.index("Left out") < page.index('id="results"')
    assert "hf download clip-benchmark/wds_vtab-cifar10" in page
    again = run_here("run", here / "store/runs/suite/recipe.yaml", "--quiet")  # the recipe runs by itself
    assert again.code == 0, again.err


def test_a_second_model_does_not_evaluate_the_first_again(here: Path) -> None:
    words = ("--data", "photos", "--store", "shared", "--quiet")
    assert run_here("eval", "old", *words).code == 0
    [kept] = list((here / "shared").glob("data.labeled-*/features/*.npz"))
    written = kept.stat().st_mtime_ns
    assert run_here("eval", "old", "new", *words).code == 0
    assert kept.stat().st_mtime_ns == written
    assert len(list((here / "shared").glob("data.labeled-*/features/*.npz"))) == 2


@pytest.mark.slow
def test_several_jobs_give_the_same_results_as_one(here: Path) -> None:
    words = ("old", "new", "--data", "photos", "--data", "root/wds_imagenetv2", "--tasks", "zero_shot,knn")
    found = []
    for jobs in (1, 2):
        done = run_here("eval", *words, "--store", f"jobs{jobs}", "--jobs", jobs, "--out", f"out{jobs}")
        assert done.code == 0, done.err
        records = {file.name: json.loads(file.read_text()) for file in Path(f"out{jobs}").glob("*.json")}
        found.append({name: {**record, "seconds": None} for name, record in records.items()})
    assert found[0] == found[1]
    assert len(found[0]) == 6  # photos have no training images


def test_results_use_the_current_names_of_models(here: Path) -> None:
    for name in ("first", "second"):
        done = run_here("eval", f"{name}=old", "--data", f"{name}-photos=photos", "--store", "names", "--out", name)
        assert done.code == 0, done.err
        [record] = [json.loads(file.read_text()) for file in Path(name).glob("*.json")]
        assert (record["name"], record["dataset"]) == (name, f"{name}-photos")
    assert len(list((here / "names").glob("data.labeled-*/features/*.npz"))) == 1  # it was encoded once


def test_models_and_data_become_the_stages_that_import_them(here: Path) -> None:
    stages = recipe_of("before=old", "ViT-B-32,openai", "encoder", "--data", "photos", "--data", "de=pairs.tar")
    assert stages["before"] == {"kind": "models.clip", "name": "before", "source": "old"}
    assert stages["ViT-B-32-openai"]["pretrained"] == "openai"
    assert stages["photos"] == {"kind": "data.labeled", "name": "photos", "path": "photos/test"}
    assert stages["de"]["kind"] == "data.pairs"
    assert stages["photos-zero_shot"]["models"] == ["before", "ViT-B-32-openai"]  # the encoder has no text tower
    assert [gap["title"] for gap in stages["summary"]["missing"]] == ["photos, zero_shot", "de, retrieval"]  # type: ignore[index, attr-defined]


def test_probes_use_the_training_split_beside_the_data_or_the_given_one(here: Path) -> None:
    stages = recipe_of("encoder", "--suite", "diva29", "--root", "root", "--tasks", "knn,linear_probe")
    assert stages["imagenetv2-train"]["split"] == "train"
    assert stages["vtab-dtd-knn"]["train"] == "vtab-dtd-train"
    stages = recipe_of("encoder", "--data", "photos", "--train", "root/wds_imagenetv2", "--tasks", "knn")
    learnt = stages[str(stages["photos-knn"]["train"])]
    assert (learnt["path"], learnt["split"]) == ("root/wds_imagenetv2", "train")  # never the test split


def test_training_images_are_indexed_only_for_tasks_that_read_them(here: Path) -> None:
    words = ("old", "--suite", "diva29", "--root", "root", "--tasks")
    assert "imagenetv2-train" in recipe_of(*words, "zero_shot,knn")
    assert not [name for name in recipe_of(*words, "zero_shot") if name.endswith("-train")]


def test_a_task_beside_those_of_the_suite_has_a_mean_of_its_own(here: Path) -> None:
    stages = recipe_of(
        "old", "--suite", "diva29", "--root", "root", "--tasks", "zero_shot,knn", "--resize", "model,squash"
    )
    scores, missing = stages["summary"]["scores"], stages["summary"]["missing"]
    assert isinstance(scores, list)
    assert isinstance(missing, list)
    ways = {score["report"]: (score["group"], score.get("way", "")) for score in scores}
    assert ways["imagenetv2-zero_shot"] == ("classification", "")
    assert ways["imagenetv2-zero_shot-squash"] == ("classification", "squash")
    assert ways["vtab-dtd-knn-squash"] == ("classification", "knn, squash")
    everywhere = [gap for gap in missing if gap["group"] == "classification" and "ways" not in gap]
    assert len(everywhere) == 25
    assert {tuple(gap["ways"]) for gap in missing if "ways" in gap} == {
        ("zero_shot", "zero_shot, squash"),  # of Flickr30k
        ("knn", "knn, squash"),
    }


def test_each_language_and_resize_mode_is_evaluated(here: Path) -> None:
    texts = "pairs.texts={en: json.en, de: json.de}"
    done = run_here(
        "eval", "old", "--data", "pairs.tar", "--language", "en", "--language", "de", "--set", texts, "--quiet",
        "--resize", "model,squash", "--name", "ways",
    )  # fmt: skip
    assert done.code == 0, done.err
    stages = recipe_of("old", "--data", "photos", "--data", "pairs.tar", "--language", "de")
    assert ("language" in stages["photos-zero_shot"], stages["pairs-retrieval-de"]["language"]) == (False, "de")
    files = {file.stem: json.loads(file.read_text()) for file in Path("store/runs/ways/results").glob("*.json")}
    assert set(files) == {f"pairs-retrieval-{end}_old" for end in ("de", "de-squash", "en", "en-squash")}
    assert files["pairs-retrieval-de-squash_old"]["language"] == "de"
    assert files["pairs-retrieval-de-squash_old"]["resize_mode"] == "squash"


def test_caption_choices_are_recognised_by_their_files(here: Path) -> None:
    (here / "swap.json").write_text(json.dumps({"0": {"filename": "a", "caption": "b", "negative_caption": "c"}}))
    (here / "sugarcrepe").mkdir(exist_ok=True)
    (here / "sugarcrepe/add.json").write_text("{}")
    line = {"image_0": "a", "image_1": "b", "caption_0": "c", "caption_1": "d"}
    (here / "winoground.jsonl").write_text(json.dumps(line) + "\n")
    (here / "own.jsonl").write_text('{"images": ["a.png"], "statements": ["a", "b"], "truth": [0, -1]}\n')
    for path in ("swap.json", "sugarcrepe", "winoground.jsonl", "own.jsonl"):
        stages = recipe_of("old", "--data", f"items={path}")
        assert (stages["items"]["kind"], stages["items"]["path"]) == ("data.choices", path)
        assert "items-choices" in stages
    for place, made, task in (("crepe", sugarcrepe, "choices"), ("pairs", pairs, "mmvp_vlm")):
        made(here / place)
        assert f"mine-{task}" in recipe_of("old", "--data", f"mine={place}")


def test_two_saved_datasets_with_one_name_are_distinguished(here: Path) -> None:
    for place in ("one", "two"):
        sugarcrepe(here / place / "test")
    stages = recipe_of("old", "--data", "first=one/test", "--data", "second=two/test")
    assert stages["first-choices"]["data"] == "one/test"
    scores = stages["summary"]["scores"]
    assert [score["title"] for score in scores] == ["first", "second"]  # type: ignore[attr-defined]


def test_a_dataset_of_a_seed_has_valid_names_of_stages(here: Path) -> None:
    pairs(here / "data/val@0")
    stages = recipe_of("old", "--data", "data/val@0", "--tasks", "choices")
    assert list(stages) == ["val-0-choices", "summary"]
    assert stages["val-0-choices"]["data"] == "data/val@0"


def test_several_labels_per_image_are_scored_by_mean_average_precision(here: Path) -> None:
    arrays = []
    for number in range(6):
        np.save(buffer := io.BytesIO(), np.eye(3, dtype=int)[number % 3] | np.eye(3, dtype=int)[0])
        arrays.append(buffer.getvalue())
    folder(here / "wds_tags", "npy", arrays, classnames="red\ngreen\nblue\n", dataset_type="multilabel")
    done = run_here("eval", "old", "--data", "wds_tags", "--name", "tags", "--quiet")
    assert done.code == 0, done.err
    record = json.loads((here / "store/runs/tags/results/wds_tags-zero_shot_old.json").read_text())
    assert "mean_average_precision" in record["metrics"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["old"], "no datasets: give data, or a suite and its root"),
        (["old", "--suite", "diva30"], "no suite 'diva30': neither a file nor a shipped suite; did you mean 'diva29'?"),
        (["old", "--data", "imagenetv3"], "no such path, and no suite has such a dataset; did you mean 'imagenetv2'?"),
        (["old", "--data", "mnist", "--root", "root"], "mnist: no wds_mnist (or mnist) under root; get it: hf"),
        (["old", "--data", "photos", "--tasks", "zeroshot"], "tasks: no task 'zeroshot'; did you mean 'zero_shot'?"),
        (["old", "--data", "photos", "--tasks", "retrieval"], "photos is a LabeledDataset: retrieval needs captions"),
        (["old", "--data", "pairs.tar", "--tasks", "knn"], "pairs is a Pool: knn needs class labels"),
        (["old", "--data", "photos", "--tasks", "choices"], "choices needs images with statements to choose from"),
        (["old", "--data", "photos", "--tasks", "curves"], "tasks: no task 'curves'; known: "),
        (["old", "--data", "pairs.tar"], "missing_caption; expected captions en in txt: set texts"),
        (["old", "--data", "summary=photos"], "'summary' is the name of the table of all results"),
        (["old", "--data", "photos", "--tasks", "knn,knn", "--resize", "model,model"], "knn needs training images"),
        (["old", "--data", "photos", "--tasks", "knn"], "knn needs training images"),
        (["encoder", "--data", "photos"], "without a text tower: zero_shot does not apply"),
        (["ViT-B-31,openai", "--data", "photos"], "did you mean 'ViT-B-32'?"),
        (["old", "old", "--data", "photos"], "two of the models and datasets are named 'old'"),
        (["old", "--data", "photos", "--resize", "crop"], "resize: 'crop' is not a valid mode; known: "),
        (["root", "--data", "photos"], "root: no CLIP model (looked for open_clip_config.json and config.json)"),
        (["old", "--data", "photos", "--set", "photos.class_names=[a, b]"], "7 class names, one per folder, got 2"),
        (["old", "--suite", "diva29", "--root", "photos"], "ImageNet-1K: no wds_imagenet1k (or imagenet1k) under"),
    ],
)  # fmt: skip
def test_mistake_is_one_line(here: Path, words: list[str], line: str) -> None:
    done = run_here("eval", *words)
    assert done.code == 2
    assert line in done.err


def test_mistakes_in_a_users_suite_are_reported(here: Path) -> None:
    (here / "mine.yaml").write_text("description: mine\nsets:\n  - {name: a, folder: x}\n")
    done = run_here("eval", "old", "--suite", "mine.yaml")
    assert done.code == 2
    assert "mine.yaml: sets.0.folder: unknown key" in done.err
