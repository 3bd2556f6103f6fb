"""The data stages are light to plan with, and say how a path is given."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from vfm.config import error_lines
from vfm.stages.labeled import Labeled
from vfm.stages.data import STAGES, Pairs


def test_planning_with_the_data_stages_imports_neither_torch_nor_arrow_nor_numpy():
    code = (
        "import sys, vfm.stages.labeled, vfm.stages.data as s\n"
        "stage = s.Pairs(kind='data.pairs', name='pool', path='{0..2}.tar')\n"
        "list(stage.sources()), s.Pairs.model_json_schema()\n"
        "print([name for name in ('torch', 'pyarrow', 'numpy', 'PIL', 'fsspec') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", STAGES)
def test_a_missing_path_is_answered_with_how_to_give_it(kind):
    with pytest.raises(ValidationError) as caught:
        kind(kind=kind.kind_name(), name="pool")
    [(where, line)] = error_lines(caught.value, kind)
    assert where == ("path",)
    assert "--set 'NAME.path=" in line


def test_sources_are_the_files_behind_the_path_so_that_a_changed_one_means_a_new_id(tmp_path):
    stage = Pairs(kind="data.pairs", name="p", path=[f"{tmp_path}/{{0..1}}.tar", "s3://bucket/x.tar"], image_root="/")
    assert list(stage.sources()) == [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar", "s3://bucket/x.tar"]


def test_a_template_without_a_place_for_the_name_is_refused():
    with pytest.raises(ValidationError, match=r"has no \{\} for the class name"):
        Labeled(kind="data.labeled", name="val", path="x", templates=["a photo"])
