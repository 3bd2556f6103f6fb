"""A list of crawl files that unpacks to more than fits into the memory is one line."""

import gzip
from pathlib import Path

import pytest

from vfm.plugin import UserError
from vfm_curation.crawl import path_lists


@pytest.mark.parametrize("name", ["wat.paths", "wat.paths.gz"])
def test_list_that_is_too_long_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_lists, "MAX_BYTES", 1 << 20)
    file = tmp_path / name
    for size, fits in ((1 << 20, True), ((1 << 20) + 1, False)):
        text = b"a.wat\n".ljust(size, b" ")
        file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
        if fits:
            assert path_lists.paths_in(str(file), "root") == ["root/a.wat"]
        else:
            with pytest.raises(UserError, match=rf"{name}: expected a list of paths of at most 1 MiB, got more"):
                path_lists.paths_in(str(file), "root")
