"""The manifest of an artifact records how it was made, so that it can be traced and made again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.flow.plan.plan import Step
from vfm.flow.plan.roots import ROOTS
from vfm.interfaces import MANIFEST_FILE, Artifact, Context, Event, Report, Stage, Training, refs
from vfm.storage.fingerprints import by_located_path
from vfm.storage.integrity import read_sealed, seal
from vfm.storage.publishing import write_file
from vfm.storage.store_files import reading

LIBRARIES = {"torch", "torchvision", "timm", "open-clip-torch", "diffusers", "numpy", "pillow", "pyarrow"}
MAX_EXAMPLES = 3  # number of bad samples to list by reason


class EventNotes:
    """Facts from a stage's events for its manifest.

    These are the last metrics, the warnings, the places of some bad samples, and the changes of incidental settings.
    They are saved in the work folder, because a stage that resumes after a crash does not repeat its earlier events.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.numbers: dict[str, float] = {}
        self.warnings: list[str] = []
        self.lacks_data: list[str] = []  # not saved, since a resumed stage may find the data again
        self.bad_examples: dict[str, list[str]] = {}  # reason -> places
        self.lacking_examples: dict[str, list[str]] = {}  # not saved either
        self.stretches: list[dict[str, Any]] = []  # {"step", "settings"} for each change of a training stage's settings
        self.kernels: str | None = None  # not saved, since a resumed stage sends this event again
        if file.is_file():
            try:
                saved = read_sealed(file, "numbers", "warnings", "bad_examples")
                with reading(file, "metrics and warnings"):
                    self.numbers, self.warnings = dict(saved["numbers"]), list(saved["warnings"])
                    self.bad_examples = {reason: list(places) for reason, places in saved["bad_examples"].items()}
                    self.stretches = [dict(stretch) for stretch in saved.get("stretches", ())]
            except UserError as error:  # the result does not depend on the notes
                self.warnings = [f"{error}; earlier metrics and warnings are lost"]

    def add(self, event: Event) -> None:
        """Take the facts from an event, and save them."""
        if event.type == "kernels":
            self.kernels = event.data["running"]
            return
        if event.type == "metrics":
            self.numbers.update(event.data["values"])
        elif event.type == "warning" and event.data.get("lacks_data"):
            self.lacks_data.append(event.data["message"])
            return
        elif event.type == "warning" and event.data["message"] not in self.warnings:
            self.warnings.append(event.data["message"])
        elif event.type == "settings":
            # Training that resumes from an earlier step repeats the later steps.
            before = [stretch for stretch in self.stretches if stretch["step"] < event.data["step"]]
            same = before and before[-1]["settings"] == event.data["settings"]
            self.stretches = before if same else [*before, dict(event.data)]
        elif event.type != "bad_sample" or not self._adds_example(event.data):
            return
        record = {
            "numbers": self.numbers,
            "warnings": self.warnings,
            "bad_examples": self.bad_examples,
            "stretches": self.stretches,
        }
        write_file(self.file, seal(record), durable=False)

    @property
    def all_examples(self) -> dict[str, list[str]]:
        """Places of bad samples by reason, including the ones that may come back."""
        reasons = sorted({*self.bad_examples, *self.lacking_examples})
        places = {each: [*self.bad_examples.get(each, ()), *self.lacking_examples.get(each, ())] for each in reasons}
        return {reason: list(dict.fromkeys(found))[:MAX_EXAMPLES] for reason, found in places.items()}

    def _adds_example(self, bad: Mapping[str, Any]) -> bool:
        """Record the place of a bad sample, unless it is known or there are enough. Return whether it must be saved."""
        examples = self.lacking_examples if bad.get("lacks_data") else self.bad_examples
        places = examples.setdefault(bad["reason"], [])
        if bad["where"] in places or len(places) >= MAX_EXAMPLES:
            return False
        places.append(bad["where"])
        return examples is self.bad_examples


def build_manifest(
    step: Step,
    artifact: Artifact,
    context: Context,
    notes: EventNotes,
    seconds: float,
    roots: Mapping[str, str],
) -> dict[str, Any]:
    """Build the manifest of an artifact.

    Args:
        step: Step that made it.
        artifact: The artifact.
        context: Context of the stage.
        notes: Notes from its events.
        seconds: Duration of the stage.
        roots: Roots of its inputs.
    """
    units: dict[str, str] = {}
    if isinstance(artifact, Report):
        notes.numbers = {}
        for metric in artifact.metrics:
            name = f"{metric.model} {metric.name}".strip()
            notes.numbers[name] = metric.value
            units[name] = metric.unit
    inputs = {}
    for _, ref in refs(step.stage):
        inputs[ref] = step.inputs[ref]
    return {
        "kind": step.stage.kind,
        "name": step.stage.name,
        "version": step.stage.version,
        "identity": step.identity,
        "config": step.stage.model_dump(mode="json", exclude={"name", "kind", "runtime"}),
        "runtime": step.stage.runtime.model_dump(),
        "steps": _num_steps(step.stage, context),
        "stretches": notes.stretches,
        "kernels": notes.kernels,
        "inputs": dict(sorted(inputs.items())),
        ROOTS: dict(roots),
        "sources": by_located_path(step.fingerprints),
        "seed": getattr(step.stage, "seed", None),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(seconds, 2),
        "numbers": notes.numbers,
        "units": units,
        "bad_samples": dict(sorted(context.bad.items())),
        "bad_examples": notes.all_examples,
        "warnings": [*notes.warnings, *notes.lacks_data],
        "lacks_data": notes.lacks_data,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": library_versions(),
        "commit": _commit(),
    }


def _num_steps(stage: Stage, context: Context) -> int | None:
    """Look up the number of steps of a training, also if its length is given in epochs."""
    if not isinstance(stage, Training):
        return None
    return stage.at_start(context).num_steps


def read_manifest(artifact: Path) -> dict[str, Any]:
    """Read the manifest of a published artifact.

    Raises:
        UserError: If the manifest is missing or damaged.
    """
    return read_sealed(artifact / MANIFEST_FILE, "kind", "identity", "inputs", "numbers", "finished")


@cache
def library_versions() -> dict[str, str]:
    """Look up the versions of vfm's packages and of the libraries that results depend on."""
    names = set(LIBRARIES)
    # Names of folders, since reading the metadata of every installed package takes a third of a second.
    for folder in sys.path:
        for info in Path(folder).glob("vfm_*.dist-info"):
            names.add(info.name.partition("-")[0].replace("_", "-"))
    versions = {}
    for name in sorted(names):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _commit() -> str | None:
    """Look up the commit of vfm's work tree, with `-dirty` if a tracked file differs. None outside of a work tree."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commands = (
        # A package installed inside another project's work tree is not tracked there, and that commit means nothing.
        [*git, "ls-files", "--error-unmatch", "--", Path(__file__).name],
        [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
    )
    try:
        for command in commands:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer
