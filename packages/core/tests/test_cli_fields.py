"""`vfm stages KIND` tells types, defaults and the settings of parts in the words of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from vfm.cli.type_words import field_rows, value_words

from vfm.artifacts import ClipCheckpoint, Pool, VisionCheckpoint
from vfm.config import Config
from vfm.stage import Ref


class Plain(Config):
    type: Literal["plain"] = "plain"
    weight: float = Field(0.5, description="of it")


class Taught(Config):
    type: Literal["taught"] = "taught"
    weight: float = Field(0.5, description="of it")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="who teaches")


class Portion(Config):
    data: Ref[Pool] = Field(description="pairs")
    weight: float = Field(1.0, description="how many of them")


class Settings(Config):
    kind: Literal["toy"] = "toy"
    scale: tuple[float, float] | None = Field((0.9, 1.0), description="share kept")
    loss: Annotated[Plain | Taught, Field(discriminator="type")] = Field(Plain(), description="what is minimised")
    data: Ref[Pool] | list[Portion] = Field(description="what is learned from")
    one: Portion | None = Field(None, description="one part")
    chances: Mapping[Literal["a", "b"], Annotated[float, Field(ge=0)]] = Field({}, description="of each")
    names: tuple[str, ...] = Field(("x",), description="its names")
    part: Plain = Field(Plain(), description="a part")


@pytest.mark.parametrize(
    "row",
    [
        ("scale", "[float, float] | null", "[0.9, 1.0]", "share kept"),
        ("loss", "{type: plain | taught}", "{type: plain, weight: 0.5}", "what is minimised"),
        ("loss.weight", "float", "0.5", "plain, taught: of it"),
        ("loss.teacher", "name of ClipCheckpoint | VisionCheckpoint", "required", "taught: who teaches"),
        ("data", "name of Pool | list of {data, weight}", "required", "what is learned from"),
        ("chances", "mapping of a | b to float", "{}", "of each"),
        ("names", "list of str", "[x]", "its names"),
        ("one.weight", "float", "1.0", "how many of them"),
        ("part.weight", "float", "0.5", "plain: of it"),
    ],
    ids=lambda row: row[0],
)
def test_fields_are_told_in_the_words_of_a_recipe(row: tuple[str, ...]) -> None:
    assert row in list(field_rows(Settings))


def test_kind_and_type_are_no_settings() -> None:
    assert not {"kind", "loss.type"} & {name for name, *_ in field_rows(Settings)}


def test_defaults_that_yaml_has_no_word_for_are_told_as_a_recipe_has_them() -> None:
    assert value_words((Path("own/data"), float("inf"))) == "[own/data, .inf]"
