"""Copies that are mirrored, turned, cut, framed or captioned: found by both filters, unless it is switched off."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from vfm.data import read_subset
from vfm.plugin import UserError
from vfm_curation.filters.stages import FilterPool

NUMBER = 20


def photo(seed: int) -> Image.Image:
    """Return blobs of several sizes, larger ones stronger, as in photographs."""
    rng, canvas = np.random.default_rng(seed), np.zeros((192, 192, 3))
    for size in (2, 3, 5, 9, 17):
        blobs = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        canvas += np.asarray(blobs.resize((192, 192), Image.Resampling.BICUBIC)) / size
    return Image.fromarray((255 * canvas / canvas.max()).astype(np.uint8))


def captioned(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (180, 200), "white")
    canvas.paste(image)
    return canvas


DAMAGES: list[Callable[[Image.Image], Image.Image]] = [
    ImageOps.mirror,
    lambda image: image.rotate(90),
    lambda image: image.crop((9, 9, 171, 171)),
    lambda image: ImageOps.expand(image.resize((160, 160)), 9, "white"),
    captioned,
]


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pools(make_pool: Any) -> Any:
    files = {f"original{i}": encoded(photo(i)) for i in range(NUMBER)}
    copies = {f"copy{i}": encoded(DAMAGES[i % 5](photo(i).resize((180, 180)))) for i in range(NUMBER)}
    named = {"originals": list(files), "both": [*files, *copies]}
    return {
        name: make_pool(name, [(uid, {"en": [f"text {uid}"]}) for uid in uids], images=files | copies, shard_size=7)
        for name, uids in named.items()
    }


def test_damaged_copies_are_near_duplicates(run_stage: Any, pools: Any) -> None:
    def kept(**settings: Any) -> set[str]:
        one = {"type": "near_duplicates", **settings}
        subset = run_stage(FilterPool(name=f"filtered{len(settings)}", pool="p", filters=[one]), p=pools["both"])
        return set(read_subset(subset.path)["uid"].to_pylist())

    originals = {f"original{i}" for i in range(NUMBER)}
    assert originals <= kept()  # they have more pixels
    assert len(kept()) <= 1.1 * NUMBER  # `benchmarks/copies.py` measures the recall on photographs
    assert len(kept(variants=False)) > 1.5 * NUMBER


def test_damaged_copies_of_an_evaluation_set_are_dropped(run_stage: Any, pools: Any) -> None:
    def filtering(**settings: Any) -> FilterPool:
        one = {"type": "decontaminate", "against": ["other"], **settings}
        return FilterPool(name=f"filtered{len(settings)}", pool="p", filters=[one])

    inputs = {"p": pools["both"], "other": pools["originals"]}

    def left(**settings: Any) -> set[str]:
        try:
            return set(read_subset(run_stage(filtering(**settings), **inputs).path)["uid"].to_pylist())
        except UserError:  # nothing passes
            return set()

    assert len(left()) <= 0.1 * NUMBER
    assert len(left(variants=False)) > 0.5 * NUMBER
