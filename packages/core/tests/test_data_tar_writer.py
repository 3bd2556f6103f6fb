"""The tar writer gives the same bytes as tarfile."""

import io
import tarfile

import pytest
from hypothesis import example, given, strategies as st

from vfm.data import write_tar
from vfm.data.tar.writer import tar_header

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def by_tarfile(samples) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@given(NAMES, st.integers(0, 8**11 - 1))
@example("a" * 100, 0)
@example(f"{'folder/' * 20}{'a' * 90}", 1)
@example("\udcff.jpg", 511)
def test_header_equals_tarfiles(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT, "utf-8")


@pytest.mark.parametrize(("name", "size"), [("a" * 101, 0), ("a.jpg", 8**11)])
def test_too_long_name_is_refused(name, size):
    with pytest.raises(ValueError, match=r"name is too long|overflow in number field"):
        tar_header(name, size)


@pytest.mark.parametrize("sizes", [[], [0], [1, 512, 513], [10240 - 512 * 3], [10240 - 512 * 2], [200_000, 3]])
def test_tar_equals_tarfiles(tmp_path, sizes):
    samples = [(f"folder/{n:05d}", {"jpg": bytes([n]) * size, "txt": b"\xc3\xbc"}) for n, size in enumerate(sizes)]
    assert write_tar(tmp_path / "a.tar", iter(samples)) == len(sizes)
    assert (tmp_path / "a.tar").read_bytes() == by_tarfile(samples)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(m.name, m.size, m.mode, m.mtime, m.uid, m.uname, m.type) for m in tar] == [
            (f"{key}.{extension}", len(data), 0o644, 0, 0, "", tarfile.REGTYPE)
            for key, members in samples
            for extension, data in members.items()
        ]
