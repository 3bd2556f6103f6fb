"""The text of a recipe before validation: the file merged into its `base`, then `--set`, and the origin of all keys."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from vfm.base import UserError, did_you_mean, redacted_words
from vfm.flow.recipe import yaml_lines
from vfm.flow.recipe.shipped import shipped_files
from vfm.flow.recipe.yaml_lines import KeyPath

TOP_LEVEL = {"runtime", "seeds", "description", "paths"}  # keys that --set can address, besides the stages
Place = tuple[str, int]  # name of a file, line from 1


@dataclass
class RecipeSource:
    """The keys of a recipe, with the file and line, or the `--set` option, that each comes from.

    Attributes:
        where: Name of the recipe's file.
        value: The keys, including the keys of the base.
        places: File and line by key path.
        overridden: `--set` option by key path.
        bases: Names of the base recipes, nearest first.
    """

    where: str
    value: dict[str, Any]
    places: dict[KeyPath, Place]
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)

    def stage_place(self, index: int) -> str:
        """List the files with settings of a stage, each with the first line of these, the recipe before its bases."""
        first_lines: dict[str, int] = {}
        for path, (file, line) in self.places.items():
            if path[:2] == ("stages", index):
                first_lines[file] = min(line, first_lines.get(file, line))
        return " and ".join(f"{file}:{first_lines[file]}" for file in (self.where, *self.bases) if file in first_lines)


DATA_SUFFIXES = {".tar", ".zip", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl"}


def find_recipe(source: str) -> Path:
    """Find the file of a recipe by its path or by the name of a shipped recipe.

    Raises:
        UserError: If there is no such file and no such shipped recipe, or these are data.
    """
    is_data = Path(source).suffix in DATA_SUFFIXES
    if os.path.isfile(source) and not is_data:  # False, not an error, for a name that is too long
        return Path(source)
    shipped = shipped_files("recipes")
    if source in shipped:
        return shipped[source]
    if is_data or os.path.isdir(source):
        pool = shlex.quote(f"pool.path={source}")
        raise UserError(
            f"{source}: expected a recipe, got data; to look at them: vfm data {shlex.quote(source)}; to train on them:"
            f" vfm run pairs --set {pool}"
        )
    raise UserError(f"no recipe {source!r}: neither a file nor a shipped recipe{did_you_mean(source, shipped)}")


def about_recipe(file: Path) -> str:
    """Read the first sentence of the comment at the beginning of a recipe."""
    lines = takewhile(lambda line: line.strip(" #"), file.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.lstrip("# ").rstrip() for line in lines)
    return re.split(r"(?<!et al)\. ", text)[0].rstrip(".")  # "et al." ends no sentence


def read_text(file: Path) -> str:
    """Read the text of a recipe file.

    Raises:
        UserError: If it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None


def read_source(text: str, where: str, folder: Path, chain: Sequence[Path] = ()) -> RecipeSource:
    """Parse the keys of a recipe, and merge them into its `base` if it has one.

    `description`, `runtime` and `seeds` replace the base's. Stages are matched by `name` and merged field by field,
    including nested mappings. Stages with new names are appended. A mapping with another `type` replaces the base's,
    since the two types have different fields.

    Args:
        text: The recipe.
        where: Name of its file, for error messages.
        folder: Folder that a relative path in `base` starts from.
        chain: Files being read, the recipe first and this file last.

    Raises:
        UserError: If the text is not valid YAML, `base` names no recipe or leads back to this one, or a stage has no
            name, although there is a base.
    """
    value, lines = yaml_lines.parse(text, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}:1: expected a recipe: a mapping with the key 'stages'")
    source = RecipeSource(where, value, {path: (where, line) for path, line in lines.items()})
    if "base" not in value:
        return source
    line = f"{where}:{lines['base',]}: base"
    name = value.pop("base")
    if not isinstance(name, str):
        raise UserError(yaml_lines.one_line(f"{line}: expected a path or the name of a shipped recipe, got {name!r}"))
    try:
        local = folder / name
        source_name = str(local) if os.path.isfile(local) else name
        file = find_recipe(source_name).resolve()
    except UserError as error:
        raise UserError(yaml_lines.one_line(f"{line}: {error}")) from None
    names = [path.name for path in chain]
    if file in chain:
        cycle = [*names[chain.index(file) :], file.name]
        raise UserError(f"{line}: a recipe cannot be its own base: {' -> '.join(cycle)}")
    # Places name a file by its name, or by its path if a recipe and its base have the same name.
    base_where = str(file) if file.name in names else file.name
    base = read_source(read_text(file), base_where, file.parent, (*chain, file))
    _lay_over(base, source)
    return RecipeSource(where, base.value, base.places, bases=[base.where, *base.bases])


def _lay_over(base: RecipeSource, source: RecipeSource) -> None:
    """Merge the keys of `source` into `base`, in place."""
    stages = base.value.get("stages")
    for key, value in source.value.items():
        if key == "stages" and isinstance(value, list) and isinstance(stages, list):
            _merge_stages(stages, base, source)
        else:
            base.value[key] = value
            _move_places(base, (key,), source, (key,))


def _merge_stages(stages: list[Any], base: RecipeSource, source: RecipeSource) -> None:
    names = [item.get("name") if isinstance(item, dict) else None for item in stages]
    for index, item in enumerate(source.value["stages"]):
        path: KeyPath = ("stages", index)
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            file, line = source.places.get(path, (source.where, 1))
            raise UserError(f"{file}:{line}: stages[{index}]: name is required, to find the stage in {base.where}")
        if name in names:
            number = names.index(name)
            names[number] = None  # a second stage of this name is a mistake that validation reports
            _merge(stages[number], ("stages", number), base, item, path, source)
        else:
            stages.append(item)
            _move_places(base, ("stages", len(stages) - 1), source, path)


def _merge(
    values: dict[str, Any],
    base_path: KeyPath,
    base: RecipeSource,
    item: dict[str, Any],
    path: KeyPath,
    source: RecipeSource,
) -> None:
    """Merge `item`, at `path` of `source`, into `values`, at `base_path` of `base`."""
    for key, value in item.items():
        old = values.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("type") in (None, old.get("type")):
            _merge(old, (*base_path, key), base, value, (*path, key), source)
        else:
            values[key] = value
            _move_places(base, (*base_path, key), source, (*path, key))


def _move_places(base: RecipeSource, base_path: KeyPath, source: RecipeSource, path: KeyPath) -> None:
    """Replace the places at and below `base_path` by the places of `source` at `path`."""
    for old in list(base.places):
        if old[: len(base_path)] == base_path:
            del base.places[old]
    for key, origin in source.places.items():
        if key[: len(path)] == path:
            base.places[(*base_path, *key[len(path) :])] = origin


def apply_overrides(source: RecipeSource, overrides: Sequence[str]) -> None:
    """Apply `NAME.FIELD=VALUE` overrides to a recipe, with values in YAML.

    Raises:
        UserError: If an override has another form, or names no stage.
    """
    listed = source.value.get("stages")
    stages = listed if isinstance(listed, list) else []
    names = {str(item.get("name")): index for index, item in enumerate(stages) if isinstance(item, dict)}
    for text in overrides:
        key, equals, value = text.partition("=")
        head, *rest = key.split(".")
        target: Any
        path: KeyPath
        if not equals or not head:
            raise _refused(text, "expected NAME.FIELD=VALUE")
        if head in names and rest:
            target = stages[names[head]]
            path = ("stages", names[head])
        elif head in TOP_LEVEL:
            target = source.value
            path = ()
            rest = [head, *rest]
        elif head in names:
            raise _refused(text, f"expected a field of '{head}': {head}.FIELD=VALUE")
        else:
            raise _refused(text, f"no stage is named '{head}'{did_you_mean(head, names)}")
        for part in rest[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise _refused(text, f"'{part}' is not a mapping with fields")
        target[rest[-1]] = yaml_lines.parse_value(value, f"set {text}")
        source.overridden[(*path, *rest)] = text


def _refused(override: str, message: str) -> UserError:
    return UserError(yaml_lines.one_line(f"set {_shown(override)}: {message}"))


def _shown(override: str) -> str:
    """Mask the credentials in an override. The rest of a message is not masked, so it stays readable."""
    return redacted_words([override])[0]


@dataclass
class Mistakes:
    """Mistakes in a recipe, one line each.

    A line begins with the file and line, or the `--set` option, of its key.
    """

    source: RecipeSource
    lines: dict[str, tuple[bool, int]] = field(default_factory=dict)  # line -> its sort key

    def add(self, path: KeyPath, key: str, message: str) -> None:
        """Add a mistake with the `--set` option or nearest known line of its key.

        Args:
            path: Path of the value.
            key: Its name for the user.
            message: The mistake.
        """
        source = self.source
        place = path
        option = next((text for at, text in source.overridden.items() if path[: len(at)] == at), None)
        while option is None and place and place not in source.places:  # only `--set` has the key, or nothing has it
            option = next((text for at, text in source.overridden.items() if at[: len(place)] == place), None)
            place = place[:-1]
        text = f"{key}: {message}" if key else message
        if option is not None:
            self.lines.setdefault(f"set {_shown(option)}: {text}", (True, 0))
        else:
            file, line = source.places.get(place, (source.where, 1))
            self.lines.setdefault(f"{file}:{line}: {text}", (False, line))

    def raise_if_any(self) -> None:
        """Raise the mistakes as one UserError, in the order of their lines, with `--set` options last.

        Raises:
            UserError: If there are mistakes.
        """
        if self.lines:
            raise UserError("\n".join(map(yaml_lines.one_line, self._ordered())))

    def _ordered(self) -> Iterator[str]:
        yield from sorted(self.lines, key=self.lines.__getitem__)
