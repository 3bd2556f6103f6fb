"""Models and datasets of an evaluation. Each is a saved artifact, or a stage of the recipe that imports it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vfm.base import UserError, load_function
from vfm.interfaces import (
    FACTS_FILE,
    Artifact,
    ClipCheckpoint,
    DenseCheckpoint,
    Stage,
    VideoClassifier,
    VisionCheckpoint,
)
from vfm.models.stages import HUB_PREFIX, source_and_tag
from vfm.storage.store_files import read_record

Fields = dict[str, Any]  # fields of a stage, as in a recipe
IMPORT_DENSE = "eva.import_dense"
# What the models predict that `eva.import_dense` reads, by the end of the name of their class in transformers.
DENSE_CLASSES = {
    "ForObjectDetection": ("boxes",),
    "ForSemanticSegmentation": ("semantic",),
    "ForUniversalSegmentation": ("boxes", "masks", "semantic", "panoptic"),
}


@dataclass(frozen=True)
class Input:
    """A model or a dataset.

    Attributes:
        ref: Name of a stage, or path of a saved artifact.
        makes: Type of the artifact.
        stage: Fields of the stage that imports it. A saved artifact has none.
        given_name: The user's name for a saved artifact.
        predicts: What a detector or segmenter predicts, such as boxes; empty for other inputs.
    """

    ref: str
    makes: type[Artifact]
    stage: Fields | None = None
    given_name: str = ""
    predicts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.given_name or self.ref.rstrip("/").rsplit("/", 1)[-1]


def split_name(word: str) -> tuple[str | None, str]:
    """Split `NAME=REST`. An existing path that contains `=` has no name."""
    name, equals, rest = word.partition("=")
    named = bool(equals) and not Path(word).exists() and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name)
    return (name, rest) if named else (None, word)


def stage_name(word: str) -> str:
    """Convert a word to a valid stage name.

    It has letters, digits, `_` and `-`, with a letter first.
    """
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-")
    return slug if slug[:1].isalpha() else f"set-{slug}"


def saved_artifact(path: str) -> Artifact | None:
    """Load the artifact in a folder, if there is one."""
    return Artifact.load(path) if (Path(path) / FACTS_FILE).is_file() else None


def model_input(word: str) -> Input:
    """Resolve the model that a user names as `[NAME=]MODEL`.

    MODEL is the folder of a checkpoint, a source of `models.clip` or `models.vision`, or a detector or segmenter of
    transformers. A pretrained tag follows an open_clip name after a comma: `ViT-B-32,openai`.

    Raises:
        UserError: If there is no such model, or the folder holds another artifact.
    """
    name, rest = split_name(word)
    artifact = saved_artifact(rest)
    heads = VideoClassifier | DenseCheckpoint
    if artifact is not None and not isinstance(artifact, ClipCheckpoint | VisionCheckpoint | heads):
        raise UserError(f"{rest}: expected a model, got a {type(artifact).__name__}")
    if isinstance(artifact, heads) and name:
        raise UserError(f"{word}: a {type(artifact).__name__} is evaluated under its folder's name; leave {name}= out")
    if artifact is not None and name is None:
        tasks = artifact.tasks if isinstance(artifact, DenseCheckpoint) else ()
        return Input(rest, type(artifact), predicts=tuple(tasks))
    predicts = () if artifact else _predictions(rest)
    if predicts:
        name = name or stage_name(_short_name(rest))
        return Input(name, DenseCheckpoint, {"kind": IMPORT_DENSE, "name": name, "source": rest}, predicts=predicts)
    source, tag = source_and_tag(rest)
    encoder = isinstance(artifact, VisionCheckpoint) if artifact else _is_encoder(source, tag)
    kind, makes = ("models.vision", VisionCheckpoint) if encoder else ("models.clip", ClipCheckpoint)
    short = _short_name(source)
    name = name or stage_name(f"{short}-{tag}" if tag and not Path(tag).exists() else short)
    fields = {"kind": kind, "name": name, "source": source}
    if tag:
        fields["pretrained"] = tag
    return Input(name, makes, fields)


def _short_name(source: str) -> str:
    """Shorten a source: a local folder to its last part, a model of the hub to its whole name without the prefix."""
    if Path(source).exists():
        return source.rstrip("/").rsplit("/", 1)[-1]
    return source.partition(":")[2] or source


def _predictions(source: str) -> tuple[str, ...]:
    """List what a detector or segmenter in transformers' layout predicts. Empty for other models."""
    record: dict[str, Any] = {}
    file = Path(source) / "config.json"
    if file.is_file():
        record = read_record(file)
    elif source.startswith(HUB_PREFIX):
        record = load_function("vfm.models:hub_record")(source)
    for architecture in record.get("architectures") or ():
        for end, predicts in DENSE_CLASSES.items():
            if str(architecture).endswith(end):
                return predicts
    return ()


def named_apart(model: Input, taken: Collection[str], name: str) -> Input:
    """Rename a model whose name in results is taken.

    Args:
        model: The model. A saved one is imported under the new name.
        taken: Names in use.
        name: The new name.
    """
    if model.stage is None and model.name in taken:
        return model_input(f"{name}={model.ref}")
    return model


def _is_encoder(source: str, tag: str | None) -> bool:
    """Check whether a source names an encoder of timm. Only open_clip names with a tag are known without torch."""
    if tag and not Path(tag).exists() and open_clip_configuration(source):
        return False
    is_vision: bool = load_function("vfm.models:is_vision_source")(source, tag)
    return is_vision


def open_clip_configuration(name: str) -> dict[str, Any]:
    """Read open_clip's configuration of a model without importing it.

    It is empty if open_clip or the model is missing.
    """
    package = find_spec("open_clip")
    for folder in (package.submodule_search_locations if package else None) or ():
        file = Path(folder) / f"model_configs/{name.replace('/', '-')}.json"
        if file.is_file():
            configuration: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return configuration
    return {}


def dataset_input(name: str, fields: Mapping[str, Any], known: Mapping[str, type[Stage]]) -> Input:
    """Describe the dataset that a stage with these fields imports.

    Args:
        name: Name of the stage.
        fields: Its fields.
        known: Stage types by kind.
    """
    return Input(name, known[fields["kind"]].makes, {"kind": fields["kind"], "name": name, **fields})
