"""Shards stay open while the samples of a window are read, within the limit of open files."""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfm.data import DatasetSpec, Shard, write_index, write_tar
from vfm.data.index.mixture import Mixture
from vfm.data.index.source import Source
from vfm.data.reading.open_files import MOST, max_open_shards

NUM_SHARDS, PER_SHARD = 600, 4


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """Restore the limits of open files afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def written(folder: Path, num_shards: int) -> Source:
    shards = []
    for shard in range(num_shards):
        path = folder / f"{shard:03d}.tar"
        write_tar(path, [(f"{shard}-{row}", {"jpg": b"image", "txt": b"a caption"}) for row in range(PER_SHARD)])
        shards.append(Shard.of(path, PER_SHARD))
    write_index(folder, shards, DatasetSpec(texts={"en": "txt"}))
    return Source(folder)


@pytest.mark.parametrize(("limit", "expected"), [(256, 128), (1024, 512), (3000, 750), (16_384, MOST)])
def test_the_number_of_open_shards_fits_the_limit_of_open_files(
    limits: tuple[int, int], limit: int, expected: int
) -> None:
    if limits[1] != resource.RLIM_INFINITY and limits[1] < limit:
        pytest.skip(f"the system allows {limits[1]} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
    assert max_open_shards() == expected


def test_the_shards_of_a_window_are_opened_once(tmp_path: Path, limits: tuple[int, int]) -> None:
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 4096:
        pytest.skip(f"the system allows {limits[1]} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, limits[1]))
    source = written(tmp_path, NUM_SHARDS)
    for epoch, number in source.order(seed=0, shuffle_shards=1000).of_epochs(0, NUM_SHARDS * PER_SHARD):
        assert source.sample(number, epoch).image == b"image"
    assert source._open.cache_info().misses == NUM_SHARDS


def test_the_shards_of_a_mixture_fit_the_limit_of_open_files_together(tmp_path: Path, limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    sources = []
    for name in "abc":
        (tmp_path / name).mkdir()
        sources.append(written(tmp_path / name, 150))
    mixture = Mixture(sources, [1, 1, 1])
    for number in range(0, len(mixture), PER_SHARD):
        assert mixture[number].image == b"image"
    in_worker = pickle.loads(pickle.dumps(mixture))
    del mixture, sources
    for number in range(0, len(in_worker), PER_SHARD):
        assert in_worker[number].image == b"image"


def test_the_command_raises_the_limit_of_open_files_and_an_import_does_not() -> None:
    script = """if True:
        import resource, sys
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        sys.argv = ["vfm", "--version"]
        from vfm.cli import OPEN_FILES, main
        import vfm
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
        try:
            main()
        except SystemExit:
            pass
        expected = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (expected, hard)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
