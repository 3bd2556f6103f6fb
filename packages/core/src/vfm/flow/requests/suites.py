"""Suites: YAML lists of datasets with tasks and metrics. Datasets that are not on the disk are reported as left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from vfm.base import Config, UserError, did_you_mean, error_lines
from vfm.data.prompts.clip_benchmark import splits_of
from vfm.flow.recipe.shipped import shipped_files
from vfm.flow.requests.datasets import EvaluationDataset, import_fields
from vfm.flow.requests.inputs import Fields, dataset_input, stage_name
from vfm.interfaces import Stage, unknown_kind
from vfm.storage import files

Scores = dict[str, list[str]]


class InTorchvision(Config):
    """A dataset in the form in which torchvision keeps it."""

    name: str = Field(description="name of torchvision's class")
    folder: str = Field(description="folder that torchvision creates under the root")
    train: str = Field("train", description="torchvision's name of the training split")


class SuiteDataset(Config):
    """A dataset of a suite."""

    name: str = Field(description="name in clip_benchmark, from which the names of its folder follow")
    title: str = Field("", description="name in tables; default: the name")
    group: str = Field("", description="datasets whose scores are averaged together")
    scores: Scores | None = Field(
        None, description="the metrics of each task whose mean is the score; default: those of the suite"
    )
    data: dict[str, Any] | None = Field(
        None, description="fields of the stage that imports it, with a path below the root; default: from its files"
    )
    train: dict[str, Any] | None = Field(None, description="fields that differ for the training images")
    languages: list[str] = Field([], description="languages of the captions, each evaluated; default: the first")
    settings: dict[str, Any] = Field({}, description="fields of its evaluation stages, such as max_bad_fraction")
    torchvision: InTorchvision | None = Field(None, description="its place in torchvision, if not in a folder")
    get: str = Field("", description="how to download it")
    not_measured: str = Field("", description="why vfm cannot compute the suite's score on it")

    @property
    def folders(self) -> list[str]:
        """Names that its folder may have: the hub's, DataComp's, and its own."""
        cleaned, short = self.name.replace("/", "-"), self.name.rpartition("/")[2]
        names = dict.fromkeys((cleaned, short))
        return [pattern.format(name) for name in names for pattern in ("wds_{}", "wds_{}_test", "{}")]


class Suite(Config):
    """Datasets that are evaluated together."""

    description: str = Field(description="what the suite is, and the source of its list")
    scores: Scores = Field(
        {}, description="the metrics of each task whose mean is the score of a dataset without `scores` of its own"
    )
    hub: str = Field("", description="name of a dataset on the Hugging Face hub, `{}` for the dataset's name")
    sets: list[SuiteDataset] = Field(min_length=1, description="the datasets")


@dataclass(frozen=True)
class SkippedDataset:
    """A dataset, or a task on one, that is not evaluated.

    Attributes:
        title: name in tables.
        group: its group in the suite.
        why: the reason.
        ways: the means that it would be part of; empty: all.
    """

    title: str
    group: str
    why: str
    ways: tuple[str, ...] = ()


def load_suite(source: str, known: Mapping[str, type[Stage]] | None = None) -> Suite:
    """Return a suite by the name of a shipped one, or by the path of a YAML file.

    Args:
        source: the name or the path.
        known: stage types by kind, for files that users write; None: the kinds of its datasets are not checked.

    Raises:
        UserError: there is no such suite, or it has a mistake.
    """
    shipped = shipped_files("suites")
    file = Path(source) if Path(source).is_file() else shipped.get(source)
    if file is None:
        raise UserError(f"no suite {source!r}: neither a file nor a shipped suite{did_you_mean(source, shipped)}")
    text = files.read_text(str(file))
    try:
        suite = Suite.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        lines = [f"{file.name}: {'.'.join(map(str, where))}: {line}" for where, line in error_lines(error, Suite)]
        raise UserError("\n".join(lines)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if known is not None:
        _check_kinds(suite, file, known)
    return suite


def _check_kinds(suite: Suite, file: Path, known: Mapping[str, type[Stage]]) -> None:
    used = [(f"{one.name}: data.kind", str(one.data.get("kind"))) for one in suite.sets if one.data is not None]
    used += [
        ("scores", f"eval.{task}")
        for scores in (suite.scores, *(one.scores for one in suite.sets))
        for task in scores or ()
    ]
    for place, kind in used:
        if kind not in known:
            raise UserError(f"{file}: {place}: {unknown_kind(kind, dict(known))}")


def find_datasets(
    suite: Suite, root: str, known: Mapping[str, type[Stage]]
) -> tuple[list[EvaluationDataset], list[SkippedDataset]]:
    """Return the datasets of a suite that are under `root`, and those that are not, with how to download them."""
    found, left_out = [], []
    for one in suite.sets:
        title = one.title or one.name
        if one.not_measured:
            left_out.append(SkippedDataset(title, one.group, one.not_measured))
        elif fields := _fields(one, root):
            name, (data_fields, train_fields) = stage_name(one.name.replace("/", "-")), fields
            train = dataset_input(f"{name}-train", train_fields, known) if train_fields else None
            scores = suite.scores if one.scores is None else one.scores
            data = dataset_input(name, data_fields, known)
            found.append(EvaluationDataset(data, train, tuple(one.languages), title, one.group, scores, one.settings))
        else:
            where = one.data["path"] if one.data and "path" in one.data else f"{one.folders[0]} (or {one.folders[-1]})"
            left_out.append(SkippedDataset(title, one.group, f"no {where} under {root}{_how_to_get(one, suite.hub)}"))
    return found, left_out


def _how_to_get(one: SuiteDataset, hub: str) -> str:
    repository = hub.replace("{}", one.name.replace("/", "-"))
    fetch = f"hf download {repository} --repo-type dataset --local-dir {repository.rpartition('/')[2]}, in the root"
    return f"; get it: {one.get or fetch}" if one.get or hub else ""


def shipped_dataset(name: str, root: str, known: Mapping[str, type[Stage]]) -> EvaluationDataset | None:
    """Return the dataset that any shipped suite has by this name, or None if no suite has it.

    Raises:
        UserError: a suite has it, but it is not under `root`.
    """
    for suite in map(load_suite, shipped_files("suites")):
        if matches := [one for one in suite.sets if name in (one.name, one.name.rpartition("/")[2])]:
            found, left_out = find_datasets(suite.model_copy(update={"sets": matches[:1]}), root, known)
            if left_out:
                raise UserError(f"{name}: {left_out[0].why}")
            return found[0]
    return None


def shipped_names() -> set[str]:
    """Return the names of all datasets of the shipped suites."""
    return {one.name for suite in map(load_suite, shipped_files("suites")) for one in suite.sets}


def _fields(one: SuiteDataset, root: str) -> tuple[Fields, Fields | None] | None:
    """Return the fields of the stages that import a dataset and its training images; None if it is not under `root`."""
    base = root.rstrip("/")
    if one.data is not None:
        data = dict(one.data)
        if "path" in data:
            data["path"] = data["path"] if str(data["path"]).startswith("/") else f"{base}/{data['path']}"
            if not files.exists(data["path"]):
                return None
        return data, None if one.train is None else {**data, **one.train}
    for folder in one.folders:
        if files.is_directory(f"{base}/{folder}") and not _made_by_torchvision(one, base, folder):
            return import_fields(f"{base}/{folder}")
    if one.torchvision and files.exists(f"{base}/{one.torchvision.folder}"):
        short = one.name.rpartition("/")[2]
        data = {"kind": "data.labeled", "torchvision": one.torchvision.name, "path": root, "names_of": short}
        return data, {**data, "split": one.torchvision.train}
    return None


def _made_by_torchvision(one: SuiteDataset, base: str, folder: str) -> bool:
    """Return whether a folder was made by torchvision: it may have the same name as one with tars or class folders."""
    same_name = one.torchvision is not None and one.torchvision.folder == folder
    return same_name and not splits_of(f"{base}/{folder}")
