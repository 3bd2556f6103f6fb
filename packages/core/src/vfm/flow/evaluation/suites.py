"""Suites: lists of data sets with their tasks and metrics, as YAML; what is on the disk is judged, the rest is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from vfm.config import Config, UserError, did_you_mean, error_lines
from vfm.data import files
from vfm.flow.evaluation.parts import Fields, data_part, stage_name
from vfm.flow.evaluation.sets import JudgedSet, fields_at
from vfm.stage import Stage

SHIPPED = Path(__file__).parents[2] / "suites"
Scores = dict[str, list[str]]


class InTorchvision(Config):
    """A data set as torchvision keeps it."""

    name: str = Field(description="of torchvision's class")
    folder: str = Field(description="what torchvision makes of it under the root")
    train: str = Field("train", description="how it calls the images to learn from")


class SuiteSet(Config):
    """A data set of a suite."""

    name: str = Field(description="as clip_benchmark calls it; what its folder's name is made of")
    title: str = Field("", description="as tables show it; default: the name")
    group: str = Field("", description="sets that are averaged together")
    scores: Scores | None = Field(None, description="task: metrics whose mean is the score; default: the suite's")
    data: dict[str, Any] | None = Field(
        None, description="fields of the stage that brings it in, with a path below the root; default: what lies there"
    )
    train: dict[str, Any] | None = Field(None, description="fields that differ for the images to learn from")
    languages: list[str] = Field([], description="of the captions, a task in each; default: the first")
    settings: dict[str, Any] = Field({}, description="fields of its evaluations, such as max_bad_fraction")
    torchvision: InTorchvision | None = Field(None, description="where torchvision keeps it, if not in a folder")
    get: str = Field("", description="where to get it")
    not_measured: str = Field("", description="why vfm cannot give the suite's score of it")

    @property
    def folders(self) -> list[str]:
        """Names that its folder may have: the hub's, datacomp's, and its own."""
        cleaned, short = self.name.replace("/", "-"), self.name.rpartition("/")[2]
        names = dict.fromkeys((cleaned, short))
        return [pattern.format(name) for name in names for pattern in ("wds_{}", "wds_{}_test", "{}")]


class Suite(Config):
    """Data sets that are judged together."""

    description: str = Field(description="what it is, and where its list comes from")
    scores: Scores = Field({}, description="task: metrics whose mean is the score of a set that says nothing else")
    hub: str = Field("", description="data set of the hub that holds a set, `{}` for its name")
    sets: list[SuiteSet] = Field(min_length=1, description="its data sets")


@dataclass(frozen=True)
class Missing:
    """A data set, or a task of one, that is not judged, and why; `ways`: the means it would be in, none: each."""

    title: str
    group: str
    why: str
    ways: tuple[str, ...] = ()


def load_suite(source: str) -> Suite:
    """A suite by the name of one that ships, or by the path of a YAML file.

    Raises:
        UserError: there is none, or a key of it is wrong.
    """
    shipped = {file.stem: file for file in SHIPPED.glob("*.yaml")}
    file = Path(source) if Path(source).is_file() else shipped.get(source)
    if file is None:
        raise UserError(f"no suite {source!r}: neither a file nor one that ships{did_you_mean(source, shipped)}")
    try:
        return Suite.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        lines = [f"{file.name}: {'.'.join(map(str, where))}: {line}" for where, line in error_lines(error, Suite)]
        raise UserError("\n".join(lines)) from None


def find_sets(suite: Suite, root: str, known: Mapping[str, type[Stage]]) -> tuple[list[JudgedSet], list[Missing]]:
    """The sets that are under the root, and those that are not, with where to get them."""
    judged, missing = [], []
    for one in suite.sets:
        title = one.title or one.name
        if one.not_measured:
            missing.append(Missing(title, one.group, one.not_measured))
        elif found := _fields(one, root):
            name, (fields, train) = stage_name(one.name.replace("/", "-")), found
            learn = data_part(f"{name}-train", train, known) if train else None
            scores = suite.scores if one.scores is None else one.scores
            data = data_part(name, fields, known)
            judged.append(JudgedSet(data, learn, tuple(one.languages), title, one.group, scores, one.settings))
        else:
            where = one.data["path"] if one.data and "path" in one.data else f"{one.folders[0]} (or {one.folders[-1]})"
            missing.append(Missing(title, one.group, f"no {where} under {root}{_how_to_get(one, suite.hub)}"))
    return judged, missing


def _how_to_get(one: SuiteSet, hub: str) -> str:
    repository = hub.format(one.name.replace("/", "-"))
    fetch = f"hf download {repository} --repo-type dataset --local-dir {repository.rpartition('/')[2]}, in the root"
    return f"; get it: {one.get or fetch}" if one.get or hub else ""


def set_of_suites(name: str, root: str, known: Mapping[str, type[Stage]]) -> JudgedSet | None:
    """The data set of a name in any suite that ships; None where no suite has it.

    Raises:
        UserError: it is known and not there.
    """
    for file in sorted(SHIPPED.glob("*.yaml")):
        suite = load_suite(file.stem)
        if those := [one for one in suite.sets if name in (one.name, one.name.rpartition("/")[2])]:
            judged, missing = find_sets(suite.model_copy(update={"sets": those[:1]}), root, known)
            if missing:
                raise UserError(f"{name}: {missing[0].why}")
            return judged[0]
    return None


def set_names() -> set[str]:
    """The names of all sets of all suites that ship."""
    return {one.name for file in SHIPPED.glob("*.yaml") for one in load_suite(file.stem).sets}


def _fields(one: SuiteSet, root: str) -> tuple[Fields, Fields | None] | None:
    """The stages of a set that is under the root, the second of its training images."""
    base = root.rstrip("/")
    if one.data is not None:
        data = dict(one.data)
        if "path" in data:
            data["path"] = data["path"] if str(data["path"]).startswith("/") else f"{base}/{data['path']}"
            if not files.exists(data["path"]):
                return None
        return data, None if one.train is None else {**data, **one.train}
    for folder in one.folders:
        if files.is_directory(f"{base}/{folder}") and not _is_torchvisions(one, base, folder):
            return fields_at(f"{base}/{folder}")
    if one.torchvision and files.exists(f"{base}/{one.torchvision.folder}"):
        short = one.name.rpartition("/")[2]
        data = {"kind": "data.labeled", "torchvision": one.torchvision.name, "path": root, "names_of": short}
        return data, {**data, "split": one.torchvision.train}
    return None


def _is_torchvisions(one: SuiteSet, base: str, folder: str) -> bool:
    """Whether a folder is what torchvision makes, not one of tars or classes: both may be called by the set's name."""
    from vfm.data.benchmark_folder import splits_of

    theirs = one.torchvision is not None and one.torchvision.folder == folder
    return theirs and not splits_of(f"{base}/{folder}")
