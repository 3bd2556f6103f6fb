"""What takes part in an evaluation: models and data sets, each a saved artifact or the stage that brings it in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.artifacts import FACTS_FILE, Artifact, ClipCheckpoint, VisionCheckpoint
from vfm.config import UserError
from vfm.stage import Stage

Fields = dict[str, Any]  # of a stage, as a recipe has them


@dataclass(frozen=True)
class Part:
    """A model or a data set.

    ref: a stage's name, or the path of a saved artifact.
    makes: the artifact's type.
    stage: what brings it in; None: it is there.
    called: the name that the user gave what is there.
    """

    ref: str
    makes: type[Artifact]
    stage: Fields | None = None
    called: str = ""

    @property
    def name(self) -> str:
        """How tables call it."""
        return self.called or self.ref.rstrip("/").rpartition("/")[2]


def split_name(word: str) -> tuple[str | None, str]:
    """`NAME=REST` as its parts; a path may hold a `=` too."""
    name, equals, rest = word.partition("=")
    named = bool(equals) and not Path(word).exists() and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name)
    return (name, rest) if named else (None, word)


def stage_name(word: str) -> str:
    """A word as the name of a stage: letters, digits, `_` and `-`, a letter first."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-")
    return slug if slug[:1].isalpha() else f"set-{slug}"


def saved(path: str) -> Artifact | None:
    """The artifact in a folder; None where there is none."""
    return Artifact.load(path) if (Path(path) / FACTS_FILE).is_file() else None


def model_part(word: str) -> Part:
    """The model that a user names: `[NAME=]MODEL`, where MODEL is a checkpoint's folder or what `models.*` take.

    An open_clip name has its tag behind a comma: `ViT-B-32,openai`.

    Raises:
        UserError: there is no such model, or the folder holds something else.
    """
    from vfm.models.kinds import is_encoder

    name, rest = split_name(word)
    artifact = saved(rest)
    if artifact is not None and not isinstance(artifact, ClipCheckpoint | VisionCheckpoint):
        raise UserError(f"{rest}: a {type(artifact).__name__}; a model is wanted")
    if artifact is not None and name is None:
        return Part(rest, type(artifact))
    source, _, tag = (rest, "", "") if Path(rest).exists() else rest.partition(",")
    encoder = isinstance(artifact, VisionCheckpoint) if artifact else is_encoder(source, tag or None)
    kind, makes = ("models.vision", VisionCheckpoint) if encoder else ("models.clip", ClipCheckpoint)
    # A folder is called by its last part, a model of the hub by all of its name.
    short = source.rstrip("/").rpartition("/")[2] if Path(source).exists() else source.partition(":")[2] or source
    name = name or stage_name(f"{short}-{tag}" if tag and not Path(tag).exists() else short)
    fields = {"kind": kind, "name": name, "source": source, **({"pretrained": tag} if tag else {})}
    return Part(name, makes, fields)


def data_part(name: str, fields: Mapping[str, Any], known: Mapping[str, type[Stage]]) -> Part:
    """A data set by the fields of its stage."""
    return Part(name, known[fields["kind"]].makes, {"kind": fields["kind"], "name": name, **fields})
