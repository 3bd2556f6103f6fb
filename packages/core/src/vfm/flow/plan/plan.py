"""The plan of a run: the identity of every artifact, and whether it is in the store. Does not import torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm.base import UserError, decisive_settings, did_you_mean, map_items
from vfm.flow.plan.roots import manifest_of, origin_of
from vfm.flow.plan.store import Slot, Store
from vfm.flow.recipe.recipe import Recipe
from vfm.interfaces import MANIFEST_FILE, ImageDataset, Ref, Report, Stage, refs
from vfm.storage import files
from vfm.storage.fingerprints import cached_fingerprints, located
from vfm.storage.integrity import known_files, read_sealed, wrong_sizes
from vfm.storage.path_patterns import expand_paths
from vfm.storage.remote_fingerprints import remote_fingerprints

PATTERN_MARKS = ("~", "*", "?", "{", "::")  # marks that `expand_paths` expands


@dataclass(frozen=True)
class Step:
    """A stage in a plan, with its identity, its inputs and its slot in the store."""

    stage: Stage
    identity: str
    inputs: dict[str, str]  # ref as written -> identity of its artifact
    folders: dict[str, Path]  # ref as written -> folder of its artifact, which may not exist yet
    fingerprints: dict[str, str]  # outside file -> fingerprint
    slot: Slot
    place: str = ""  # file and line of the stage in its recipe

    def located(self, message: str) -> str:
        """Begin each line of an error of the stage with its place, if it has one, and its name."""
        name = f"{self.stage.name}: "
        where = f"{self.place}: {name}" if self.place else name
        return "\n".join(where + line.removeprefix(name) for line in message.splitlines())

    @property
    def status(self) -> str:
        """Current status, `cached`, `resume` or `new`.

        A result of other inputs than the present ones is `new`.
        """
        status = self.slot.status
        if status == "cached" and self.changed_inputs():
            return "new"
        return status

    def existing_inputs(self) -> dict[str, Path]:
        """Collect the folders of the inputs that exist, by ref."""
        return {ref: folder for ref, folder in self.folders.items() if folder.is_dir()}

    def roots(self) -> dict[str, str]:
        """Look up the roots of the existing inputs, by identity."""
        roots = {}
        for ref, folder in self.folders.items():
            root = origin_of(folder).root
            if root:
                roots[self.inputs[ref]] = root
        return roots

    def changed_inputs(self) -> list[str]:
        """List the inputs that have other roots now than when the published artifact was computed from them."""
        before = origin_of(self.slot.artifact).roots if self.folders else {}
        now = self.roots() if before else {}
        changed = []
        for ref, identity in self.inputs.items():
            root = now.get(identity)
            if root and before.get(identity, root) != root:
                changed.append(ref)
        return changed


def stage_names(steps: Iterable[Step]) -> list[str]:
    """List the names of the stages of steps."""
    return [step.stage.name for step in steps]


def stages_by_name(steps: Iterable[Step]) -> dict[str, Stage]:
    """Collect the stages of steps by their names."""
    return {step.stage.name: step.stage for step in steps}


def make_plan(recipe: Recipe, store: Store, announce: Callable[[str], None] = lambda line: None) -> list[Step]:
    """List the steps of a recipe in order.

    The identity of a step is a hash of kind, version, configuration (without incidental settings), the identities of
    its inputs and the contents of outside files. For a report, the names of its inputs are included, since it shows
    them. Equal identities mean equal results, so a published artifact is never made again.

    Args:
        recipe: The recipe.
        store: Store of the artifacts.
        announce: Called with a line before many bytes are read.

    Raises:
        UserError: If an outside file is missing or cannot be read, a published artifact lacks files, belongs to another
            identity, or refers to images that were moved (one line each), or the store is not a folder.
    """
    store.check()
    steps: dict[str, Step] = {}
    # A dict keeps the order and leaves out repeats, since several stages may read one damaged folder.
    problems: dict[str, None] = {}
    with cached_fingerprints(store.root, announce) as fingerprint:
        for stage in recipe.stages:
            inputs: dict[str, str] = {}
            folders: dict[str, Path] = {}
            for _, ref in refs(stage):
                earlier = steps.get(ref)
                inputs[ref] = earlier.identity if earlier else saved_identity(Path(ref), fingerprint)
                folders[ref] = Path(os.path.realpath(earlier.slot.artifact if earlier else ref))
                if not earlier:
                    problems |= dict.fromkeys(_wrong_files(Path(ref)))
            try:
                sources = _sources(stage)
                remote = remote_fingerprints(list(filter(files.is_remote, sources)))
                fingerprints = {path: remote.get(path) or fingerprint(path) for path in sources}
            except UserError as error:
                of = f" of {os.path.basename(recipe.file)}" if recipe.file else ""
                raise UserError(f"{error}; {stage.name}{of} reads it") from None
            identity = _identity(stage, inputs, fingerprints)
            slot = store.slot(stage.kind, identity)
            place = recipe.stage_place(stage)
            steps[stage.name] = Step(stage, identity, inputs, folders, fingerprints, slot, place)
            problems |= dict.fromkeys(_problems(steps[stage.name]))
    if problems:
        raise UserError("\n".join(problems))
    return list(steps.values())


def steps_until(steps: Sequence[Step], name: str) -> list[Step]:
    """Select the steps of a plan that a stage needs, and the stage itself.

    Args:
        steps: The plan.
        name: Name of a stage. Without its seed, as in the recipe, it stands for the stages of all seeds.

    Raises:
        UserError: If no stage has this name.
    """
    needed = {stage for stage in stage_names(steps) if name in (stage, stage.partition("@")[0])}
    if not needed:
        names = dict.fromkeys(stage.partition("@")[0] for stage in stage_names(steps))
        raise UserError(f"no stage is named {name!r}{did_you_mean(name, names)}")
    chosen: list[Step] = []
    # Inputs come earlier in a plan, so one pass from the end finds everything that is needed.
    for step in reversed(steps):
        if step.stage.name in needed:
            needed |= set(step.inputs)
            chosen.insert(0, step)
    return chosen


def check_identity(step: Step, identity: str, folder: Path) -> None:
    """Check that a folder belongs to a step, since its name only has eight digits of the identity.

    Args:
        step: The step.
        identity: The identity in the folder's record.
        folder: The folder.

    Raises:
        UserError: If the folder belongs to another identity.
    """
    if identity != step.identity:
        same = identity[:8] == step.identity[:8]
        cure = (
            "which begins with the same eight digits: use another store for this recipe"
            if same
            else f"so it is not the artifact of this name: remove {folder} to make it again"
        )
        raise UserError(f"{folder}: expected the identity {step.identity} of {step.stage.name}, got {identity}, {cure}")


def _problems(step: Step) -> list[str]:
    """Explain why a published artifact cannot be the result of a step, one line each."""
    folder = step.slot.artifact
    if step.slot.status != "cached":
        return []
    try:
        manifest = manifest_of(folder)
        check_identity(step, str(manifest["identity"]), folder)
    except UserError as error:
        return [str(error)]
    return [*_wrong_sizes(folder, manifest), *_moved(step, manifest.get("sources") or {})]


def _wrong_files(folder: Path) -> list[str]:
    """List each file of a saved artifact that is missing or has another size than in its manifest, one line each."""
    file = folder / MANIFEST_FILE
    if not file.is_file():
        return []
    return _wrong_sizes(folder, read_sealed(file))


def _wrong_sizes(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    lines = wrong_sizes(folder, known_files(manifest, folder / MANIFEST_FILE) or {})
    return [f"{line}; remove {folder} to make it again" for line in lines]


def _moved(step: Step, before: Mapping[str, str]) -> list[str]:
    """Report if the images of an index were moved to where the recipe now refers to."""
    here = set(map(located, step.fingerprints))
    gone = [path for path in before if path not in here and not files.is_remote(path) and not os.path.exists(path)]
    # Artifacts of other types no longer need the files that they were made from.
    if not gone or not issubclass(step.stage.makes, ImageDataset):
        return []
    return [
        f"{step.slot.artifact}: it refers to {gone[0]}, which was moved: remove the folder to index the images again"
        " (results made from them stay)"
    ]


def _sources(stage: Stage) -> list[str]:
    """List the outside files of a stage, and of evaluations in it."""
    paths: list[str] = []
    for owner in (stage, *_tasks(stage)):
        paths += owner.sources()
    return paths


def _tasks(stage: Stage) -> list[Stage]:
    """List the evaluations in a training stage or in `models.interpolate`."""
    tasks: list[Stage] = getattr(getattr(stage, "evaluation", None), "tasks", [])
    return tasks


def _identity(stage: Stage, inputs: Mapping[str, str], fingerprints: Mapping[str, str]) -> str:
    # A file counts with its name, which may decide how it is read. A folder's name or a signature decides nothing.
    named = {path: (_file_name(path), fingerprints[path]) for path in fingerprints}
    record: dict[str, Any] = {
        "kind": stage.kind,
        "version": stage.version,
        "sources": sorted(map(list, named.values())),
    }
    if hasattr(stage, "evaluation"):
        record["evaluations"] = [task.version for task in _tasks(stage)]
    if issubclass(stage.makes, Report):
        record["names"] = [ref.rstrip("/").rsplit("/", 1)[-1] for _, ref in refs(stage)]
    record["config"] = _with_identities(decisive_settings(stage), inputs, named)
    # Sorted, so that the order of a recipe's keys does not change the identity.
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _file_name(path: str) -> str:
    if files.is_directory(path):
        return ""
    return os.path.basename(files.without_query(path))


def _with_identities(value: Any, inputs: Mapping[str, str], named: Mapping[str, tuple[str, str]]) -> Any:
    """Replace inputs in a configuration by their identities, and outside paths by names and fingerprints."""
    if isinstance(value, Ref):
        return inputs[value]
    if isinstance(value, str):
        paths = _paths(value, named)
        if not paths:
            return value
        return [named[path] for path in paths]
    return map_items(lambda item: _with_identities(item, inputs, named), value)


def _paths(value: str, known: Mapping[str, Any]) -> list[str]:
    """List the outside files that a setting refers to, as a path or a pattern. Any other setting has none."""
    # Most settings are not paths, so only a text with a mark is looked up on the disk or a server.
    if value in known or not known or not any(mark in value for mark in PATTERN_MARKS):
        return [value] if value in known else []
    try:
        paths = expand_paths(value)
    except UserError:
        return []
    if all(path in known for path in paths):
        return paths
    return []


def saved_identity(folder: Path, fingerprint: Callable[[str], str]) -> str:
    """Look up the identity of a saved artifact in its manifest, else hash the fingerprints of its files."""
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        return str(read_sealed(manifest, "identity")["identity"])
    listing = []
    for path in sorted(filter(Path.is_file, folder.rglob("*"))):
        listing.append((str(path.relative_to(folder)), fingerprint(str(path))))
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:32]
