"""Suites: YAML lists of datasets with tasks and metrics. Datasets that are not on the disk are reported as left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from vfm.base import Config, UserError, did_you_mean, error_text
from vfm.data.prompts.clip_benchmark import splits_of
from vfm.flow.recipe.shipped import shipped_files
from vfm.flow.requests.datasets import EvaluationDataset, import_fields
from vfm.flow.requests.inputs import Fields, dataset_input, stage_name
from vfm.interfaces import Stage, unknown_kind
from vfm.storage import files

Scores = dict[str, list[str]]


class InTorchvision(Config):
    """A dataset in torchvision's layout."""

    name: str = Field(description="name of torchvision's class")
    folder: str = Field(description="folder that torchvision creates under the root")
    train: str = Field("train", description="torchvision's name of the training split")


class SuiteDataset(Config):
    """A dataset of a suite."""

    name: str = Field(description="name in clip_benchmark, from which the names of its folder follow")
    title: str = Field("", description="name in tables; default: the name")
    group: str = Field("", description="name of a group of datasets whose scores are averaged")
    scores: Scores | None = Field(
        None, description="metrics of each task whose mean is the score; default: metrics of the suite"
    )
    data: dict[str, Any] | None = Field(
        None,
        description="fields of the stage that imports it, with a path below the root; default: chosen by its files",
    )
    train: dict[str, Any] | None = Field(None, description="fields that differ for the training images")
    languages: list[str] = Field([], description="languages of the captions, each evaluated; default: the first")
    settings: dict[str, Any] = Field({}, description="fields of its evaluation stages, such as max_bad_fraction")
    torchvision: InTorchvision | None = Field(None, description="its torchvision class and folder, if it has one")
    get: str = Field("", description="how to download it")
    not_measured: str = Field("", description="why vfm cannot compute the suite's score on it")

    @property
    def folders(self) -> list[str]:
        """Possible names of its folder.

        They are the hub's, DataComp's, and the plain name.
        """
        cleaned = self.name.replace("/", "-")
        short = self.name.rsplit("/", 1)[-1]
        folders: list[str] = []
        for name in dict.fromkeys((cleaned, short)):
            folders += [f"wds_{name}", f"wds_{name}_test", name]
        return folders


class Suite(Config):
    """Datasets that are evaluated together."""

    description: str = Field(description="purpose of the suite, and the source of its list")
    scores: Scores = Field({}, description="metrics of each task whose mean is the score of a dataset without `scores`")
    hub: str = Field("", description="name of a dataset on the Hugging Face hub, `{}` for the dataset's name")
    sets: list[SuiteDataset] = Field(min_length=1, description="the datasets")


@dataclass(frozen=True)
class SkippedDataset:
    """A dataset, or a task on a dataset, that is not evaluated.

    Attributes:
        title: Name in tables.
        group: Its group in the suite.
        why: The reason.
        ways: The means that would include it. Empty: all.
    """

    title: str
    group: str
    why: str
    ways: tuple[str, ...] = ()


def load_suite(source: str, known: Mapping[str, type[Stage]] | None = None) -> Suite:
    """Load a suite by the name of a shipped one, or by the path of a YAML file.

    Args:
        source: The name or the path.
        known: Stage types by kind, for files that users write. None: the kinds of its datasets are not checked.

    Raises:
        UserError: If there is no such suite, or it has a mistake.
    """
    shipped = shipped_files("suites")
    file = Path(source) if Path(source).is_file() else shipped.get(source)
    if file is None:
        raise UserError(f"no suite {source!r}: neither a file nor a shipped suite{did_you_mean(source, shipped)}")
    text = files.read_text(str(file))
    try:
        suite = Suite.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise UserError(error_text(error, Suite, f"{file.name}: ")) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if known is not None:
        _check_kinds(suite, file, known)
        _check_fields(suite, file, known)
    return suite


def _check_kinds(suite: Suite, file: Path, known: Mapping[str, type[Stage]]) -> None:
    """Check that stage types exist: those that import the datasets, and those of the tasks."""
    used = []
    tasks = list(suite.scores or ())
    for entry in suite.sets:
        if entry.data is not None:
            used.append((f"{entry.name}: data.kind", str(entry.data.get("kind"))))
        tasks += entry.scores or ()
    for task in tasks:
        used.append(("scores", f"eval.{task}"))
    for key, kind in used:
        if kind not in known:
            raise UserError(f"{file}: {key}: {unknown_kind(kind, known)}")


def _check_fields(suite: Suite, file: Path, known: Mapping[str, type[Stage]]) -> None:
    """Check the fields of the stages that import the datasets."""
    for entry in suite.sets:
        if entry.data is not None:
            kind, path = known[entry.data["kind"]], entry.data.get("path", "")
            if not isinstance(path, str):
                raise UserError(f"{file}: {entry.name}: data.path: expected a path below the root, got {path!r:.60}")
            _check_stage(kind, entry.data, f"{file}: {entry.name}: data")
            _check_stage(kind, {**entry.data, **(entry.train or {})}, f"{file}: {entry.name}: train")


def _check_stage(kind: type[Stage], fields: Fields, where: str) -> None:
    try:
        kind.model_validate({"name": "data", **fields})
    except ValidationError as error:
        raise UserError(error_text(error, kind, f"{where}.")) from None


def find_datasets(
    suite: Suite, root: str, known: Mapping[str, type[Stage]]
) -> tuple[list[EvaluationDataset], list[SkippedDataset]]:
    """Split the datasets of a suite into present and missing ones.

    Args:
        suite: The suite.
        root: Folder of the datasets.
        known: Stage types by kind.

    Returns:
        Datasets under `root`, and missing ones with how to download them.
    """
    present = []
    left_out = []
    for entry in suite.sets:
        title = entry.title or entry.name
        fields = None if entry.not_measured else _fields(entry, root)
        if entry.not_measured:
            left_out.append(SkippedDataset(title, entry.group, entry.not_measured))
        elif fields:
            name = stage_name(entry.name.replace("/", "-"))
            (data_fields, train_fields) = fields
            if train_fields:
                train = dataset_input(f"{name}-train", train_fields, known)
            else:
                train = None
            scores = suite.scores if entry.scores is None else entry.scores
            data = dataset_input(name, data_fields, known)
            present.append(
                EvaluationDataset(data, train, tuple(entry.languages), title, entry.group, scores, entry.settings)
            )
        else:
            where = f"{entry.folders[0]} (or {entry.folders[-1]})"
            if entry.data and "path" in entry.data:
                where = entry.data["path"]
            why = f"no {where} under {root}{_how_to_get(entry, suite.hub)}"
            left_out.append(SkippedDataset(title, entry.group, why))
    return present, left_out


def _how_to_get(entry: SuiteDataset, hub: str) -> str:
    if not (entry.get or hub):
        return ""
    repository = hub.replace("{}", entry.name.replace("/", "-"))
    fetch = f"hf download {repository} --repo-type dataset --local-dir {repository.rsplit('/', 1)[-1]}, in the root"
    return f"; get it: {entry.get or fetch}"


def shipped_dataset(name: str, root: str, known: Mapping[str, type[Stage]]) -> EvaluationDataset | None:
    """Find the dataset of this name in any shipped suite, if a suite has it.

    Args:
        name: Name of the dataset.
        root: Folder of the datasets.
        known: Stage types by kind.

    Raises:
        UserError: If a suite has it, but it is not under `root`.
    """
    for suite in map(load_suite, shipped_files("suites")):
        matches = [entry for entry in suite.sets if name in (entry.name, entry.name.rsplit("/", 1)[-1])]
        if matches:
            present, left_out = find_datasets(suite.model_copy(update={"sets": matches[:1]}), root, known)
            if left_out:
                raise UserError(f"{name}: {left_out[0].why}")
            return present[0]
    return None


def shipped_names() -> set[str]:
    """List the names of all datasets of the shipped suites."""
    names: set[str] = set()
    for suite in map(load_suite, shipped_files("suites")):
        for entry in suite.sets:
            names.add(entry.name)
    return names


def _fields(entry: SuiteDataset, root: str) -> tuple[Fields, Fields | None] | None:
    """Choose the fields of the stages that import a dataset and its training images.

    A dataset that is not under `root` has none.
    """
    base = root.rstrip("/")
    if entry.data is not None:
        data = dict(entry.data)
        if "path" in data:
            data["path"] = data["path"] if str(data["path"]).startswith("/") else f"{base}/{data['path']}"
            if not files.exists(data["path"]):
                return None
        return data, None if entry.train is None else {**data, **entry.train}
    for folder in entry.folders:
        if files.is_directory(f"{base}/{folder}") and not _made_by_torchvision(entry, base, folder):
            return import_fields(f"{base}/{folder}")
    if entry.torchvision and files.exists(f"{base}/{entry.torchvision.folder}"):
        short = entry.name.rsplit("/", 1)[-1]
        data = {"kind": "data.labeled", "torchvision": entry.torchvision.name, "path": root, "names_of": short}
        return data, {**data, "split": entry.torchvision.train}
    return None


def _made_by_torchvision(entry: SuiteDataset, base: str, folder: str) -> bool:
    """Check whether torchvision made a folder, since one with tars or class folders may have the same name."""
    same_name = entry.torchvision is not None and entry.torchvision.folder == folder
    return same_name and not splits_of(f"{base}/{folder}")
