"""The recipe `curate`: only captions, and images in two languages, from the command to subset and exports."""

import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vfm.data import open_dataset, read_subset, write_tar
from vfm.interfaces import load_panels
from vfm.plugin import CuratedSubset, Pool

ENGLISH = ["dog", "cat", "house", "tree", "river", "mountain", "piano", "window", "bicycle", "glacier"]
GERMAN = ["Hund", "Katze", "Haus", "Baum", "Fluss", "Berg", "Klavier", "Fenster", "Fahrrad", "Gletscher"]


def caption(rng: random.Random, words: list[str], first: str) -> str:
    return f"{first} {' '.join(rng.choices(words, [1 / rank**2 for rank in range(1, 11)], k=2))}"


def curate(folder: Path, *settings: str) -> dict[str, Path]:
    command = [sys.executable, "-m", "vfm", "run", "curate", "--store", "store", "--quiet"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "store/runs/curate/report.html").is_file()
    return {link.name: link.resolve() for link in (folder / "store/runs/curate/artifacts").iterdir()}


def kept(subset: Path) -> list[dict[str, Any]]:
    return [row for row in read_subset(subset).to_pylist() if row["kept"]]


def test_only_captions_in_a_compressed_table(tmp_path: Path) -> None:
    rng = random.Random(0)
    lines = [f"web\t{caption(rng, ENGLISH, 'a')}" for _ in range(400)]
    (tmp_path / "captions.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    made = curate(tmp_path, "pool.path=captions.tsv.gz", "pool.header=[source, caption]")
    rows = kept(made["curated"])
    assert 0 < len(rows) < 400
    assert [panel.title for panel in load_panels(made["curated"])][:3] == [
        "Curation funnel", "Curation seconds", "Counts by rank",
    ]  # fmt: skip
    entries = pq.read_table(made["entries"] / "entries.parquet")["entry"].to_pylist()
    assert {"dog", "cat", "house"} <= set(entries) <= set(ENGLISH)  # no "a", and no pair of words
    assert len(np.load(made["exported"] / "uids.npy")) == len(rows)
    assert pq.read_table(made["exported"] / "pairs.parquet").num_rows == 400


def test_a_parquet_of_captions_needs_no_other_setting(tmp_path: Path) -> None:
    rng = random.Random(0)
    captions = [caption(rng, ENGLISH, "a") for _ in range(400)]
    pq.write_table(
        pa.table({"uid": [f"u{number}" for number in range(400)], "caption": captions}), tmp_path / "c.parquet"
    )
    rows = kept(curate(tmp_path, "pool.path=c.parquet")["curated"])
    assert 0 < len(rows) < 400
    assert {row["uid"] for row in rows} <= {f"u{number}" for number in range(400)}


def test_images_in_two_languages_with_a_t_for_each(tmp_path: Path) -> None:
    rng, buffer = random.Random(0), io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    texts = [
        {"en": [caption(rng, ENGLISH, "a") for _ in range(3)], "de": caption(rng, GERMAN, "ein")} for _ in range(300)
    ]
    samples = [
        (f"{i:04d}", {"jpg": buffer.getvalue(), "json": json.dumps(one).encode()}) for i, one in enumerate(texts)
    ]
    write_tar(tmp_path / "pool.tar", samples)
    made = curate(
        tmp_path, "pool.path=pool.tar", "pool.texts={en: json.en, de: json.de}", "entries.languages=[en, de]",
        "matches.languages=[en, de]", "curated.tail_share=null", "curated.t=15", "curated.reference_language=en",
        "exported.tars=true", "exported.samples_per_shard=100",
    )  # fmt: skip
    subset, pool = CuratedSubset.load(made["curated"]), Pool.load(made["exported"])
    assert {row["language"] for row in kept(made["curated"])} == {"en", "de"}
    assert pool.num_samples == subset.num_samples > 0
    source = open_dataset(pool)
    found = sorted(text for i in range(len(source)) for texts in source[i].texts.values() for text in texts)
    assert len(found) == len(kept(made["curated"]))
    table = next(panel for panel in load_panels(made["curated"]) if panel.title == "Languages").rows
    assert [row[0] for row in table] == ["en", "de"]
    assert table[0][2] == 15 != table[1][2]
