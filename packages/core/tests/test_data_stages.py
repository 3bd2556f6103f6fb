"""The data stages are light, and their errors explain how to give a path."""

import math
import subprocess
import sys
from typing import Annotated as Typed

import pytest
from pydantic import Field, ValidationError

from vfm.base import Config, error_lines
from vfm.data.annotated.stages import Annotated
from vfm.data.choices.stages import ChoiceFiles
from vfm.data.labeled.stages import Labeled
from vfm.data.pairs.stages import Pairs
from vfm.data.videos.stages import Videos


def test_data_stages_import_no_torch():
    code = (
        "import sys, vfm.data.labeled.stages, vfm.data.pairs.stages as s\n"
        "stage = s.Pairs(kind='data.pairs', name='pool', path='{0..2}.tar')\n"
        "list(stage.sources()), s.Pairs.model_json_schema()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("kind", [Pairs, ChoiceFiles, Labeled])
def test_missing_path_error_explains_set(kind):
    with pytest.raises(ValidationError) as caught:
        kind(kind=kind.kind_name(), name="pool")
    [(where, line)] = error_lines(caught.value, kind)
    assert where == ("path",)
    assert "--set 'NAME.path=" in line


@pytest.mark.parametrize("kind", [Pairs, Labeled, Annotated, Videos])
def test_an_empty_list_of_paths_is_refused(kind):
    with pytest.raises(ValidationError) as caught:
        kind(kind=kind.kind_name(), name="pool", path=[])
    assert [where for where, _ in error_lines(caught.value, kind)] == [("path",)]


def test_sources_are_the_files_behind_the_path(tmp_path):
    stage = Pairs(kind="data.pairs", name="p", path=[f"{tmp_path}/{{0..1}}.tar", "s3://bucket/x.tar"], image_root="/")
    assert list(stage.sources()) == [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar", "s3://bucket/x.tar"]


def test_template_without_braces_is_refused():
    with pytest.raises(ValidationError, match=r"has no \{\} for the class name"):
        Labeled(kind="data.labeled", name="val", path="x", templates=["a photo"])


class _Sizes(Config):
    t: Typed[int, Field(gt=0)] | dict[str, Typed[int, Field(gt=0)]] | None = None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (-1, [(("t",), "must be greater than 0, got -1")]),
        (math.inf, [(("t",), "expected a finite number, got inf")]),
        ("x", [(("t",), "expected a dictionary, got 'x'")]),
        ({"en": -1}, [(("t", "en"), "must be greater than 0, got -1")]),
    ],
)
def test_a_value_of_one_of_several_types_is_refused_for_what_is_wrong_with_it(given, said):
    with pytest.raises(ValidationError) as caught:
        _Sizes(t=given)
    assert error_lines(caught.value, _Sizes) == said
