"""Recipes: an ordered list of stages in YAML, validated as a whole, with one error line for each mistake."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from vfm.base import Config, UserError, did_you_mean, error_lines, map_items, redacted, redacted_words, unknown_key
from vfm.flow.recipe.recipe_source import Mistakes, RecipeSource, apply_overrides, find_recipe, read_source, read_text
from vfm.flow.recipe.run_names import run_name
from vfm.flow.recipe.seeds import per_seed
from vfm.flow.recipe.yaml_lines import KeyPath, dump, one_line
from vfm.interfaces import FACTS_FILE, Artifact, Evaluation, Preflight, Ref, Runtime, Stage, refs, unknown_kind


@dataclass(frozen=True)
class Recipe:
    """A checked recipe, in which every stage is valid and every input has an artifact of the right type.

    Attributes:
        name: Name of the run.
        description: Purpose of the recipe.
        stages: The stages in order.
        text: Its YAML without credentials. With a base or `--set`, this is the resolved recipe.
        bases: Names of the base recipes, nearest first.
        file: Its file, if it has one.
        places: File and line of each stage, for messages. Empty if the recipe has no file.
    """

    name: str
    description: str
    stages: tuple[Stage, ...]
    text: str = ""
    bases: tuple[str, ...] = ()
    file: Path | None = None
    places: Mapping[str, str] = field(default_factory=dict)

    def stage_place(self, stage: Stage) -> str:
        """Look up the file and line of a stage, or of the stage that it repeats with another seed."""
        return self.places.get(stage.name) or self.places.get(stage.name.rpartition("@")[0], "")

    def preflight(self, artifacts: Mapping[str, Path]) -> Preflight:
        """Collect the facts known before a run, with the artifacts that exist."""
        return Preflight({stage.name: stage for stage in self.stages}, artifacts)


class RecipeKeys(Config):
    """The keys of a recipe."""

    description: str = Field("", description="purpose of the recipe")
    runtime: dict[str, Any] = Field({}, description="runtime of every stage, for keys that the stage does not set")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="repeat stages that draw random numbers, and all that depend on them, once per seed"
    )
    paths: dict[str, str] = Field(
        {}, description="folders by name: `$NAME/` at the beginning of a value in a stage is replaced by the folder"
    )
    stages: list[dict[str, Any]] = Field(min_length=1, description="the stages in order")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"expected distinct seeds, got {seeds}")
        return seeds


def load_recipe(
    source: str, known: Mapping[str, type[Stage]], overrides: Sequence[str] = (), *, absent_path: str = ""
) -> Recipe:
    """Read and validate a recipe.

    Args:
        source: Path of a YAML file, or the name of a shipped recipe.
        known: Stage types by kind.
        overrides: `NAME.FIELD=VALUE` each, the value in YAML.
        absent_path: Placeholder for each `path` of data that the recipe leaves open. Empty: an open path is a mistake.

    Raises:
        UserError: If there are mistakes. The message has one line for each: file and line, dotted key, allowed values.
    """
    path = find_recipe(source)
    name = run_name(path.stem)
    text = read_text(path)
    return parse_recipe(text, known, overrides, name=name, where=path.name, file=path, absent_path=absent_path)


def parse_recipe(
    text: str,
    known: Mapping[str, type[Stage]],
    overrides: Sequence[str] = (),
    *,
    name: str,
    where: str,
    file: Path | None = None,
    absent_path: str = "",
) -> Recipe:
    """Validate the text of a recipe, as `load_recipe` does.

    Args:
        text: The YAML.
        known: Stage types by kind.
        overrides: `NAME.FIELD=VALUE` each, the value in YAML.
        name: Name of the recipe.
        where: Name of its file in error messages.
        file: The file. A relative path in `base` starts from its folder.
        absent_path: As in `load_recipe`.

    Raises:
        UserError: If there are mistakes. The message has one line for each.
    """
    folder, chain = (file.parent, (file.resolve(),)) if file else (Path(), ())
    source = read_source(text, where, folder, chain)
    apply_overrides(source, overrides)
    # Otherwise the text is stored as it was written, with its comments.
    if source.bases or overrides or redacted([source.value, text]) != [source.value, text]:
        text = _resolved_text(source, overrides)
    mistakes = Mistakes(source)
    try:
        keys = RecipeKeys(**source.value)
    except ValidationError as error:
        for location, message in error_lines(error, RecipeKeys):
            mistakes.add(location, _dotted("", location).lstrip("."), message)
        mistakes.raise_if_any()
        raise
    _check_runtime_keys(keys, known, mistakes)
    stages = []
    for index, item in enumerate(keys.stages):
        if absent_path:
            item = _with_path(item, known, absent_path)
        stage = _stage(item, index, keys, known, mistakes)
        if stage:
            stages.append(stage)
    mistakes.raise_if_any()
    # Not before all stages are valid, since an invalid one would also be reported as missing by those that refer to it.
    _check_inputs(stages, mistakes)
    mistakes.raise_if_any()
    about = keys.description.strip()
    places = {stage.name: source.stage_place(index) for index, stage in enumerate(stages)} if file else {}
    return Recipe(name, about, tuple(per_seed(stages, keys.seeds)), text, tuple(source.bases), file, places)


def _resolved_text(source: RecipeSource, overrides: Sequence[str]) -> str:
    """Write a recipe, its bases and `--set` changes as one YAML text, without credentials."""
    value = redacted(source.value)
    about = value.get("description")
    if isinstance(about, str):
        value = {**value, "description": about.strip()}
    text = dump(value)
    bases = f", laid over {', '.join(source.bases)}" if source.bases else ""
    settings = "".join(f" --set {shlex.quote(word)}" for word in redacted_words(overrides))
    return one_line(f"# {source.where}{bases}{settings and f', with{settings}'}") + f"\n{text}"


def runtime_of(stage: type[Stage]) -> type[Runtime]:
    """Look up the class of a stage's `runtime`."""
    annotation: Any = stage.model_fields["runtime"].annotation
    runtime: type[Runtime] = annotation
    return runtime


def _check_runtime_keys(keys: RecipeKeys, known: Mapping[str, type[Stage]], mistakes: Mistakes) -> None:
    """Report the keys of a recipe's runtime that no installed stage type has."""
    used = []
    for item in keys.stages:
        kind = item.get("kind")
        if isinstance(kind, str) and kind in known:
            used.append(known[kind])
    # The stage types of other kinds are imported only if none of the recipe's has a key.
    for key in keys.runtime.keys() - _runtime_keys(used):
        allowed = _runtime_keys(known.values())
        if key not in allowed:
            shown = redacted(keys.runtime[key])
            mistakes.add(("runtime", key), f"runtime.{key}", unknown_key(str(key), shown, sorted(allowed)))


def _runtime_keys(stages: Iterable[type[Stage]]) -> set[str]:
    """List the keys of `runtime` that any of the stage types has."""
    keys: set[str] = set()
    for stage in stages:
        keys |= set(runtime_of(stage).model_fields)
    return keys


def _stage(
    item: dict[str, Any], index: int, keys: RecipeKeys, known: Mapping[str, type[Stage]], mistakes: Mistakes
) -> Stage | None:
    """Validate a stage. If it has mistakes, add them to `mistakes` and return None."""
    path: KeyPath = ("stages", index)
    name = item.get("name")
    label = name if isinstance(name, str) and name else f"stages[{index}]"
    kind = item.get("kind")
    if not isinstance(kind, str) or kind not in known:
        message = "is required (the kind of this stage)" if kind is None else unknown_kind(str(kind), known)
        mistakes.add((*path, "kind"), f"{label}.kind", message)
        return None
    try:
        item = _with_folders(item, keys.paths)
    except UserError as error:
        mistakes.add(path, label, str(error))
        return None
    stage_runtime = item.get("runtime") or {}
    # A recipe's `runtime` is for stages of all kinds, which have different keys.
    shared = {key: value for key, value in keys.runtime.items() if key in runtime_of(known[kind]).model_fields}
    if shared and isinstance(stage_runtime, dict):
        item = {**item, "runtime": {**shared, **stage_runtime}}
    try:
        return known[kind].model_validate(item, context=known)
    except ValidationError as error:
        for location, message in error_lines(error, known[kind]):
            if (
                location[:1] == ("runtime",)
                and shared
                and isinstance(stage_runtime, dict)
                and _is_shared(location, stage_runtime)
            ):
                mistakes.add(location, _dotted("", location).lstrip("."), message)  # one line for all stages
            else:
                mistakes.add((*path, *location), _dotted(label, location), message)
        return None


def _with_path(item: dict[str, Any], known: Mapping[str, type[Stage]], absent_path: str) -> dict[str, Any]:
    """Add a path to the settings of a stage if it needs one and has none."""
    kind = item.get("kind")
    if not isinstance(kind, str) or kind not in known:
        return item
    field = known[kind].model_fields.get("path")
    return {"path": absent_path, **item} if field and field.is_required() else item


def _with_folders(value: Any, folders: Mapping[str, str]) -> Any:
    """Replace `$NAME/` in a value of a recipe by the named folders.

    Raises:
        UserError: If a folder has no entry in `paths`.
    """
    if not isinstance(value, str):
        return map_items(lambda item: _with_folders(item, folders), value)
    match = re.match(r"\$(\w+)/", value)
    if not match:
        return value
    if match[1] not in folders:
        raise UserError(f"{value}: paths has no folder {match[1]!r}{did_you_mean(match[1], folders)}")
    return f"{folders[match[1]].rstrip('/')}/{value[match.end() :]}"


def _is_shared(location: KeyPath, stage_runtime: Mapping[str, Any]) -> bool:
    """Check whether the runtime key at `location` comes from the recipe's `runtime`, not from the stage's."""
    if len(location) < 2:
        return not stage_runtime
    return str(location[1]) not in stage_runtime


def _dotted(label: str, location: Iterable[str | int]) -> str:
    return label + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _check_inputs(stages: Sequence[Stage], mistakes: Mistakes) -> None:
    """Check that every input is an earlier stage or a saved artifact of the right type, and that names are unique."""
    names = [stage.name for stage in stages]
    types: dict[str, type[Artifact]] = {}
    for index, stage in enumerate(stages):
        stage_path: KeyPath = ("stages", index)
        for key, ref in refs(stage):
            message = _misfit(ref, types, names)
            if message:
                path: KeyPath = tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key))
                mistakes.add((*stage_path, *path), f"{stage.name}.{key}", message)
        if isinstance(stage, Evaluation) and not stage.has_something_to_evaluate:
            mistakes.add((*stage_path, "models"), f"{stage.name}.models", "is required (the models to evaluate)")
        if stage.name in types:
            mistakes.add((*stage_path, "name"), f"{stage.name}.name", "another stage has this name")
        types[stage.name] = stage.makes


def _misfit(ref: Ref[Any], types: Mapping[str, type[Artifact]], names: Sequence[str]) -> str | None:
    """Explain why an input does not fit. A fitting one gives None."""
    if ref in types:
        return None if ref.accepts(types[ref]) else f"expected a {ref.expected}; '{ref}' makes a {types[ref].__name__}"
    if ref in names:
        return f"'{ref}' comes later; a stage can only use earlier ones"
    if os.path.isfile(Path(ref) / FACTS_FILE):  # False for a name that is too long
        saved = type(Artifact.load(ref, verify=False))
        return None if ref.accepts(saved) else f"expected a {ref.expected}; {ref} holds a {saved.__name__}"
    return f"no earlier stage and no saved artifact is named '{ref}'{did_you_mean(ref, types)}"
