"""`vfm stages KIND` lists types, defaults and the fields of groups and slots as a recipe writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from vfm.base import Config, Part
from vfm.cli.fields.field_table import field_rows, value_words
from vfm.interfaces import ClipCheckpoint, Pool, Ref, Runtime, VisionCheckpoint


class ToyLoss(Part):
    """Loss of the tests' settings."""

    weight: float = Field(0.5, description="factor")


class Plain(ToyLoss):
    """The plain loss."""

    type: Literal["plain"] = "plain"
    work: ClassVar[str] = "builtins:dict"


class Taught(ToyLoss):
    """A loss with a teacher."""

    type: Literal["taught"] = "taught"
    work: ClassVar[str] = "builtins:dict"
    weight: float = Field(0.1, description="factor")
    teacher: Ref[ClipCheckpoint | VisionCheckpoint] = Field(description="the teacher")


class Portion(Config):
    data: Ref[Pool] = Field(description="pairs")
    weight: float = Field(1.0, description="its weight")


class Settings(Config):
    kind: Literal["toy"] = "toy"
    runtime: Runtime = Field(Runtime(), description="how it runs")
    loss: ToyLoss = Field(Plain(weight=0.7), description="what is minimised")
    scale: tuple[float, float] | None = Field((0.9, 1.0), description="fraction kept")
    data: Ref[Pool] | list[Portion] = Field(description="training data")
    one: Portion | None = Field(None, description="one portion")
    chances: Mapping[Literal["a", "b"], Annotated[float, Field(ge=0)]] = Field({}, description="of each")
    names: tuple[str, ...] = Field(("x",), description="its names")
    group: Portion = Field(Portion(data=Ref("pool"), weight=3.0), description="a group")
    losses: list[ToyLoss] = Field([], description="more losses")


@pytest.mark.parametrize(
    "row",
    [
        ("scale", "[float, float] | null", "[0.9, 1.0]", "fraction kept"),
        ("loss", "{type: plain | taught}", "{type: plain}", "what is minimised"),
        ("loss.weight", "float", "0.7", "factor"),
        ("loss.type: taught", "", "", "A loss with a teacher."),
        ("loss.weight", "float", "0.1", "factor"),
        ("loss.teacher", "name of ClipCheckpoint | VisionCheckpoint", "required", "the teacher"),
        ("data", "name of Pool | list of {data, weight}", "required", "training data"),
        ("data[].weight", "float", "1.0", "its weight"),
        ("chances", "mapping of a | b to float", "{}", "of each"),
        ("names", "list of str", "[x]", "its names"),
        ("one.weight", "float", "1.0", "its weight"),
        ("group", "mapping", "", "a group"),
        ("group.weight", "float", "3.0", "its weight"),
        ("losses", "list of {type: plain | taught}", "[]", "more losses"),
        ("losses[].type: plain", "", "", "The plain loss."),
    ],
    ids=lambda row: row[0],
)
def test_fields_are_listed_as_a_recipe_writes_them(row: tuple[str, ...]) -> None:
    assert row in [found.cells for found in field_rows(Settings)]


def test_fields_come_before_groups_and_runtime_is_last() -> None:
    rows = list(field_rows(Settings))
    assert [row.cells[0] for row in rows if "." not in row.cells[0]] == [
        "scale", "chances", "names", "loss", "data", "one", "group", "losses", "runtime",
    ]  # fmt: skip
    assert [row.cells[0] for row in rows if row.heading] == ["loss", "data", "one", "group", "losses", "runtime"]


class Base(Settings):
    """Defines all fields."""


class Derived(Base):
    own: int = Field(1, description="its own")
    names: tuple[str, ...] = Field(("y",), description="other names")


def test_plain_fields_are_grouped_by_the_class_that_defines_them_its_own_first() -> None:
    rows = [(row.cells[0], row.heading) for row in field_rows(Derived)]
    assert rows[:6] == [
        ("names", False), ("own", False), ("(Settings)", True), ("scale", False), ("chances", False), ("loss", True),
    ]  # fmt: skip


def test_a_type_lists_its_own_fields_and_defaults_that_differ() -> None:
    names = [row.cells[0] for row in field_rows(Settings)]
    begin = names.index("loss")
    assert names[begin : begin + 6] == [
        "loss", "loss.weight", "loss.type: plain", "loss.type: taught", "loss.weight", "loss.teacher",
    ]  # fmt: skip


def test_kind_and_type_are_not_listed_as_fields() -> None:
    assert not {"kind", "loss.type"} & {row.cells[0] for row in field_rows(Settings)}


def test_defaults_without_a_yaml_word_are_written_as_in_a_recipe() -> None:
    assert value_words((Path("own/data"), float("inf"))) == "[own/data, .inf]"


def test_a_default_of_several_lines_is_written_on_one() -> None:
    assert value_words("USER: <image>\n{question}") == r'"USER: <image>\n{question}"'
