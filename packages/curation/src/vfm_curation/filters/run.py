"""Apply filters to a pool in turn. Measurements and verdicts are on disk, and memory holds one shard.

The work folder has `texts/`, `images/`, `embeddings-CLIP/`, `scores-CLIP/` (a file for each shard, measured by tasks)
and `NN-NAME/` with the codes of a shard's texts after each pass, which is whole if it has a `pass.json`. After a crash
only unfinished shards are measured, and only the unfinished pass is repeated. Shards that could not be read are tried
again, and all passes are repeated if other shards cannot be read than before.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.data import REASONS
from vfm.plugin import ClipCheckpoint, Context, ImageDataset, Ref
from vfm_curation.engine import run_shards
from vfm_curation.filters import images as image_tasks, texts as text_tasks
from vfm_curation.filters.images import ImageJob, measure_images
from vfm_curation.filters.remaining import CodesSummary, Pass, Remaining, RowJob, filter_rows, write_codes
from vfm_curation.filters.stages import Filter, RowFilter, Unit
from vfm_curation.filters.survivors import Codes, Survivors, shard_file
from vfm_curation.filters.texts import TextJob, measure_texts, opened
from vfm_curation.runtime import CurationRuntime
from vfm_curation.summaries import Lost, TaskSummary, with_progress


class FilterRun:
    """Applies filters in turn. They read the remaining units by `texts`, `images`, `scores` and `embeddings`.

    Attributes:
        ctx: Context of the running stage.
        runtime: Settings for running the tasks.
        num_shards: Number of shards of the pool.
        scratch: Folder for the files of a filter, such as `Buckets`. It is emptied before and after each filter.
        details: A panel as JSON. A filter may set it at its end for the report.
    """

    def __init__(
        self,
        ctx: Context,
        pool: Ref[Any],
        filters: Sequence[Filter],
        runtime: CurationRuntime,
        max_bad_fraction: float = 0.0,
    ) -> None:
        self.pool = pool
        self.max_bad_fraction = max_bad_fraction
        self.ctx = ctx
        self.filters = filters
        self.runtime = runtime
        self.dataset = ctx.load(pool).path.resolve()
        self.num_shards = len(opened(self.dataset).shard_sizes)
        self.reasons = ("", *REASONS, *map(attrgetter("reason"), filters))
        # What any filter reads is measured in one pass over the samples.
        self.columns: frozenset[str] = frozenset().union(*map(attrgetter("columns"), filters))
        self.values: frozenset[str] = frozenset().union(*map(attrgetter("values"), filters))
        self.survivors = Survivors(self._folder("texts"))
        self.passes: list[Pass] = []
        self.scratch = ctx.work / "scratch"
        self.details: dict[str, Any] | None = None
        self._lost = ""
        self._last = time.monotonic()

    def run(self) -> None:
        """Measure what each filter reads, when it is first needed, and apply the filter."""
        columns = self.columns & text_tasks.OPTIONAL_COLUMNS
        counts_words = any(pool_filter.counts_words for pool_filter in self.filters)
        job = TextJob(self.dataset, self.survivors.texts, columns, self.values, counts_words)
        lost = Lost(int(opened(self.dataset).shard_sizes.sum()), self.max_bad_fraction)
        self._tasks(measure_texts, job, self.runtime, lost)
        self._lost = lost.hash
        everything = map(self.survivors.codes_of, range(self.num_shards))
        self._pass("texts", partial(self._codes, "text", everything))
        measured: set[tuple[str, str]] = set()
        for number, pool_filter in enumerate(self.filters):
            for measure in pool_filter.measures:
                if (measure, pool_filter.model or "") not in measured:
                    measured.add((measure, pool_filter.model or ""))
                    self._measure(measure, pool_filter.model)
            # The codes of the readers' reasons come before the filters' codes.
            code = len(self.reasons) - len(self.filters) + number
            if isinstance(pool_filter, RowFilter):
                self._pass(pool_filter.reason, partial(self._rows, pool_filter, code))
            else:
                self._pass(pool_filter.reason, partial(self._masks, pool_filter, code))

    def num_units(self, unit: Unit) -> int:
        """Count the texts, or images, that remain."""
        if unit == "text":
            return self.passes[-1].num_texts
        return self.passes[-1].num_images

    @property
    def remaining(self) -> Remaining:
        """Remaining texts and images after the last pass."""
        return Remaining(self.survivors, self.ctx.work / "images")

    def texts(self) -> Iterator[pa.Table]:
        """Yield for each shard the remaining texts with their measurements. `unit` is a text's index in its shard."""
        return map(self.remaining.texts, range(self.num_shards))

    def identities(self) -> Iterator[pa.Table]:
        """Yield the remaining images of each shard with shard, unit and uid."""
        return map(self.remaining.identities, range(self.num_shards))

    def images(self) -> Iterator[pa.Table]:
        """Yield for each shard the remaining images with their measurements. `unit` is the image's row."""
        return map(self.remaining.images, range(self.num_shards))

    def embeddings(self, clip: Ref[ClipCheckpoint]) -> Iterator[tuple[pa.Table, NDArray[np.float32]]]:
        """Yield for each shard the remaining images (shard, unit, uid) and their unit vectors, (N, D)."""
        tasks = _clip_tasks()
        for shard, table in enumerate(self.identities()):
            rows, vectors = tasks.read_embeddings(self._folder(f"embeddings-{_slug(clip)}"), shard)
            yield table, vectors[np.searchsorted(rows, table["unit"].to_numpy())]

    def scores(self, clip: Ref[ClipCheckpoint]) -> Iterator[NDArray[np.float32]]:
        """Yield for each shard the cosine of each remaining text with its image."""
        for shard in range(self.num_shards):
            table = pq.read_table(
                shard_file(self._folder(f"scores-{_slug(clip)}"), shard), page_checksum_verification=True
            )
            at = np.searchsorted(table["unit"].to_numpy(), self.survivors.places(shard))
            yield table["score"].to_numpy()[at]

    def measured_of(self, dataset: Ref[ImageDataset], columns: frozenset[str]) -> tuple[Path, int]:
        """Measure all images of another dataset. Return the folder of their measurements and the number of shards."""
        folder = self._folder(f"against-{_slug(dataset)}")
        job = ImageJob(self._path(dataset), folder, None, columns)
        return folder, self._measure_other(dataset, measure_images, job, self.runtime)

    def embeddings_of(self, dataset: Ref[ImageDataset], clip: Ref[ClipCheckpoint]) -> NDArray[np.float32]:
        """Compute the unit vectors of all usable images of another dataset, (N, D)."""
        tasks = _clip_tasks()
        folder = self._folder(f"against-{_slug(dataset)}-{_slug(clip)}")
        path = self._path(dataset)
        job = tasks.ClipJob(path, folder, None, self._path(clip), runtime=self.runtime)
        count = self._measure_other(dataset, tasks.embed_images, job, self._alone)
        tasks.loaded.cache_clear()
        return np.concatenate([tasks.read_embeddings(folder, shard)[1] for shard in range(count)])

    @property
    def _alone(self) -> CurationRuntime:
        """Runtime for tasks with a model. Several processes would each load it, perhaps onto one GPU."""
        return self.runtime.model_copy(update={"workers": max(1, self.runtime.workers)})

    def _measure(self, measure: str, clip: Ref[ClipCheckpoint] | None) -> None:
        """Measure the remaining units, and drop the images that cannot be used."""
        if measure == "images":
            folder = self._folder("images")
            columns = self.columns & image_tasks.OPTIONAL_COLUMNS
            self._tasks(measure_images, ImageJob(self.dataset, folder, self.survivors, columns), self.runtime)
            self._warn_without_urls(folder)
            if opened(self.dataset).index.spec.images:
                self._pass("readable images", partial(self._codes, "image", self._unusable(folder)))
            return
        tasks = _clip_tasks()
        assert clip
        folder = self._folder(f"{measure}-{_slug(clip)}")
        embedded = self._folder(f"embeddings-{_slug(clip)}")
        job = tasks.ClipJob(self.dataset, folder, self.survivors, self._path(clip), embedded, self.runtime)
        task = tasks.embed_images if measure == "embeddings" else tasks.score_texts
        try:
            self._tasks(task, job, self._alone)
        finally:
            tasks.loaded.cache_clear()  # the model's memory is free for the next filter
        if measure == "embeddings":
            self._pass("readable images", partial(self._codes, "image", self._unusable(folder)))

    def _unusable(self, folder: Path) -> Iterator[Codes]:
        """Yield the codes of the images of each shard.

        An unusable image has the reader's reason, others have 0.
        """
        for shard, table in enumerate(self.identities()):
            measured = pq.read_table(shard_file(folder, shard), columns=["row", "bad"], page_checksum_verification=True)
            at = np.searchsorted(measured["row"].to_numpy(), table["unit"].to_numpy())
            reasons = measured["bad"].take(pa.array(at)).to_pylist()
            yield np.array([self.reasons.index(reason or "") for reason in reasons], dtype=np.uint8)

    def _warn_without_urls(self, folder: Path) -> None:
        """Warn if filters read URLs and no image has one, because all images pass these filters."""
        reading = [pool_filter.reason for pool_filter in self.filters if "address" in pool_filter.columns]
        if not reading:
            return
        for shard in range(self.num_shards):
            table = pq.read_table(shard_file(folder, shard), columns=["address"], page_checksum_verification=True)
            if table["address"].null_count < len(table):
                return
        self.warn_of_no_urls(reading)

    def warn_of_no_urls(self, reading: Sequence[str]) -> None:
        """Warn that filters, `reading`, drop nothing because no image has the URL that they read."""
        self.ctx.warn(
            f"no image of '{self.pool}' has a URL, so {', '.join(reading)} drops nothing; expected a column `url`,"
            " or a field `url` in the samples' json"
        )

    def _rows(self, row_filter: RowFilter, code: int, folder: Path) -> Iterator[CodesSummary]:
        """Write codes by a filter that needs only the row of a unit, with one task for each shard."""
        job = RowJob(row_filter, self.remaining, folder, code)
        yield from run_shards(filter_rows, job, range(self.num_shards), self.runtime)

    def _masks(self, pool_filter: Filter, code: int, folder: Path) -> Iterator[CodesSummary]:
        """Write codes by a filter that compares rows."""
        codes_of_units = (~passes * np.uint8(code) for passes in pool_filter.build(self))
        return self._codes(pool_filter.unit, codes_of_units, folder)

    def _codes(self, unit: Unit, codes_of_units: Iterable[Codes], folder: Path) -> Iterator[CodesSummary]:
        for shard, codes in enumerate(codes_of_units):
            yield write_codes(self.survivors, folder, shard, unit, codes)

    def _pass(self, name: str, apply: Callable[[Path], Iterator[CodesSummary]]) -> None:
        """Write the codes of all shards. A pass over the same shards that is whole on disk is not repeated."""
        folder = self._folder(f"{len(self.passes):02d}-{name.replace(' ', '-')}")
        record = folder / "pass.json"
        finished = Pass.read(record)
        if finished is None or finished.lost != self._lost:
            record.unlink(missing_ok=True)  # its files are written again
            shutil.rmtree(self.scratch, ignore_errors=True)
            num_texts = 0
            num_images = 0
            self.details = None
            for done, summary in enumerate(apply(folder), 1):
                num_texts += summary.num_texts
                num_images += summary.num_images
                self.ctx.progress(done, self.num_shards, "shards", filter=name, remaining=num_texts)
            seconds = time.monotonic() - self._last
            finished = Pass(name, num_texts, num_images, seconds, self.details, self._lost)
            finished.write(record)
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.passes.append(finished)
        self.survivors = Survivors(self.survivors.texts, folder)
        self._last = time.monotonic()

    def _tasks(
        self, task: Callable[[Any, int], TaskSummary], job: Any, runtime: CurationRuntime, lost: Lost | None = None
    ) -> None:
        summaries = run_shards(task, job, range(self.num_shards), runtime)
        for _ in with_progress(self.ctx, summaries, self.num_shards, lost):
            pass

    def _measure_other(
        self, dataset: Ref[ImageDataset], task: Callable[[Any, int], TaskSummary], job: Any, runtime: CurationRuntime
    ) -> int:
        """Run a task over another dataset and count its shards. Its bad images are not counted for the pool."""
        count = len(opened(job.dataset).shard_sizes)
        num_bad = sum(summary.bad.total() for summary in run_shards(task, job, range(count), runtime))
        if num_bad:
            self.ctx.log(f"{num_bad} images of '{dataset}' cannot be read and are ignored")
        return count

    def _folder(self, name: str) -> Path:
        folder = self.ctx.work / name
        folder.mkdir(exist_ok=True)
        return folder

    def _path(self, ref: Ref[Any]) -> Path:
        path: Path = self.ctx.load(ref).path.resolve()
        return path


def _clip_tasks() -> ModuleType:
    """Import the tasks with a CLIP model only when needed, since they import torch: the extra `clip`."""
    from vfm_curation.filters import embeddings

    return embeddings


def _slug(ref: str) -> str:
    """Convert a ref to a part of a file name. A ref may be a path."""
    return ref.replace("/", "+")
