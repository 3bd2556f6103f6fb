"""Models and datasets of an evaluation: each is a saved artifact, or a stage of the recipe that imports it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vfm.base import UserError, load_function
from vfm.interfaces import FACTS_FILE, Artifact, ClipCheckpoint, Stage, VideoClassifier, VisionCheckpoint

Fields = dict[str, Any]  # fields of a stage, as in a recipe


@dataclass(frozen=True)
class Input:
    """A model or a dataset.

    Attributes:
        ref: name of a stage, or path of a saved artifact.
        makes: type of the artifact.
        stage: fields of the stage that imports it; None for a saved artifact.
        given_name: the user's name for a saved artifact.
    """

    ref: str
    makes: type[Artifact]
    stage: Fields | None = None
    given_name: str = ""

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.given_name or self.ref.rstrip("/").rpartition("/")[2]


def split_name(word: str) -> tuple[str | None, str]:
    """Split `NAME=REST`; a path that holds a `=` has no name."""
    name, equals, rest = word.partition("=")
    named = bool(equals) and not Path(word).exists() and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name)
    return (name, rest) if named else (None, word)


def stage_name(word: str) -> str:
    """Return a word as a valid stage name: letters, digits, `_` and `-`, with a letter first."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-")
    return slug if slug[:1].isalpha() else f"set-{slug}"


def saved_artifact(path: str) -> Artifact | None:
    """Return the artifact in a folder, or None if there is none."""
    return Artifact.load(path) if (Path(path) / FACTS_FILE).is_file() else None


def model_input(word: str) -> Input:
    """Return the model that a user names as `[NAME=]MODEL`.

    MODEL is the folder of a checkpoint, or a source of `models.clip` or `models.vision`. A pretrained tag follows an
    open_clip name after a comma: `ViT-B-32,openai`.

    Raises:
        UserError: there is no such model, or the folder holds another artifact.
    """
    name, rest = split_name(word)
    artifact = saved_artifact(rest)
    if artifact is not None and not isinstance(artifact, ClipCheckpoint | VisionCheckpoint | VideoClassifier):
        raise UserError(f"{rest}: expected a model, got a {type(artifact).__name__}")
    if isinstance(artifact, VideoClassifier) and name:
        raise UserError(f"{word}: a classifier of videos is evaluated under its folder's name; leave {name}= out")
    if artifact is not None and name is None:
        return Input(rest, type(artifact))
    source, _, tag = (rest, "", "") if Path(rest).exists() else rest.partition(",")
    encoder = isinstance(artifact, VisionCheckpoint) if artifact else _is_encoder(source, tag)
    kind, makes = ("models.vision", VisionCheckpoint) if encoder else ("models.clip", ClipCheckpoint)
    # A folder is named by its last part, a model of the hub by its whole name.
    short = source.rstrip("/").rpartition("/")[2] if Path(source).exists() else source.partition(":")[2] or source
    name = name or stage_name(f"{short}-{tag}" if tag and not Path(tag).exists() else short)
    fields = {"kind": kind, "name": name, "source": source, **({"pretrained": tag} if tag else {})}
    return Input(name, makes, fields)


def named_apart(model: Input, taken: Collection[str], name: str) -> Input:
    """Return a model whose name in results is none of the taken ones; a saved one that has it is imported as `name`."""
    return model_input(f"{name}={model.ref}") if model.stage is None and model.name in taken else model


def _is_encoder(source: str, tag: str) -> bool:
    """Return whether a source names an encoder of timm's; only open_clip names with a tag are known without torch."""
    if tag and not Path(tag).exists() and _is_open_clip_name(source):
        return False
    found: bool = load_function("vfm.models:is_vision_source")(source, tag or None)
    return found


def _is_open_clip_name(name: str) -> bool:
    """Return whether open_clip has a model of this name, by its file of the configuration."""
    package = find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    return any((Path(folder) / f"model_configs/{name.replace('/', '-')}.json").is_file() for folder in folders or ())


def dataset_input(name: str, fields: Mapping[str, Any], known: Mapping[str, type[Stage]]) -> Input:
    """Return the dataset that a stage with these fields imports; `known` has the stage types by kind."""
    return Input(name, known[fields["kind"]].makes, {"kind": fields["kind"], "name": name, **fields})
