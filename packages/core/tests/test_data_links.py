"""Every entry of a folder of images is a sample, a counted problem, or of a kind that is no image: also links."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from cli_world import run_here
from eval_world import NAMES, png
from vfm.data.layouts.folder import caption_folder, class_folders, image_folder
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.image_list import ImageEntry

FOLDERS = ("", "cat/", "cat/deep/", "dog/", ".hidden/")
KINDS = ("a.jpg", "b.png", "a.txt", "c.heic", ".d.jpg", "README", "e.md")
ENTRIES = st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(KINDS)), max_size=12, unique=True)
# Where a link is, and where it leads: into the folder, to a folder above it, out of it, to a file, or nowhere.
LINKS = st.dictionaries(
    st.tuples(st.sampled_from(FOLDERS[:4]), st.sampled_from(["l1", "l2.jpg", ".l3"])),
    st.sampled_from(["cat", "", "../outside", "../outside/x.jpg", "missing.jpg"]),
    max_size=5,
)


def build(root: Path, entries: list[tuple[str, str]], links: dict[tuple[str, str], str]) -> Path:
    """Write a folder with an image, these files and these links, and another folder next to it."""
    for folder in ("data/cat/deep", "data/dog", "data/.hidden", "outside"):
        (root / folder).mkdir(parents=True)
    for file in ("data/cat/first.jpg", "outside/x.jpg", *(f"data/{folder}{name}" for folder, name in entries)):
        (root / file).write_bytes(b"x")
    for (folder, name), target in links.items():
        (root / "data" / folder / name).symlink_to(root / "data" / target)
    return root / "data"


def twin(data: Path) -> tuple[set[str], Counter[str]]:
    """List images and count problems by the rules of the documentation, by another way through the folder."""
    images, problems = set(), Counter[str]()
    for folder, subfolders, names in os.walk(data):
        for name in [*names, *subfolders]:
            path = Path(folder, name)
            parts = path.relative_to(data).parts
            if any(part.startswith(".") for part in parts):
                continue
            if path.is_symlink() and path.is_dir():
                problems["linked_folder"] += 1
            elif path.suffix in (".jpg", ".png"):
                images.add(path.relative_to(data).as_posix())
            elif path.suffix == ".heic":
                problems["unknown_extension"] += 1
    return images, problems


def listed(entries: list[ImageEntry], data: Path) -> tuple[set[str], Counter[str]]:
    """Split entries into images and counted problems."""
    images = {entry.image.removeprefix(f"{data}/") for entry in entries if not entry.problem}
    return images, Counter(str(entry.problem.reason) for entry in entries if entry.problem)


@settings(max_examples=50, deadline=None)
@given(ENTRIES, LINKS)
def test_every_entry_of_a_generated_folder_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, str]], links: dict[tuple[str, str], str]
) -> None:
    data = build(tmp_path_factory.mktemp("layout"), entries, links)
    images, problems = twin(data)
    assert listed(list(image_folder(str(data), DatasetSpec())), data) == (images, problems)
    if all("/" in name for name in images):
        in_folders = list(class_folders(str(data))[1])
        assert listed(in_folders, data)[0] == images
        assert listed(in_folders, data)[1]["linked_folder"] == problems["linked_folder"]
    captioned = listed(list(caption_folder(str(data), DatasetSpec(texts={"en": "txt"}))), data)
    assert captioned[1]["linked_folder"] == problems["linked_folder"]


def linked_classes(root: Path) -> Path:
    """Write a class folder with five images, and two more as links."""
    for name, folder in (("cat", "images"), ("dog", "real"), ("owl", "real")):
        (root / folder / name).mkdir(parents=True)
        for number in range(5):
            (root / folder / name / f"{number}.png").write_bytes(png(NAMES[0]))
    for name in ("dog", "owl"):
        (root / "images" / name).symlink_to(Path("../real") / name)
    return root / "images"


def test_class_folders_that_are_links_are_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = linked_classes(tmp_path)
    data = run_here("data", folder)
    assert f"skipped: 2 linked_folder; the first is {folder}/dog" in data.out
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"stages:\n  - {{kind: data.labeled, name: l, path: {folder}}}\n")
    done = run_here("run", recipe, "--store", tmp_path / "store")
    assert done.code == 2
    assert f"linked_folder (2); more than max_bad_fraction: 0.05; the first is {folder}/dog" in done.err
    assert "give the folder itself, or copy the data with cp -rL" in done.err
    os.rename(tmp_path / "images/cat", tmp_path / "cat")
    assert "no images found; dog is a link to a folder" in run_here("data", folder).err
