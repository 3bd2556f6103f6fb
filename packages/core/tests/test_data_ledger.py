"""Every byte, line, row and entry of generated data is in the ledger once. `make ledger-test` draws 10,000 layouts."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from data_samples import context, members
from generated_layouts import Drawn, caption_table, coco, folder, parquet, table, tar_folder, tars
from generated_videos import video_list, video_tars
from vfm.base import UserError
from vfm.data import write_tar
from vfm.data.labeled.stages import Labeled
from vfm.data.ledger.account import BEYOND, USED, Account, check_tiling
from vfm.data.pairs.stages import Images, Pairs
from vfm.data.samples.sample import REASONS, Sample
from vfm.data.samples.shards import ShardReader
from vfm.data.videos.stages import Videos

NUM_LAYOUTS = int(os.environ.get("VFM_NUM_LAYOUTS", "350"))
PARTS = 5
STAGES = {stage.kind_name(): stage for stage in (Images, Pairs, Labeled, Videos)}
KINDS: tuple[Callable[[Path, random.Random], Drawn], ...] = (
    folder, tars, tar_folder, table, parquet, coco, caption_table, video_list, video_tars,
)  # fmt: skip
NOT_USED = {
    "hidden", "not_read", "no_file", "blank", "header", "counted", "end_of_archive", "incomplete_block",
    "other_split", BEYOND,
}  # fmt: skip
SUMS: dict[tuple[str, str], Counter[str]] = {}


@pytest.fixture(scope="module", autouse=True)
def printed_sums() -> Iterator[None]:
    """Print the units of each use, which `make ledger-test` shows."""
    yield
    for (unit, use), sums in sorted(SUMS.items()):
        sys.stdout.write(f"\n{unit:12}{use:24}{sums['layouts']:>8,}{sums['units']:>16,}")


def draw(path: Path, seed: int) -> Drawn:
    """Write the layout of a seed into a folder."""
    rng = random.Random(seed)
    layout = KINDS[seed % len(KINDS)](path, rng)
    if layout.kind != "data.videos" and rng.random() < 0.15:
        layout.fields["num_samples"] = rng.randrange(1, 4)
    return layout


def index(directory: Path, layout: Drawn) -> dict[str, int] | None:
    """Index a layout, and return the counts of bad samples, or None if it is refused for having no sample."""
    fields = {**layout.fields, "max_bad_fraction": 1.0}
    try:
        stage = STAGES[layout.kind](kind=layout.kind, name="d", **fields)
        return dict(stage.run(context(directory)).bad_samples)
    except UserError as error:
        if "accounted" in str(error):
            raise
        return None


def unledgered(directory: Path, layout: Drawn, bad: dict[str, int]) -> int:
    """Count the units that a ledger lacks, has twice or invents, by a plain loop over all units."""
    sources: dict[str, Counter[int]] = {source: Counter() for source in layout.sizes}
    reasons: set[str] = set()
    for row in pq.read_table(directory / "ledger.parquet").to_pylist():
        assert row["source"] in sources
        sources[row["source"]].update(range(row["start"], row["stop"]))
        reasons.add(row["use"])
        sums = SUMS.setdefault((row["unit"], row["use"]), Counter())
        sums.update(layouts=1, units=row["stop"] - row["start"])
    assert reasons <= {USED, *NOT_USED, *REASONS}, reasons
    # The end of a cut tar, and further paths in a line whose line break is damaged, have no units.
    assert set(bad) - {"truncated_shard", "unreadable_row"} <= reasons, (bad, reasons)
    wrong = 0
    for source, size in layout.sizes.items():
        if size is not None and (BEYOND not in reasons or sources[source]):
            expected = range(size) if BEYOND not in reasons else sources[source].keys()
            wrong += sum(sources[source][unit] != 1 for unit in {*expected, *sources[source]})
    return wrong


@pytest.mark.parametrize("part", range(PARTS))
def test_generated_layouts_have_no_unledgered_unit(tmp_path: Path, part: int) -> None:
    refused = 0
    for seed in range(part, NUM_LAYOUTS, PARTS):
        (tmp_path / "in").mkdir()
        layout = draw(tmp_path / "in", seed)
        bad = index(tmp_path / "out", layout)
        if bad is None:
            refused += 1
        else:
            assert unledgered(tmp_path / "out", layout, bad) == 0, (seed, layout)
        shutil.rmtree(tmp_path / "in")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    sys.stdout.write(f"\npart {part}: {refused} of {NUM_LAYOUTS // PARTS} layouts are refused, for having no sample")
    assert refused < NUM_LAYOUTS / PARTS / 2


RANGES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=5)


@given(RANGES, st.integers(0, 6))
def test_tiling_equals_counting_each_unit(ranges: list[tuple[int, int]], size: int) -> None:
    ranges = sorted(ranges)
    counts = Counter[int]()
    for start, stop in ranges:
        counts.update(range(start, stop))
    whole = counts == Counter(range(size)) and all(start <= stop for start, stop in ranges)
    inside = all(start <= size for start, _ in ranges)
    try:
        check_tiling([start for start, _ in ranges], [stop for _, stop in ranges], size)
    except ValueError:
        # An empty range within another one is an error too.
        assert not whole or not inside or any(start == stop for start, stop in ranges)
    else:
        assert whole


@pytest.mark.parametrize(
    ("starts", "stops", "message"),
    [
        ([0, 3], [2, 5], "2 to 3 were not accounted for"),
        ([0, 1], [2, 5], "1 to 2 are accounted for twice"),
        ([0], [4], "4 to 5 were not accounted for"),
        ([0], [7], "5 to 7 are beyond the end"),
        ([], [], "0 to 5 were not accounted for"),
        ([0, 5], [5, 3], "3 to 5 are a range that ends before it starts"),
    ],
)
def test_units_that_are_missing_or_double_are_named(starts: list[int], stops: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tiling(starts, stops, 5)


def test_samples_without_units_and_units_without_samples_are_joined_by_use() -> None:
    account = Account("x", "bytes", size=9)
    account.give(2, 4, sample=1)
    account.leave(4, 5, "hidden")
    account.give(0, 2, sample=0)
    account.give(5, 7, sample=2)
    account.give(7, 9, sample=3)
    runs = account.runs({2: "broken_image"}, num_samples=3)
    uses = [runs.uses[code] for code in runs.codes]
    listed = list(zip(runs.starts.tolist(), runs.stops.tolist(), uses, strict=True))
    assert listed == [(0, 4, USED), (4, 5, "hidden"), (5, 7, "broken_image"), (7, 9, BEYOND)]


class Forgetful(ShardReader):
    """A format whose reader forgets the last row."""

    format = "forgetful"
    extensions = ("forgetful",)

    def __len__(self) -> int:
        return 3

    def key(self, row: int) -> str:
        return str(row)

    def read(self, row: int, *, with_image: bool = True) -> Sample:
        return Sample(str(row), row, members(row)["png"], {}, None)

    def account(self) -> Account:
        account = super().account()
        account.size = 4
        return account


def test_a_reader_that_forgets_a_row_fails_the_build_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.forgetful").write_bytes(b"?")
    with pytest.raises(UserError, match=r"x\.forgetful: rows 3 to 4 were not accounted for") as error:
        Images(kind="data.images", name="d", path=f"{tmp_path}/x.forgetful").run(context(tmp_path / "out"))
    assert "\n" not in str(error.value)


def test_the_ledger_of_a_good_tar_is_its_members_and_its_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(f"{number}", members(number)) for number in range(3)])
    index(tmp_path / "out", Drawn("data.pairs", {"path": f"{tmp_path}/x.tar"}))
    rows = pq.read_table(tmp_path / "out/ledger.parquet").to_pylist()
    assert [row["use"] for row in rows] == [USED, "end_of_archive"]
    assert rows[1]["stop"] == (tmp_path / "x.tar").stat().st_size
