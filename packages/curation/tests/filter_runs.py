"""Runs of `curation.filter` in tests, their results, and images to filter."""

import io
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from vfm.data import read_subset, unpacked_uids
from vfm.plugin import Artifact
from vfm_curation.filters.stages import FilterPool


def jpeg(seed: int, size: tuple[int, int] = (64, 48), quality: int = 90) -> bytes:
    """Return an image with structure; the same seed in another size or quality looks the same."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((256, 192), Image.Resampling.BICUBIC).resize(size).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def run(run_stage: Any, pool: Any, filters: list[dict[str, Any]], name: str = "filtered", **options: Any) -> Any:
    send = options.pop("send", lambda event: None)
    inputs = options.pop("inputs", {})
    return run_stage(FilterPool(name=name, pool="p", filters=filters, **options), send=send, p=pool, **inputs)


def verdicts(subset: Artifact) -> dict[tuple[str, str, int], str]:
    table = pq.read_table(subset.path / "verdicts")
    rows = zip(unpacked_uids(table["uid"]).to_pylist(), table.to_pylist(), strict=True)
    return {(uid, row["language"], row["text_index"]): row["reason"] for uid, row in rows}


def passed(subset: Artifact) -> set[tuple[str, str, int]]:
    rows = read_subset(subset.path).to_pylist()
    return {(row["uid"], row["language"], row["text_index"]) for row in rows}
