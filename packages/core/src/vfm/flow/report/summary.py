"""What a report needs to know of a run; the bulk is read from the artifacts' folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from vfm.flow.results import SeedSummary

SHOWN_ELSEWHERE = {"kind", "name", "config", "inputs", "warnings", "bad_samples"}  # keys of a manifest


@dataclass(frozen=True)
class StageEntry:
    """A stage of a run: where its artifact lies and what is known of its making."""

    name: str
    kind: str
    id: str
    status: Literal["cached", "resume", "new"]  # as planned, before the run
    seconds: float  # in this run; next to nothing where the artifact was there already
    directory: Path
    inputs: Mapping[str, str]  # name of a stage, or path of an artifact -> id
    manifest: Mapping[str, Any]
    bad_examples: Mapping[str, Sequence[str]] = field(default_factory=dict)  # reason -> where a few of them are

    @property
    def anchor(self) -> str:
        """The id of the stage on the page; names hold no dot, so a seed's stage cannot meet another's name."""
        return "stage-" + self.name.replace("@", ".")

    @property
    def base_name(self) -> str:
        """The name in the recipe, without the seed."""
        return self.name.partition("@")[0]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the manifest says and the page does not show elsewhere: sources, seed, versions, commit, ..."""
        return {key: value for key, value in self.manifest.items() if key not in SHOWN_ELSEWHERE}


@dataclass(frozen=True)
class RunSummary:
    """A run: what was asked for, and its stages in order."""

    recipe: str
    started: datetime
    seconds: float
    command: str
    versions: Mapping[str, str]
    stages: Sequence[StageEntry]
    seeds: Sequence[SeedSummary] = ()
    description: str = ""
    recipe_text: str = ""
