"""The shipped suites: complete lists, existing names, and datasets found in every common folder layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torchvision.datasets

from test_data_benchmark import classes
from vfm.base import UserError
from vfm.data.layouts.torchvision_sets import open_torchvision
from vfm.data.prompts.clip_benchmark import names_and_templates
from vfm.flow.recipe.shipped import shipped_files
from vfm.flow.requests.request import EvaluationRequest, requested_recipe
from vfm.flow.requests.suites import find_datasets, load_suite
from vfm.interfaces import load_plugins, stage_types

KNOWN = stage_types(load_plugins())
SUITES = sorted(shipped_files("suites"))


@pytest.mark.parametrize("name", SUITES)
def test_datasets_of_a_suite_have_unique_names_existing_tasks_and_a_download(name: str) -> None:
    suite = load_suite(name)
    assert len({one.name for one in suite.sets}) == len(suite.sets)
    for one in suite.sets:
        scores = suite.scores if one.scores is None else one.scores
        assert all(f"eval.{task}" in KNOWN for task in scores), one.name
        assert one.get or suite.hub or one.not_measured or one.data == {"kind": "data.digits"}, one.name


def test_lists_have_the_length_of_their_papers() -> None:
    diva, datacomp = load_suite("diva29"), load_suite("datacomp38")
    assert [sum(one.group == group for one in diva.sets) for group in ("classification", "retrieval")] == [27, 2]
    assert len(datacomp.sets) == 38
    assert sum(bool(one.not_measured) for one in datacomp.sets) == 5


def test_names_of_torchvision_datasets_exist_in_torchvision_and_clip_benchmark() -> None:
    pytest.importorskip("clip_benchmark")
    for one in (one for suite in SUITES for one in load_suite(suite).sets if one.torchvision):
        assert one.torchvision
        assert hasattr(torchvision.datasets, one.torchvision.name)
        assert names_and_templates(one.name.rpartition("/")[2])[1]


def test_names_of_splits_exist_in_torchvision(tmp_path: Path) -> None:
    """A split that torchvision does not have is a mistake of the suite; one that is not on the disk is not."""
    for one in (one for suite in SUITES for one in load_suite(suite).sets if one.torchvision):
        assert one.torchvision
        for split in ("test", one.torchvision.train):
            with pytest.raises(UserError) as caught:
                open_torchvision(one.torchvision.name, str(tmp_path), split)
            assert "Unknown value" not in str(caught.value), one.name


@pytest.mark.parametrize("place", ["wds_country211", "wds_country211_test", "country211"])
def test_a_folder_of_tars_is_found_by_any_of_its_names(tmp_path: Path, place: str) -> None:
    classes(tmp_path / place)
    [found], missing = find_datasets(load_suite("diva29"), str(tmp_path), KNOWN)
    assert found.data.stage == {"kind": "data.labeled", "name": "country211", "path": f"{tmp_path}/{place}"}
    assert (found.title, found.scores) == ("Country211", {"zero_shot": ["acc1"]})
    assert len(missing) == 28


def test_folders_made_by_torchvision_are_read_by_torchvision(tmp_path: Path) -> None:
    for folder in ("MNIST/raw", "country211/test/AD"):
        (tmp_path / folder).mkdir(parents=True)
    found, _ = find_datasets(load_suite("diva29"), f"{tmp_path}", KNOWN)
    stages = {one.data.name: one.data.stage for one in found}
    assert stages["mnist"] == {
        "kind": "data.labeled",
        "name": "mnist",
        "torchvision": "MNIST",
        "path": str(tmp_path),
        "names_of": "mnist",
    }
    assert stages["country211"] is not None
    assert stages["country211"]["torchvision"] == "Country211"
    assert [one.train.stage["split"] for one in found if one.train and one.train.stage] == ["train", "train"]


def test_small_datasets_are_found_in_their_packages(tmp_path: Path) -> None:
    found, missing = find_datasets(load_suite("small"), str(tmp_path), KNOWN)
    assert {one.data.name for one in found} | {gap.title for gap in missing} >= {"digits", "Flickr8k"}
    assert all("get it: " in gap.why for gap in missing)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "not valid YAML: maximum recursion depth exceeded"),
        (b"description: d\nsets: [{name: a, data: {path: x}}]", "a: data.kind: unknown stage kind 'None'"),
        (b"description: d\nsets: [{name: a, data: {kind: data.pear}}]", "a: data.kind: unknown stage kind 'data.pear'"),
        (
            b"description: d\nsets: [{name: a, data: {kind: data.pairs, path: -1}}]",
            "a: data.path: expected a path below the root, got -1",
        ),
        (
            b"description: d\nsets: [{name: a, data: {kind: data.pairs, path: x}, train: {pth: y}}]",
            "a: train.pth: unknown key; did you mean 'path'",
        ),
        (b"description: d\nsets: [{name: a, scores: {knnn: [x]}}]", "scores: unknown stage kind 'eval.knnn'"),
    ],
)
def test_a_damaged_suite_is_a_line_with_its_name(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "s.yaml").write_bytes(text)
    with pytest.raises(UserError, match=rf"^\S*s\.yaml: {said}"):
        load_suite(str(tmp_path / "s.yaml"), KNOWN)


def test_a_suite_without_data_on_the_disk_is_a_line_with_its_name(tmp_path: Path) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text("description: d\nsets: [{name: a, title: A, data: {kind: data.pairs, path: x.tar}}]\n")
    request = EvaluationRequest(["ViT-B-32,openai"], suite=str(suite), root=str(tmp_path))
    with pytest.raises(UserError, match=rf"^{re.escape(f'{suite}: A: no x.tar under {tmp_path}')}$"):
        requested_recipe(request, KNOWN)
