"""A recipe: an ordered list of stages, read from YAML, checked as a whole, and refused with one line per mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, TypeAdapter, ValidationError, create_model, field_validator

from vfm.artifacts import FACTS_FILE, Artifact
from vfm.config import Config, UserError, did_you_mean, error_lines
from vfm.flow import yaml_lines
from vfm.flow.seeds import per_seed
from vfm.flow.yaml_lines import KeyPath
from vfm.interfaces import Evaluation
from vfm.plugins import unknown_kind
from vfm.stage import Ref, Runtime, Stage, refs

SHIPPED = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: every stage is valid and every input is wired to something of the right type."""

    name: str
    description: str
    stages: tuple[Stage, ...]
    text: str = ""


class _TopLevel(Config):
    """The keys of a recipe file."""

    description: str = ""
    runtime: dict[str, Any] = Field(default={}, description="for all stages that do not say otherwise")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default=[], description="run what draws random numbers, and what builds on it, once per seed"
    )
    stages: list[dict[str, Any]] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{seeds} names a seed twice")
        return seeds


@dataclass
class _Draft:
    """A recipe between text and checked stages: raw values, where each stands, and the mistakes found so far."""

    file: str
    lines: dict[KeyPath, int]
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    mistakes: list[tuple[int, str]] = field(default_factory=list)

    def mistake(self, path: KeyPath, key: str, message: str) -> None:
        """Notes a mistake at the nearest line that is known for `path`."""
        place = path
        while place and place not in self.lines and place not in self.overridden:
            place = place[:-1]
        if place in self.overridden:
            self.mistakes.append((1 << 30, f"--set {self.overridden[place]}: {key}: {message}"))
        else:
            line = self.lines.get(place, 1)
            self.mistakes.append(
                (line, f"{self.file}:{line}: {key}: {message}" if key else f"{self.file}:{line}: {message}")
            )

    def raise_if_any(self) -> None:
        if self.mistakes:
            ordered = sorted(self.mistakes, key=lambda pair: pair[0])
            raise UserError("\n".join(yaml_lines.one_line(message) for _, message in ordered))


def load_recipe(source: str, known: Mapping[str, type[Stage]], overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        source: path of a YAML file, or the name of a recipe that ships with vfm.
        known: stage types by kind.
        overrides: `name.field=value` each, the value in YAML.

    Raises:
        UserError: one line for each mistake: file and line, dotted key, what is allowed.
    """
    path = find_recipe(source)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)
    return parse_recipe(text, known, overrides, name=name, where=path.name)


def find_recipe(source: str) -> Path:
    """The file of a recipe given by path or by the name of one that ships."""
    path = Path(source)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in SHIPPED.glob("*.yaml")}
    if source in shipped:
        return shipped[source]
    raise UserError(f"no recipe {source!r}: neither a file nor one that ships{did_you_mean(source, shipped)}")


def parse_recipe(
    text: str, known: Mapping[str, type[Stage]], overrides: Sequence[str] = (), *, name: str, where: str
) -> Recipe:
    """`load_recipe` for a text at hand; `where` stands for the file in messages."""
    raw, lines = yaml_lines.parse(text, where)
    draft = _Draft(where, lines)
    if not isinstance(raw, dict):
        raise UserError(f"{where}:1: a recipe is a mapping with the key 'stages'")
    _apply_overrides(raw, overrides, draft)
    try:
        top = _TopLevel(**raw)
    except ValidationError as error:
        for place, message in error_lines(error, _TopLevel):
            draft.mistake(place, _dotted("", place).lstrip("."), message)
        draft.raise_if_any()
        raise
    stages = [stage for index, item in enumerate(top.stages) if (stage := _stage(item, index, top, known, draft))]
    draft.raise_if_any()
    _check_wiring(stages, draft)
    draft.raise_if_any()
    return Recipe(name, top.description.strip(), tuple(per_seed(stages, top.seeds)), text)


def _apply_overrides(raw: dict[str, Any], overrides: Sequence[str], draft: _Draft) -> None:
    listed = raw.get("stages")
    stages = listed if isinstance(listed, list) else []
    names = {str(item.get("name")): index for index, item in enumerate(stages) if isinstance(item, dict)}
    for text in overrides:
        key, equals, value = text.partition("=")
        head, *rest = key.split(".")
        if not equals or not head:
            raise _refused(text, "should be NAME.FIELD=VALUE")
        if head in names and rest:
            target, path = stages[names[head]], cast("KeyPath", ("stages", names[head]))
        elif head in {"runtime", "seeds", "description"}:
            target, path, rest = raw, (), [head, *rest]
        elif head in names:
            raise _refused(text, f"say which field of '{head}': --set {head}.FIELD=VALUE")
        else:
            raise _refused(text, f"no stage is named '{head}'{did_you_mean(head, names)}")
        for part in rest[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise _refused(text, f"'{part}' is not a mapping with fields")
        target[rest[-1]] = yaml_lines.parse_value(value, f"--set {text}")
        draft.overridden[(*path, *rest)] = text


def _refused(override: str, message: str) -> UserError:
    return UserError(yaml_lines.one_line(f"--set {override}: {message}"))


def _stage(
    item: dict[str, Any], index: int, top: _TopLevel, known: Mapping[str, type[Stage]], draft: _Draft
) -> Stage | None:
    place: KeyPath = ("stages", index)
    name = item.get("name")
    label = name if isinstance(name, str) and name else f"stages[{index}]"
    kind = item.get("kind")
    if not isinstance(kind, str) or kind not in known:
        message = "is required (which kind of stage this is)" if kind is None else unknown_kind(str(kind), dict(known))
        draft.mistake((*place, "kind"), f"{label}.kind", message)
        return None
    if top.runtime:
        own = item.get("runtime") or {}
        item = {**item, "runtime": {**top.runtime, **own} if isinstance(own, dict) else own}
    try:
        return known[kind].model_validate(item, context=known)
    except ValidationError as error:
        for location, message in error_lines(error, known[kind]):
            inherited = location[:1] == ("runtime",) and (*place, "runtime") not in draft.lines
            path = location if inherited else (*place, *location)
            draft.mistake(path, _dotted(label, location), message)
        return None


def _dotted(label: str, location: Iterable[str | int]) -> str:
    return label + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _check_wiring(stages: Sequence[Stage], draft: _Draft) -> None:
    """Every input is an earlier stage, or a saved artifact, of a type that fits."""
    names = [stage.name for stage in stages]
    made: dict[str, type[Artifact]] = {}
    for index, stage in enumerate(stages):
        place: KeyPath = ("stages", index)
        for key, ref in refs(stage):
            message = _mis_wired(ref, made, names)
            if message:
                path: KeyPath = tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key))
                draft.mistake((*place, *path), f"{stage.name}.{key}", message)
        if isinstance(stage, Evaluation) and not stage.models:
            draft.mistake((*place, "models"), f"{stage.name}.models", "is required (whom to judge)")
        if stage.name in made:
            draft.mistake((*place, "name"), f"{stage.name}.name", "another stage has this name already")
        made[stage.name] = stage.makes


def _mis_wired(ref: Ref[Any], made: Mapping[str, type[Artifact]], names: Sequence[str]) -> str | None:
    if ref in made:
        return None if ref.accepts(made[ref]) else f"wants a {ref.wanted}; '{ref}' makes a {made[ref].__name__}"
    if ref in names:
        return f"'{ref}' comes later; a stage can only use earlier ones"
    if (Path(ref) / FACTS_FILE).is_file():
        found = type(Artifact.load(ref))
        return None if ref.accepts(found) else f"wants a {ref.wanted}; {ref} holds a {found.__name__}"
    return f"no earlier stage and no saved artifact is named '{ref}'{did_you_mean(ref, made)}"


def json_schema(known: Mapping[str, type[Stage]]) -> dict[str, Any]:
    """JSON Schema of a recipe made of the installed stages, for editors."""
    union: Any = Annotated[_union(tuple(known.values())), Field(discriminator="kind")]
    model = create_model(
        "Recipe",
        __config__={"extra": "forbid"},
        description=(str, ""),
        runtime=(Runtime, Runtime()),
        seeds=(list[int], []),
        stages=(list[union], ...),
    )
    return TypeAdapter(model).json_schema()


def _union(types: tuple[type[Stage], ...]) -> Any:
    result: Any = types[0]
    for kind in types[1:]:
        result = result | kind
    return result
