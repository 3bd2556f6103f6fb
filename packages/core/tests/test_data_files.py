"""Expansion of paths, and safety against paths that leave their folder."""

import fsspec
import pytest
from hypothesis import given, strategies as st

from vfm.base import UserError
from vfm.storage import files
from vfm.storage.path_patterns import expand_braces, expand_paths


def test_brace_patterns_expand_as_in_bash_with_leading_zeros():
    assert expand_braces("a/{008..011}.tar") == [f"a/{n:03d}.tar" for n in range(8, 12)]
    assert expand_braces("{x,y}-{0..1}") == ["x-0", "x-1", "y-0", "y-1"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_descending_range_is_refused():
    with pytest.raises(UserError, match="expected an ascending range"):
        expand_braces("{9..1}.tar")


def test_lists_double_colons_and_wildcards_join_in_order(tmp_path):
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).touch()
    found = expand_paths([f"{tmp_path}/*.tar", "x{1..2}.tar::y.tar"])
    assert found == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar", "x1.tar", "x2.tar", "y.tar"]
    with pytest.raises(UserError, match="no such file"):
        expand_paths(f"{tmp_path}/*.zip")


def test_ranges_of_remote_files_are_read_like_local_ones(tmp_path):
    data = bytes(range(256))
    (tmp_path / "x.bin").write_bytes(data)
    with fsspec.open("memory://files-test/x.bin", "wb") as stream:
        stream.write(data)
    for path in (str(tmp_path / "x.bin"), "memory://files-test/x.bin"):
        assert files.read_bytes(path, 10, 20) == data[10:20]
        assert files.read_bytes(path, 250, 300) == data[250:]
        assert files.read_bytes(path) == data
        assert files.size_and_time(path)[0] == 256
        assert files.exists(path)
        assert not files.exists(path + "x")
    assert list(files.walk("memory://files-test")) == ["x.bin"]
    assert expand_paths("memory://files-test/*.bin") == ["memory:///files-test/x.bin"]


def test_missing_file_and_unknown_protocol_raise_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        files.size_and_time(str(tmp_path / "none"))
    with pytest.raises(UserError, match="nosuch"):
        files.exists("nosuch://bucket/key")


@given(st.lists(st.sampled_from(["..", "a", "b.jpg", "."]), min_size=1, max_size=6))
def test_joined_path_never_leaves_its_root(parts):
    import os

    joined = files.join_inside("/srv/data", "/".join(parts))
    inside = os.path.normpath("/srv/data/" + "/".join(parts)).startswith("/srv/data")
    if joined is not None:
        assert os.path.normpath(joined).startswith("/srv/data")
    # No path here leaves the root and returns by its name, so every path without `..` must be accepted.
    assert not (joined is None and inside and ".." not in parts)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "..\\x.jpg"])
def test_paths_that_leave_the_folder_are_refused(path):
    assert files.join_inside("/data", path) is None
