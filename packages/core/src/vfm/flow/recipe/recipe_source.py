"""The text of a recipe before validation: the file laid over its `base`, then `--set`, with the origin of every key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from vfm.base import UserError, did_you_mean, redacted_words
from vfm.flow.recipe import yaml_lines
from vfm.flow.recipe.shipped import shipped_files
from vfm.flow.recipe.yaml_lines import KeyPath

TOP_LEVEL = {"runtime", "seeds", "description", "paths"}  # keys that --set can address beside the stages
Place = tuple[str, int]  # name of a file, line from 1


@dataclass
class RecipeSource:
    """The keys of a recipe, with the file and line, or the `--set` option, that each comes from.

    Attributes:
        where: name of the recipe's own file.
        value: the keys, those of the base included.
        places: file and line by key path.
        overridden: `--set` option by key path.
        bases: names of the files below the recipe's own one, the nearest first.
    """

    where: str
    value: dict[str, Any]
    places: dict[KeyPath, Place]
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)


def find_recipe(source: str) -> Path:
    """Return the file of a recipe, which is given by its path or by the name of a shipped recipe.

    Raises:
        UserError: it is neither.
    """
    if os.path.isfile(source):  # False, not an error, for a name that is too long
        return Path(source)
    shipped = shipped_files("recipes")
    if source in shipped:
        return shipped[source]
    raise UserError(f"no recipe {source!r}: neither a file nor a shipped recipe{did_you_mean(source, shipped)}")


def about_recipe(file: Path) -> str:
    """Return the first sentence of the comment that a recipe begins with."""
    lines = takewhile(lambda line: line.strip(" #"), file.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.lstrip("# ").rstrip() for line in lines)
    return re.split(r"(?<!et al)\. ", text)[0].rstrip(".")  # "et al." ends no sentence


def read_text(file: Path) -> str:
    """Return the text of a recipe file.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None


def read_source(text: str, where: str, folder: Path, chain: Sequence[Path] = ()) -> RecipeSource:
    """Return the keys of a recipe, laid over those of its `base` if it has one.

    `description`, `runtime` and `seeds` replace those of the base. Stages are matched by `name` and merged field by
    field, mappings within them too; stages with new names are appended. A mapping with another `type` than that of the
    base replaces it, since the two types have different fields.

    Args:
        text: the recipe.
        where: name of its file, for error messages.
        folder: folder that a relative path in `base` starts from.
        chain: files that are being read, the recipe first and this file last.

    Raises:
        UserError: the text is not valid YAML, `base` names no recipe or leads back to this one, or a stage that is
            laid over a base has no name.
    """
    value, lines = yaml_lines.parse(text, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}:1: expected a recipe: a mapping with the key 'stages'")
    own = RecipeSource(where, value, {path: (where, line) for path, line in lines.items()})
    if "base" not in value:
        return own
    line = f"{where}:{lines['base',]}: base"
    name = value.pop("base")
    if not isinstance(name, str):
        raise UserError(yaml_lines.one_line(f"{line}: expected a path or the name of a shipped recipe, got {name!r}"))
    try:
        file = find_recipe(str(folder / name) if os.path.isfile(folder / name) else name).resolve()
    except UserError as error:
        raise UserError(yaml_lines.one_line(f"{line}: {error}")) from None
    if file in chain:
        cycle = " -> ".join(path.name for path in (*chain[chain.index(file) :], file))
        raise UserError(f"{line}: a recipe cannot be its own base: {cycle}")
    base = read_source(read_text(file), file.name, file.parent, (*chain, file))
    _lay_over(base, own)
    return RecipeSource(where, base.value, base.places, bases=[base.where, *base.bases])


def _lay_over(base: RecipeSource, own: RecipeSource) -> None:
    """Change `base` to what it is with the keys of `own` laid over it."""
    stages = base.value.get("stages")
    for key, value in own.value.items():
        if key == "stages" and isinstance(value, list) and isinstance(stages, list):
            _merge_stages(stages, base, own)
        else:
            base.value[key] = value
            _move_places(base, (key,), own, (key,))


def _merge_stages(stages: list[Any], base: RecipeSource, own: RecipeSource) -> None:
    names = [item.get("name") if isinstance(item, dict) else None for item in stages]
    for index, item in enumerate(own.value["stages"]):
        path: KeyPath = ("stages", index)
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            file, line = own.places.get(path, (own.where, 1))
            raise UserError(f"{file}:{line}: stages[{index}]: name is required, to find the stage in {base.where}")
        if name in names:
            place = names.index(name)
            names[place] = None  # a second stage of this name is a mistake that validation reports
            _merge(stages[place], ("stages", place), base, item, path, own)
        else:
            stages.append(item)
            _move_places(base, ("stages", len(stages) - 1), own, path)


def _merge(
    values: dict[str, Any],
    base_path: KeyPath,
    base: RecipeSource,
    item: dict[str, Any],
    path: KeyPath,
    own: RecipeSource,
) -> None:
    """Lay `item`, at `path` of `own`, over `values`, which are at `base_path` of `base`."""
    for key, value in item.items():
        old = values.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("type") in (None, old.get("type")):
            _merge(old, (*base_path, key), base, value, (*path, key), own)
        else:
            values[key] = value
            _move_places(base, (*base_path, key), own, (*path, key))


def _move_places(base: RecipeSource, base_path: KeyPath, own: RecipeSource, path: KeyPath) -> None:
    """Replace the places at and below `base_path` by those that `own` has at `path`."""
    for old in [place for place in base.places if place[: len(base_path)] == base_path]:
        del base.places[old]
    found = {place: at for place, at in own.places.items() if place[: len(path)] == path}
    base.places |= {(*base_path, *place[len(path) :]): at for place, at in found.items()}


def apply_overrides(source: RecipeSource, overrides: Sequence[str]) -> None:
    """Lay `NAME.FIELD=VALUE` overrides over a recipe, the values in YAML.

    Raises:
        UserError: an override has another form, or names no stage.
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
            target, path = stages[names[head]], ("stages", names[head])
        elif head in TOP_LEVEL:
            target, path, rest = source.value, (), [head, *rest]
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
    """Return an override without credentials. They are replaced in it alone: a message that follows is kept whole."""
    return redacted_words([override])[0]


@dataclass
class Mistakes:
    """The mistakes found in a recipe, each a line that begins with the file and line, or the `--set`, of its key."""

    source: RecipeSource
    lines: dict[str, tuple[bool, int]] = field(default_factory=dict)  # line -> its place in the order

    def add(self, path: KeyPath, key: str, message: str) -> None:
        """Add a mistake, at the `--set` or nearest known line that it is from; `key` is how the message calls it."""
        source, place = self.source, path
        option = next((text for at, text in source.overridden.items() if path[: len(at)] == at), None)
        while option is None and place and place not in source.places:  # a key that only `--set` has, or nothing has
            option = next((text for at, text in source.overridden.items() if at[: len(place)] == place), None)
            place = place[:-1]
        text = f"{key}: {message}" if key else message
        if option is not None:
            self.lines.setdefault(f"set {_shown(option)}: {text}", (True, 0))
        else:
            file, line = source.places.get(place, (source.where, 1))
            self.lines.setdefault(f"{file}:{line}: {text}", (False, line))

    def raise_if_any(self) -> None:
        """Raise the mistakes as one UserError, in the order of their lines, those of `--set` last.

        Raises:
            UserError: there are some.
        """
        if self.lines:
            raise UserError("\n".join(map(yaml_lines.one_line, self._ordered())))

    def _ordered(self) -> Iterator[str]:
        yield from sorted(self.lines, key=self.lines.__getitem__)
