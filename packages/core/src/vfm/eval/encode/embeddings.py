"""SavedEmbeddings of a dataset in a file, written batch by batch for any number of images, and read back for search.

    FILE.parquet   key, text (the first caption or the class name, if any), embedding (list of D floats); the model's
                   full name and the dataset's path in the schema's metadata
    FILE.npy       (N, D) float32, with one key per line in FILE.keys.txt

FILE.parquet.json or FILE.npy.json has sizes and hashes, which are checked if it exists, because an npy file has no
checksum and the checksums of Parquet leave out its footer. A file appears only when it is complete.
"""

# N images, D width

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from vfm.base import UserError
from vfm.data import BadSample, Sample, Source
from vfm.eval.base import ReadSettings
from vfm.eval.encode.bad_samples import BadSamples
from vfm.eval.encode.features import decoded_batches, preprocesses
from vfm.eval.encode.finite import check_finite
from vfm.interfaces import Context
from vfm.models import ImageEncoder
from vfm.storage.integrity import FILES, damage, hash_file, known_files, read_sealed, seal
from vfm.storage.publishing import open_part, publish_file, write_file
from vfm.storage.store_files import read_npy, read_parquet, reading

MODEL, DATA = b"vfm.model", b"vfm.data"  # in the schema's metadata
COLUMNS = ("key", "text", "embedding")
SUFFIXES = (".parquet", ".npy")
KEYS = ".keys.txt"  # suffix of the file of keys that belongs to an npy file


@dataclass(frozen=True)
class SavedEmbeddings:
    """Embeddings that were read from a file.

    They are in the order of their dataset, without its bad samples.

    Attributes:
        keys: Keys of the samples.
        texts: Captions or classes of the samples. A sample without one has an empty string.
        vectors: Unit vectors, (N, D).
        model: Full name of the model, if the file has it.
        data: Path of the dataset, if the file has it.
    """

    keys: list[str]
    texts: list[str]
    vectors: Tensor
    model: str = ""
    data: str = ""


class Writer(Protocol):
    """A writer of batches. The file appears when the `with` block ends without an error."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, keys: list[str], texts: list[str | None], vectors: NDArray[np.float32]) -> None:
        """Append a batch."""
        ...


def embed_dataset(
    ctx: Context, source: Source, encoder: ImageEncoder, writer: Writer, reading: ReadSettings, name: str = "the model"
) -> Counter[str]:
    """Write the embeddings of all readable images in order, and report bad samples.

    Args:
        ctx: Receives progress and bad samples.
        source: The dataset.
        encoder: The model.
        writer: The open output file.
        reading: Batch size, threads and tolerated bad samples.
        name: The model's name, for the error.

    Returns:
        The number of bad samples by reason.

    Raises:
        UserError: If too many images cannot be read, or an embedding is not finite.
    """
    bad = BadSamples(ctx)
    seen = 0
    for batch in decoded_batches(source, reading, lambda sample: None, fits=preprocesses([encoder])):
        images = []
        keys = []
        texts = []
        for number, item in batch:
            if isinstance(item, BadSample):
                bad.skip(item, source.where(number))
                continue
            sample, image, _ = item
            images.append(image)
            keys.append(sample.key)
            texts.append(_text(sample, source.class_names))
        if images:
            vectors = encoder.encode_images(images, reading.batch_size).numpy()
            check_finite(vectors, name, keys)
            writer.write(keys, texts, vectors)
        seen += len(batch)
        ctx.progress(seen, len(source), "images")
    bad.check(reading, len(source))
    return bad.counts


def _text(sample: Sample, class_names: Sequence[str]) -> str | None:
    texts = next(iter(sample.texts.values()), None)
    if texts:
        return texts[0]
    if sample.label is not None and class_names:
        return class_names[sample.label]
    return None


def open_writer(file: Path, model: str, data: str = "") -> Writer:
    """Create the writer for a file, by its suffix.

    Args:
        file: The output file.
        model: Full name of the model. Only a Parquet file stores it.
        data: Path of the dataset. Only a Parquet file stores it.

    Raises:
        UserError: If the suffix is neither .parquet nor .npy.
    """
    if file.suffix == ".parquet":
        return ParquetWriter(file, model, data)
    if file.suffix == ".npy":
        return NpyWriter(file)
    raise _wrong_suffix(file)


def _wrong_suffix(file: Path) -> UserError:
    return UserError(f"{file}: expected {' or '.join(SUFFIXES)}, got {file.suffix or 'no suffix'}")


class ParquetWriter:
    """Writes one row group per batch."""

    def __init__(self, file: Path, model: str, data: str = "") -> None:
        self.file = file
        self.part = file.with_name(file.name + ".part")
        self.facts = {MODEL: model.encode(), **({DATA: data.encode()} if data else {})}
        self.writer: Any = None
        self.stream: IO[bytes]

    def __enter__(self) -> Self:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, keys: list[str], texts: list[str | None], vectors: NDArray[np.float32]) -> None:
        """Append a batch."""
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
        columns = {
            "key": pa.array(keys, pa.string()),
            "text": pa.array(texts, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
        table = pa.table(columns).replace_schema_metadata(self.facts)
        if self.writer is None:
            self.stream = open_part(self.part)
            self.writer = pq.ParquetWriter(self.stream, table.schema, write_page_checksum=True)
        self.writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()
            self.stream.close()
            # After an error nothing is published, so that a file is either complete or absent.
            self.part.unlink() if kind else publish_file(self.part, self.file)
            if not kind:
                _write_record(self.file, self.file.suffix)


class NpyWriter:
    """Writes rows after a header. numpy pads headers, so the number of rows can be filled in at the end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.part = file.with_name(file.name + ".part")
        self.rows = 0
        self.keys = file.with_suffix(KEYS)
        self.stream: IO[bytes]
        self.names: IO[bytes]

    def __enter__(self) -> Self:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.stream = open_part(self.part)
        self.names = open_part(self.keys.with_name(self.keys.name + ".part"))
        return self

    def write(self, keys: list[str], texts: list[str | None], vectors: NDArray[np.float32]) -> None:
        """Append a batch."""
        if not self.rows:
            self._header(vectors.shape[1])
        self.rows = self.rows + len(vectors)
        self.width = vectors.shape[1]
        self.stream.write(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
        self.names.writelines(f"{key}\n".encode() for key in keys)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rows and not kind:
            self.stream.seek(0)
            self._header(self.width)
        for stream, target in ((self.stream, self.file), (self.names, self.keys)):
            stream.close()
            part = Path(stream.name)
            part.unlink() if kind or not self.rows else publish_file(part, target)
        if self.rows and not kind:
            _write_record(self.file, self.file.suffix, KEYS)

    def _header(self, width: int) -> None:
        facts = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, width)}
        npy.write_array_header_1_0(self.stream, facts)  # type: ignore[no-untyped-call]


def _record_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _write_record(file: Path, *suffixes: str) -> None:
    """Write the size and hash of a file and its companions by suffix, so that all may be renamed together."""
    facts = {}
    for suffix in suffixes:
        path = file.with_suffix(suffix)
        facts[suffix] = (path.stat().st_size, hash_file(path))
    write_file(_record_of(file), seal({FILES: facts}))


def _check_record(file: Path) -> None:
    record = _record_of(file)
    if not record.is_file():  # written by an older version, or by others
        return
    known = known_files(read_sealed(record, FILES), record) or {}
    by_name = {file.with_suffix(suffix).name: facts for suffix, facts in known.items()}
    lines = damage(file.parent, by_name)
    if lines:
        raise UserError("\n".join(f"{line}; make it again with vfm embed" for line in lines))


def read_embeddings(file: Path) -> SavedEmbeddings:
    """Read a file written by `vfm embed`.

    Raises:
        UserError: If the file does not exist, has another format, or was damaged since it was written.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; make one with vfm embed")
    if file.suffix not in SUFFIXES:
        raise _wrong_suffix(file)
    with reading(file, "embeddings of vfm embed"):
        _check_record(file)
        if file.suffix == ".parquet":
            table = read_parquet(file)
            if not set(COLUMNS) <= set(table.column_names):
                columns = ", ".join(table.column_names)
                raise UserError(f"{file}: expected the columns {', '.join(COLUMNS)} of vfm embed, got {columns}")
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            texts = [text or "" for text in table["text"].to_pylist()]  # null without a caption or class
            vectors = torch.from_numpy(flat.reshape(len(table), -1).copy())
            facts = table.schema.metadata or {}
            model = facts.get(MODEL, b"").decode()
            data = facts.get(DATA, b"").decode()
            return SavedEmbeddings(table["key"].to_pylist(), texts, vectors, model, data)
        vectors = torch.from_numpy(read_npy(file))
        # `splitlines` would also split a key at a line separator of Unicode.
        keys = file.with_suffix(KEYS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if vectors.ndim != 2 or len(keys) != len(vectors):
            raise ValueError(f"{len(keys)} keys for an array of {tuple(vectors.shape)}")
    return SavedEmbeddings(keys, [""] * len(keys), vectors)
