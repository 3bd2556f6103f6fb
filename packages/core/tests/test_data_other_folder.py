"""A dataset that was indexed by relative paths is read from any working folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_samples import context, encoded
from vfm.data import open_dataset
from vfm.data.labeled.stages import Labeled
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import Stage


def stage(layout: str) -> Stage:
    """Write two images under `own` in a layout, and return the stage that reads them by a relative path."""
    for folder in ("cat", "dog"):
        Path("own", folder).mkdir(parents=True)
        Path("own", folder, "0.png").write_bytes(encoded(1))
        Path("own", folder, "0.txt").write_text(f"a {folder}")
    if layout == "classes":
        return Labeled(kind="data.labeled", name="data", path="own")
    if layout == "captions":
        return Pairs(kind="data.pairs", name="data", path="own")
    if layout == "table":
        Path("own/table.csv").write_text("filepath,title\ncat/0.png,a cat\ndog/0.png,a dog\n")
        return Pairs(kind="data.pairs", name="data", path="own/table.csv")
    if layout == "table with a root":
        Path("table.csv").write_text("filepath,title\ncat/0.png,a cat\ndog/0.png,a dog\n")
        return Pairs(kind="data.pairs", name="data", path="table.csv", image_root="own")
    images = [{"id": number, "file_name": f"{name}/0.png"} for number, name in enumerate(("cat", "dog"))]
    captions = [{"id": number, "image_id": number, "caption": "a pet"} for number in range(2)]
    Path("own/captions_val.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return Pairs(kind="data.pairs", name="data", path="own/captions_val.json", image_root="own")


@pytest.mark.parametrize("layout", ["classes", "captions", "table", "table with a root", "coco"])
def test_relative_paths_are_those_of_the_folder_where_the_data_were_indexed(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    artifact = stage(layout).run(context(tmp_path / "artifact"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = open_dataset(artifact)
    images = [source[number].image for number in range(len(source.keys))]
    assert images == [encoded(1)] * 2
