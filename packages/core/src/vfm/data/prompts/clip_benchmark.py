"""Read CLIP_benchmark's dataset folders, and the class names and templates of its Python package.

    SET/test/nshards.txt, SET/test/{0..n-1}.tar     and possibly SET/train/ in the same way
    SET/classnames.txt, SET/zeroshot_classification_templates.txt
    SET/dataset_type.txt                            `retrieval` or `multilabel`; otherwise one class per image

Source: github.com/LAION-AI/CLIP_benchmark, whose datasets are on the Hugging Face hub in this layout.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vfm.base import UserError, did_you_mean
from vfm.data.prompts.templates import check_templates
from vfm.storage import files
from vfm.storage.credentials import is_for_one_file

COUNT_FILE = "nshards.txt"
TYPE_FILE = "dataset_type.txt"
CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
SPLITS = ("test", "train", "val", "validation")
PACKAGE = "clip_benchmark"
DEFAULT_TEMPLATES = "imagenet1k"  # dataset whose templates clip_benchmark uses for datasets without templates


def splits_of(folder: str) -> list[str]:
    """List the splits of a CLIP_benchmark folder. Other folders have none."""
    return [split for split in SPLITS if files.exists(f"{folder}/{split}/{COUNT_FILE}")]


def benchmark_shards(folder: str, split: str) -> list[str]:
    """List the tars of a split, or of the folder itself if it is a split. Other folders have none.

    Raises:
        UserError: If the folder has only other splits, or one of the counted tars is missing.
    """
    known = splits_of(folder)
    if known and split not in known:
        raise UserError(f"{folder}: no split {split!r}; choose from {', '.join(known)}")
    split_folder = f"{folder}/{split}" if known else folder
    if not files.exists(f"{split_folder}/{COUNT_FILE}"):
        return []
    count = files.read_text(f"{split_folder}/{COUNT_FILE}").strip()
    if not count.isdigit() or count == "0":
        raise UserError(f"{split_folder}/{COUNT_FILE}: expected a number of shards, got {count[:20]!r}")
    shards = []
    for number in range(int(count)):
        shard = f"{split_folder}/{number}.tar"
        if not files.exists(shard):
            raise UserError(f"{shard}: no such file; {COUNT_FILE} counts {count} shards")
        shards.append(shard)
    return shards


def file_beside(path: str, name: str) -> str | None:
    """Find the file `name` in the data's folder or its parent, if there is one."""
    if is_for_one_file(path):
        return None
    folder = path.rpartition("/")[0] or "."
    parent = folder.rpartition("/")[0] or "."
    candidates = [f"{folder}/{name}"]
    if not parent.endswith(":/"):  # the parent of a host is not an address
        candidates.append(f"{parent}/{name}")
    return next(filter(files.exists, candidates), None)


def lines_beside(path: str, name: str) -> list[str]:
    """Read the stripped lines of a file in the data's folder or its parent. Empty if there is no such file.

    Drops empty lines at the end, but keeps other empty lines, because the line number is the label.
    """
    file = file_beside(path, name)
    if not file:
        return []
    return list(map(str.strip, files.read_text(file).rstrip().splitlines()))


def type_beside(path: str) -> str:
    """Read the type in the file near a tar, `retrieval`, `multilabel` or `classification`. Empty without a file."""
    return "".join(lines_beside(path, TYPE_FILE)).lower()


def names_and_templates(name: str) -> tuple[list[str], list[str]]:
    """Read the class names and prompt templates in the clip_benchmark package, without running its code.

    Args:
        name: The package's name of the dataset, optionally with a language: `mnist`, `imagenet1k/ar`.

    Returns:
        Class names (empty if the package leaves them to the dataset), and templates.

    Raises:
        UserError: If the package does not list the dataset.
        ModuleNotFoundError: If the package is not installed.
    """
    name, language = _split_language(name)
    names_file, templates_file = _list_files(language)
    names = _table(names_file)
    templates = _table(templates_file)
    short = name.rsplit("/", 1)[-1]
    if short not in names and short not in templates:
        raise UserError(f"{PACKAGE} lists no dataset {name!r}{did_you_mean(short, [*names, *templates])}")
    class_names = list(map(str, names.get(short, [])))
    return class_names, check_templates(templates.get(short, templates[DEFAULT_TEMPLATES]), name)


def list_files(name: str) -> list[str]:
    """List the package's files that `names_and_templates` reads for a dataset."""
    return list(map(str, filter(Path.is_file, _list_files(_split_language(name)[1]))))


def _split_language(name: str) -> tuple[str, str]:
    """Split a name into dataset and language."""
    rest, _, last = name.rpartition("/")
    if rest and _list_files(last)[1].is_file():
        return rest, last
    return name, "en"


def _list_files(language: str) -> tuple[Path, Path]:
    """Locate the files with the class names and the templates in a language."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
    folder = Path(spec.submodule_search_locations[0]) / "datasets"
    return folder / f"{language}_classnames.json", folder / f"{language}_zeroshot_classification_templates.json"


def _table(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    return dict(json.loads(file.read_text(encoding="utf-8")))
