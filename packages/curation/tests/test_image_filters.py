"""Filters by what many images share: placeholders, lists of PDQ hashes, files that changed since they were listed."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pdqhash
import pytest
from PIL import Image

from filter_runs import jpeg, passed, run, verdicts
from vfm.data import write_tar
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import load_panels
from vfm.plugin import UserError
from vfm_curation.filters.hashes import pdq


def reference_hex(image: bytes) -> str:
    """Hash an image as Meta's threatexchange does: the bits as one binary number in hexadecimal digits."""
    bits, _ = pdqhash.compute(np.asarray(Image.open(io.BytesIO(image)).convert("RGB")))
    return f"{int(''.join(map(str, bits)), 2):064x}"


def kept(subset: Any) -> set[str]:
    return {uid for uid, _, _ in passed(subset)}


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
def test_placeholders_equal_a_plain_twin(make_pool: Any, run_stage: Any, limit: int) -> None:
    rng = np.random.default_rng(0)
    samples, images = [], {}
    for number in range(60):
        uid = f"u{number:02d}"
        texts = {"en": [f"caption {rng.integers(0, 8)}" for _ in range(rng.integers(1, 3))]}
        samples.append((uid, texts))
        images[uid] = jpeg(int(rng.integers(0, 15)) if number % 2 else 100 + number)
    captions: dict[bytes, set[str]] = defaultdict(set)
    for uid, texts in samples:
        captions[images[uid]] |= set(texts["en"])
    expected = {uid for uid, _ in samples if len(captions[images[uid]]) <= limit}
    pool = make_pool("pool", samples, images=images, shard_size=7)
    subset = run(run_stage, pool, [{"type": "placeholders", "max_captions": limit}])
    assert kept(subset) == expected
    assert set(verdicts(subset).values()) <= {"", "placeholders"}
    (panel,) = (panel for panel in load_panels(subset.path) if panel.title == "Placeholders")
    files = {images[uid] for uid in images if uid not in expected}
    counts = sorted((len(captions[file]) for file in files), reverse=True)
    assert [row[1] for row in panel.rows] == counts[:20]  # the most frequent ones
    assert len(files) > 20 or sum(int(row[2]) for row in panel.rows) == 60 - len(expected)


def test_images_like_one_of_a_list_are_dropped_and_plain_ones_pass(tmp_path, make_pool: Any, run_stage: Any) -> None:
    flat = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(flat, format="PNG")
    images = {
        "a": jpeg(1, (200, 150)),
        "copy": jpeg(1, (200, 150), 80),
        "b": jpeg(2, (200, 150)),
        "flat": flat.getvalue(),
    }
    assert pdq(Image.open(flat)) is None
    (tmp_path / "list.txt").write_text(f"# a comment\n{reference_hex(images['a'])}\n{'0' * 64}\n")
    pool = make_pool("pool", [(uid, {"en": ["x"]}) for uid in images], images=images)
    blocked = {"type": "blocked_images", "path": str(tmp_path / "list.txt")}
    assert kept(run(run_stage, pool, [blocked], "near")) == {"b", "flat"}
    assert kept(run(run_stage, pool, [blocked | {"max_distance": 0}], "equal")) == {"copy", "b", "flat"}
    (tmp_path / "other.txt").write_text("0123\n")
    blocked["path"] = str(tmp_path / "other.txt")
    with pytest.raises(UserError, match=r"other.txt: expected PDQ hashes of 64 hexadecimal digits, got '0123'"):
        run(run_stage, pool, [blocked], "wrong")


def test_files_that_changed_since_they_were_listed_are_found(tmp_path: Path, run_stage: Any) -> None:
    members = []
    for number in range(3):
        image = jpeg(number)
        listed = hashlib.sha256(image if number else b"another").hexdigest()
        record = {"uid": f"u{number}", "text": "a dog", "sha256": listed}
        members.append((f"{number}", {"jpg": image, "json": json.dumps(record).encode()}))
    write_tar(tmp_path / "a.tar", members)
    pool = run_stage(Pairs(name="tars", path=str(tmp_path / "a.tar"), texts={"en": "json.text"}))
    assert kept(run(run_stage, pool, [{"type": "where", "keep": "sha256 == stored.sha256"}])) == {"u1", "u2"}
