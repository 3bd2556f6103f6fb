"""A pool on its way through filters: what was measured and what still stands lies on disk, memory holds one shard.

The work folder has `texts/`, `images/`, `embeddings-CLIP/`, `scores-CLIP/` (a file a shard each, measured by tasks) and
`NN-NAME/` with the codes of a shard's texts after each pass, which its `pass.json` says to be whole. So after a crash
only unfinished shards are measured, and only the unfinished pass is done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfm.artifacts import ClipCheckpoint, ImageDataset
from vfm.data import REASONS
from vfm.stage import Context, Ref, Runtime
from vfm_curation.engine import Summary, run_shards, told
from vfm_curation.filters.base import Filter, Unit
from vfm_curation.filters.images import IMAGE_COLUMNS, ImageJob, measure_images
from vfm_curation.filters.standing import Codes, Standing, save_array, shard_file
from vfm_curation.filters.texts import TEXT_COLUMNS, TextJob, measure_texts, opened
from vfm_curation.shard_files import whole_file


@dataclass(frozen=True)
class Pass:
    """What stood after a filter, or after bad images were dropped, and the seconds since the last pass."""

    name: str
    num_texts: int
    num_images: int
    seconds: float


class Sieve:
    """Applies filters in turn. They ask it for what stands: `texts`, `images`, `scores`, `embeddings`."""

    def __init__(self, ctx: Context, pool: Ref[Any], filters: Sequence[Filter], runtime: Runtime) -> None:
        self.ctx, self.filters, self.runtime = ctx, filters, runtime
        self.dataset = ctx.load(pool).path.resolve()
        self.num_shards = len(opened(self.dataset).shard_sizes)
        self.reasons = ("", *REASONS, *(one.reason for one in filters))
        self.columns: frozenset[str] = frozenset().union(*(one.columns for one in filters))
        self.standing = Standing(self._folder("texts"))
        self.passes: list[Pass] = []
        self.scratch = ctx.work / "scratch"
        self._last = time.monotonic()

    def run(self) -> None:
        """Measures what each filter asks for, when it asks for it, and lets it judge."""
        job = TextJob(self.dataset, self.standing.texts, self.columns & TEXT_COLUMNS)
        self._tasks(measure_texts, job, self.num_shards)
        self._pass("texts", "text", (np.zeros(len(table), np.uint8) for table in self.texts()))
        taken: set[tuple[str, str]] = set()
        for number, one in enumerate(self.filters):
            for measure in one.measures:
                if (measure, one.model or "") not in taken:
                    taken.add((measure, one.model or ""))
                    self._take(measure, one.model)
            code = len(self.reasons) - len(self.filters) + number
            self._pass(one.reason, one.unit, (~ok * np.uint8(code) for ok in one.judge(self)))

    def num_units(self, unit: Unit) -> int:
        """How many texts, or images, stand."""
        return self.passes[-1].num_texts if unit == "text" else self.passes[-1].num_images

    def texts(self) -> Iterator[pa.Table]:
        """Of each shard the standing texts with what was measured of them; `unit` is a text's place in its shard."""
        for shard in range(self.num_shards):
            places = self.standing.places(shard)
            table = pq.read_table(shard_file(self.standing.texts, shard)).take(places)
            yield table.append_column("unit", pa.array(places, pa.int32()))

    def identities(self) -> Iterator[pa.Table]:
        """Of each shard the standing images: shard, unit, uid."""
        for table in self.texts():
            rows, first = np.unique(table["row"].to_numpy(), return_index=True)
            chosen = table.select(["shard", "uid"]).take(first)
            yield chosen.append_column("unit", pa.array(rows, pa.int32()))

    def images(self) -> Iterator[pa.Table]:
        """Of each shard the standing images with what was measured of them; `unit` is the image's row."""
        for shard, table in enumerate(self.identities()):
            measured = pq.read_table(shard_file(self.ctx.work / "images", shard))
            chosen = measured.take(np.searchsorted(measured["row"].to_numpy(), table["unit"].to_numpy()))
            yield pa.table({**_columns(table), **_columns(chosen.drop_columns(["row", "bad"]))})

    def embeddings(self, clip: Ref[ClipCheckpoint]) -> Iterator[tuple[pa.Table, NDArray[np.float32]]]:
        """Of each shard the standing images (shard, unit, uid) and their unit vectors, (N, D)."""
        from vfm_curation.filters.embed import read_embeddings

        for shard, table in enumerate(self.identities()):
            rows, vectors = read_embeddings(self._folder(f"embeddings-{_slug(clip)}"), shard)
            yield table, vectors[np.searchsorted(rows, table["unit"].to_numpy())]

    def scores(self, clip: Ref[ClipCheckpoint]) -> Iterator[NDArray[np.float32]]:
        """Of each shard the cosine of each standing text with its image."""
        for shard in range(self.num_shards):
            table = pq.read_table(shard_file(self._folder(f"scores-{_slug(clip)}"), shard))
            at = np.searchsorted(table["unit"].to_numpy(), self.standing.places(shard))
            yield table["score"].to_numpy()[at]

    def hashes_of(self, dataset: Ref[ImageDataset]) -> NDArray[np.uint64]:
        """Perceptual hashes of all usable images of another data set."""
        folder, path = self._folder(f"against-{_slug(dataset)}"), self._path(dataset)
        count = self._measure_all(dataset, measure_images, ImageJob(path, folder, None, frozenset({"phash"})))
        tables = [pq.read_table(shard_file(folder, shard), columns=["phash"]) for shard in range(count)]
        hashes: NDArray[np.uint64] = pa.concat_tables(tables)["phash"].drop_null().to_numpy()
        return hashes

    def embeddings_of(self, dataset: Ref[ImageDataset], clip: Ref[ClipCheckpoint]) -> NDArray[np.float32]:
        """Unit vectors of all usable images of another data set, (N, D)."""
        from vfm_curation.filters import embed

        folder, path = self._folder(f"against-{_slug(dataset)}-{_slug(clip)}"), self._path(dataset)
        job = embed.ClipJob(path, folder, None, self._path(clip), runtime=self.runtime)
        count = self._measure_all(dataset, embed.embed_images, job)
        embed.loaded.cache_clear()
        return np.concatenate([embed.read_embeddings(folder, shard)[1] for shard in range(count)])

    def verdicts(self) -> Iterator[tuple[pa.Table, Codes]]:
        """Of each shard all texts that were looked at, and the code of each: an index into `reasons`."""
        for shard in range(self.num_shards):
            yield pq.read_table(shard_file(self.standing.texts, shard)), self.standing.codes_of(shard)

    def _take(self, measure: str, clip: Ref[ClipCheckpoint] | None) -> None:
        """Measures what stands; images that cannot be used fall here."""
        if measure == "images":
            folder, columns = self._folder("images"), self.columns & IMAGE_COLUMNS
            self._tasks(measure_images, ImageJob(self.dataset, folder, self.standing, columns), self.num_shards)
            if opened(self.dataset).index.spec.images:
                self._pass("readable images", "image", self._bad(folder))
            return
        from vfm_curation.filters import embed

        assert clip
        folder, embedded = self._folder(f"{measure}-{_slug(clip)}"), self._folder(f"embeddings-{_slug(clip)}")
        job = embed.ClipJob(self.dataset, folder, self.standing, self._path(clip), embedded, self.runtime)
        self._ask(embed.embed_images if measure == "embeddings" else embed.score_texts, job, self.num_shards)
        if measure == "embeddings":
            self._pass("readable images", "image", self._bad(folder))

    def _bad(self, folder: Path) -> Iterator[Codes]:
        for shard, table in enumerate(self.identities()):
            measured = pq.read_table(shard_file(folder, shard), columns=["row", "bad"])
            at = np.searchsorted(measured["row"].to_numpy(), table["unit"].to_numpy())
            reasons = measured["bad"].take(pa.array(at)).to_pylist()
            yield np.array([self.reasons.index(reason or "") for reason in reasons], dtype=np.uint8)

    def _pass(self, name: str, unit: Unit, verdicts: Iterator[Codes]) -> None:
        """Gives each standing unit the code of its verdict, shard by shard; a pass that is whole is not done again."""
        folder = self._folder(f"{len(self.passes):02d}-{name.replace(' ', '-')}")
        record = folder / "pass.json"
        if not record.exists():
            shutil.rmtree(self.scratch, ignore_errors=True)
            num_texts, num_images = 0, 0
            for shard, verdict in enumerate(verdicts):
                codes, places = self.standing.codes_of(shard), self.standing.places(shard)
                rows = pq.read_table(shard_file(self.standing.texts, shard), columns=["row"])["row"].to_numpy()
                of_text = verdict if unit == "text" else verdict[np.unique(rows[places], return_inverse=True)[1]]
                codes[places] = of_text
                save_array(shard_file(folder, shard, "npy"), codes)
                num_texts += int((codes == 0).sum())
                num_images += len(np.unique(rows[codes == 0]))
                self.ctx.progress(shard + 1, self.num_shards, "shards", filter=name, standing=num_texts)
            done = Pass(name, num_texts, num_images, time.monotonic() - self._last)
            with whole_file(record) as part:
                part.write_text(json.dumps(asdict(done)), encoding="utf-8")
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.passes.append(Pass(**json.loads(record.read_text(encoding="utf-8"))))
        self.standing, self._last = Standing(self.standing.texts, folder), time.monotonic()

    def _tasks(self, task: Callable[[Any, int], Summary], job: Any, num_shards: int) -> None:
        for _ in told(self.ctx, run_shards(task, job, range(num_shards), self.runtime), num_shards):
            pass

    def _measure_all(self, dataset: Ref[ImageDataset], task: Callable[[Any, int], Summary], job: Any) -> int:
        """A task over another data set, whose bad images are none of the pool's. Gives its number of shards."""
        count = len(opened(job.dataset).shard_sizes)
        num_bad = sum(summary.bad.total() for summary in run_shards(task, job, range(count), self.runtime))
        if num_bad:
            self.ctx.log(f"{num_bad} images of '{dataset}' cannot be read and take no part")
        return count

    def _ask(self, task: Callable[[Any, int], Summary], job: Any, num_shards: int) -> None:
        """Tasks that hold a model, which is let go after them."""
        from vfm_curation.filters.embed import loaded

        try:
            self._tasks(task, job, num_shards)
        finally:
            loaded.cache_clear()

    def _folder(self, name: str) -> Path:
        folder = self.ctx.work / name
        folder.mkdir(exist_ok=True)
        return folder

    def _path(self, ref: Ref[Any]) -> Path:
        path: Path = self.ctx.load(ref).path.resolve()
        return path


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names}


def _slug(ref: str) -> str:
    """A ref, which may be a path, as a part of a file's name."""
    return ref.replace("/", "+")
