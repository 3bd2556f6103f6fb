"""Find images with the same content in a pool. Candidates share words. An alignment and the pixels verify each.

Verification is one task for each shard of the pool. It holds the points and thumbnails of two shards, at most 14 kB an
image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.plugin import TablePanel
from vfm_curation.engine import run_shards
from vfm_curation.filters.copies.agreement import MIN_AGREEMENT, agreement
from vfm_curation.filters.copies.alignment import Alignment, align
from vfm_curation.filters.copies.pasted import inverted, is_pasted
from vfm_curation.filters.copies.point_index import candidate_pairs, points_from
from vfm_curation.filters.local_points import Pixels, Points, pixels_of
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.survivors import save_array, shard_file
from vfm_curation.shard_files import write_shard_file
from vfm_curation.summaries import TaskSummary

NUM_SHOWN = 50  # pairs of the panel
SCHEMA = pa.schema(
    [
        ("first", pa.int64()),
        ("second", pa.int64()),
        ("num_points", pa.int32()),
        ("coverage", pa.float32()),
        ("mirrored", pa.bool_()),
        ("degrees", pa.float32()),
        ("scale", pa.float32()),
        ("first_has_second", pa.bool_()),  # pasted in it, as in a collage or a screenshot
        ("second_has_first", pa.bool_()),
    ]
)
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Content:
    """The points of an image, and the pixels of its thumbnail."""

    points: Points
    pixels: Pixels


@dataclass(frozen=True)
class AlignJob:
    """Settings that the tasks share.

    They have the folders of measured images, and the candidates of each shard of the first folder.
    """

    folders: tuple[Path, ...]
    candidates: Path

    @property
    def places(self) -> Path:
        """File with the folder, shard and row of each image, in the order of ranks, (num_images, 3)."""
        return self.candidates / "places.npy"


def same_content(
    run: FilterRun, folders: tuple[Path, ...], places: NDArray[np.int32], num_references: int = 0
) -> pa.Table:
    """Find all verified pairs of images with the same content.

    Args:
        run: The run of the filter. Its scratch folder takes the index.
        folders: Folders of measured images. The first one is the pool's.
        places: Folder, shard and row of each image, best first, (num_images, 3).
        num_references: If not 0, only pairs of a reference and another image. References are the first images by rank.

    Returns:
        Table with `first`, the better rank, `second`, the fields of `Alignment`, and whether one image is pasted in the
        other. Sorted by both ranks.
    """
    job = AlignJob(folders, run.scratch / "candidates")
    job.candidates.mkdir(parents=True)
    save_array(job.places, places)
    images = _images(folders, places)
    pairs = candidate_pairs(images, len(places), run.scratch / "points", num_references)
    pairs = pairs[np.argsort(places[pairs[:, 1], 1], kind="stable")]
    shards, starts = np.unique(places[pairs[:, 1], 1], return_index=True)
    for shard, chosen in zip(shards.tolist(), np.split(pairs, starts[1:]), strict=True):
        save_array(shard_file(job.candidates, shard, "npy"), chosen)
    for _ in run_shards(align_shard, job, shards.tolist(), run.runtime):
        pass
    files = [shard_file(job.candidates, shard) for shard in shards.tolist()]
    tables = [pq.read_table(file, page_checksum_verification=True) for file in files]
    return pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by([("first", "ascending"), ("second", "ascending")])


def align_shard(job: AlignJob, shard: int) -> TaskSummary:
    """Align the candidates whose second image is in a shard, and write the ones with the same content."""
    places = np.load(job.places, mmap_mode="r")
    pairs: Integers = np.load(shard_file(job.candidates, shard, "npy"))
    seconds = _contents(shard_file(job.folders[0], shard), places[pairs[:, 1], 2])
    rows = []
    files = places[pairs[:, 0], :2]
    for folder, number in np.unique(files, axis=0).tolist():
        here = np.flatnonzero((files == (folder, number)).all(axis=1))
        firsts = _contents(shard_file(job.folders[folder], number), places[pairs[here, 0], 2])
        for pair, first in zip(here.tolist(), firsts, strict=True):
            same = _same(first, seconds[pair])
            if same:
                ranks = dict(zip(("first", "second"), pairs[pair].tolist(), strict=True))
                rows.append(ranks | same)
    write_shard_file(shard_file(job.candidates, shard), pa.Table.from_pylist(rows, SCHEMA), "", {})
    return TaskSummary(num_texts=len(pairs))


def aligned_copy(first: Content, second: Content) -> Alignment | None:
    """Find the transformation from the first image to the second, if the points agree on one, and then the pixels."""
    alignment = align(first.points, second.points)
    if not alignment or agreement(first.pixels, second.pixels, alignment.matrix) < MIN_AGREEMENT:
        return None
    return alignment


def _same(first: Content, second: Content) -> dict[str, Any] | None:
    """Align two images, and find out whether one is pasted in the other. None: they show different content."""
    alignment = aligned_copy(first, second)
    if not alignment:
        return None
    record = asdict(alignment)
    matrix = record.pop("matrix")
    return {
        **record,
        "first_has_second": is_pasted(second.pixels, first.pixels, inverted(matrix)),
        "second_has_first": is_pasted(first.pixels, second.pixels, matrix),
    }


def _images(folders: tuple[Path, ...], places: NDArray[np.int32]) -> Iterator[tuple[Integers, pa.ChunkedArray]]:
    """Yield the ranks and the points of the images of each file."""
    files, which = np.unique(places[:, :2], axis=0, return_inverse=True)
    order = np.argsort(which, kind="stable")
    ranks_of_files = np.split(order, np.cumsum(np.bincount(which))[:-1])
    for (folder, shard), ranks in zip(files.tolist(), ranks_of_files, strict=True):
        table = _measured(shard_file(folders[folder], shard), places[ranks, 2], ["points"])
        yield ranks, table["points"]


def _measured(file: Path, rows: NDArray[np.int32], columns: Sequence[str]) -> pa.Table:
    table = pq.read_table(file, columns=["row", *columns], page_checksum_verification=True)
    return table.take(np.searchsorted(table["row"].to_numpy(), rows))


def _contents(file: Path, rows: NDArray[np.int32]) -> list[Content]:
    contents = []
    for measured in _measured(file, rows, ["points", "thumbnail"]).to_pylist():
        contents.append(Content(points_from(measured["points"]), pixels_of(measured["thumbnail"])))
    return contents


def panel_of_pairs(title: str, pairs: pa.Table, firsts: Iterable[str], seconds: Iterable[str]) -> TablePanel:
    """Build a table of the first pairs with their transformations.

    Args:
        title: Title of the panel.
        pairs: The pairs.
        firsts: Name of the first image of each pair.
        seconds: Name of the second image of each pair.
    """
    rows: list[list[str | float | int | None]] = []
    for first, second, pair in zip(firsts, seconds, pairs.slice(0, NUM_SHOWN).to_pylist(), strict=False):
        changed = [round(pair["degrees"], 1), round(pair["scale"], 3), "yes" if pair["mirrored"] else "no"]
        rows.append([first, second, *changed, pair["num_points"], round(100 * pair["coverage"])])
    return TablePanel(
        title=title, order=14, rows=rows,
        note=f"{len(pairs):,} pairs of images show the same content by points that agree. The first {len(rows)}, with"
        " the transformation from the first to the second.",
        columns=["first", "second", "rotation, degrees", "scale", "mirrored", "points", "coverage, %"],
    )  # fmt: skip
