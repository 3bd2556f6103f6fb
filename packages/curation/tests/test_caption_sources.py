"""Several captions an image, each with a source, are balanced together, and the share of each source is known."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from vfm.data import open_dataset, read_subset
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.filters.stages import FilterPool
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata

SOURCES = ["alt", "blip"]
WORDS = ["dog", "cat", "okapi"]


@pytest.fixture
def matches(make_pool: Any, run_stage: Any, tmp_path: Any) -> Any:
    """Match alt-texts, of which a third name nothing, and a model's captions, of which all do."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(300):
        alt = ["IMG_0001.jpg", f"my {rng.choice(WORDS, p=[0.9, 0.09, 0.01])}", "for sale dog"][i % 3]
        blip = [f"a {rng.choice(WORDS[:2])} on a road"] if i % 4 else []
        samples.append((f"u{i:03d}", {"alt": [alt], "blip": blip}))
    (tmp_path / "entries.txt").write_text("\n".join(WORDS))
    pool = make_pool("pool", samples)
    entries = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "entries.txt")))
    return pool, run_stage(MatchTexts(name="matches", pool="p", metadata="m", languages=SOURCES), p=pool, m=entries)


def test_sources_are_counted_and_balanced_together(matches: Any, run_stage: Any) -> None:
    pool, of_pool = matches
    subset = run_stage(MetaclipBalance(name="curated", matches="x", t=30), x=of_pool)
    rows = read_subset(subset.path)
    captions = {
        (sample.uid, source): texts[0]
        for sample in open_dataset(pool)
        for source, texts in sample.texts.items()
        if texts and set(texts[0].split()) & set(WORDS)
    }
    counts = {word: sum(word in text.split() for text in captions.values()) for word in WORDS}
    assert counts["dog"] > 200  # over both sources
    chances = {(row["uid"], row["language"]): row["probability"] for row in rows.to_pylist()}
    for place, text in captions.items():
        (word,) = set(text.split()) & set(WORDS)
        assert abs(chances.pop(place) - min(1, 30 / counts[word])) < 1e-6
    assert not chances
    assert subset.languages == SOURCES


def test_one_caption_of_an_image_is_drawn_from_all_its_sources(matches: Any, run_stage: Any) -> None:
    _, of_pool = matches
    subset = run_stage(MetaclipBalance(name="curated", matches="x", t=10_000, texts="one_per_image"), x=of_pool)
    kept = read_subset(subset.path).filter(pc.field("kept"))
    assert len(kept["uid"].unique()) == len(kept)
    both = [row for row in kept.to_pylist() if row["uid"] in {f"u{i:03d}" for i in range(300) if i % 3 and i % 4}]
    share = np.mean([row["language"] == "blip" for row in both])
    assert abs(share - 0.5) < 4 * 0.5 / len(both) ** 0.5


def test_a_condition_drops_the_texts_of_a_source(matches: Any, run_stage: Any) -> None:
    pool, _ = matches
    keep = "language == 'blip' or words > 2"
    subset = run_stage(FilterPool(name="f", pool="p", filters=[{"type": "where", "keep": keep}]), p=pool)
    sources = pc.value_counts(read_subset(subset.path)["language"]).to_pylist()
    assert {row["values"]: row["counts"] for row in sources} == {"blip": 225, "alt": 100}
