"""Damaged partial results of a curation stage: each is one line that names the file, or is made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vfm.plugin import UserError
from vfm_curation.export.export_tars import TarsJob, write_shard
from vfm_curation.filters.survivors import Survivors, shard_file
from vfm_curation.match.matchers import FACTS_FILE, Matchers
from vfm_curation.metadata.vocabulary import STATE_FILE, _state
from vfm_curation.shard_files import SUMMARY_KEY, finished_summary, write_shard_file


def _codes(folder: Path) -> Any:
    return Survivors(folder, folder).codes_of(0)


def _tar(folder: Path) -> Any:
    job = TarsJob(folder, folder / "tars", 10, 1, 0)
    job.folder.mkdir()
    job.file(0).touch()  # its record is read only beside it
    return write_shard(job, 0)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "vocabulary": (STATE_FILE, lambda folder: _state(folder, True)),
    "matchers": (FACTS_FILE, Matchers),
    "tar": ("tars.summaries/00000.json", _tar),
    "codes": (shard_file(Path(), 0, "npy").name, _codes),
    "texts": (Survivors(Path()).file(0).name, lambda folder: Survivors(folder).rows(0)),
}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"shard": "x"}', b"\xff\xfe"])
@pytest.mark.parametrize("reader", READERS)
def test_damaged_partial_result_is_named(reader: str, content: bytes, tmp_path: Path) -> None:
    name, read = READERS[reader]
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if reader == "codes":
        np.save(file, np.zeros(3, np.uint8))
        content += file.read_bytes()[: 2 * len(content)]
    elif reader == "texts":
        write_shard_file(file, pa.table({"row": [1]}), "source", {})
        content = file.read_bytes()[: 20 + len(content)]
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file.name}: (not|expected) ") as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


def test_shard_whose_summary_is_damaged_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "0.parquet"
    write_shard_file(file, pa.table({"x": [1]}), "source", {"count": 1})
    assert finished_summary(file) == {"count": 1}
    for facts in ({SUMMARY_KEY: '{"count": 1]'}, {}):
        pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(facts), file)
        assert finished_summary(file) is None
