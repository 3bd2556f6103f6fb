"""curation.balance with languages, sizes and one text for each image: against plain twins and expected sizes."""

import io
import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from vfm.data import open_balanced, open_dataset, read_subset, text_key, uniform
from vfm.interfaces import load_panels
from vfm.plugin import Event, ImagesPanel, Metadata, Preflight, UserError
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.balance.thresholds import EntryLanguages, by_reference, by_tail_share, t_by_language
from vfm_curation.counts.matches import COUNTS_FILE, read_shards
from vfm_curation.counts.probabilities import tail_share
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.entries import entries_sha256, save_entries
from vfm_curation.metadata.stages import BuildMetadata

WORDS = {
    "en": ["dog", "cat", "house", "piano", "okapi", "glacier"],
    "de": ["Hund", "Katze", "Haus", "Klavier"],
    "fr": ["chien"],  # one entry has all matches of its language
    "cs": ["zebra"],  # nothing matches
}


def samples(number: int = 300) -> list[tuple[str, dict[str, list[str]]]]:
    rng = random.Random(0)

    def text(language: str) -> str:
        words = WORDS[language]
        return f"{language} {rng.choices(words, [1 / rank**2 for rank in range(1, len(words) + 1)])[0]}"

    return [
        (f"u{i}", {"en": [text("en"), text("en")], "de": [text("de")], "fr": [text("fr")], "cs": ["nic"]})
        for i in range(number)
    ]


@pytest.fixture
def matches(make_pool: Any, run_stage: Any, tmp_path: Any) -> Any:
    return match(make_pool, run_stage, tmp_path, [(language, word) for language in WORDS for word in WORDS[language]])


def match(make_pool: Any, run_stage: Any, tmp_path: Any, entries: list[tuple[str, str]]) -> Any:
    rows = [(language, word, "test") for language, word in entries]
    folder = tmp_path / "store" / "entries"
    folder.mkdir(parents=True)
    save_entries(folder, rows)
    facts = {
        "num_entries": len(rows),
        "sha256": entries_sha256(rows),
        "languages": list(dict.fromkeys(r[0] for r in rows)),
    }
    metadata = Metadata.create(folder, **facts)
    stage = MatchTexts(name="matches", pool="p", metadata="m", languages=list(WORDS))
    return run_stage(stage, p=make_pool("pool", samples()), m=metadata)


def curated(run_stage: Any, matches: Any, **rule: Any) -> Any:
    name = "-".join(map(str, rule.values())).translate(str.maketrans("", "", " {}':,."))
    return run_stage(MetaclipBalance(name=f"c{name}", matches="x", **rule), x=matches)


def subset_rows(subset: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_subset(subset.path).to_pylist()
    return rows


def thresholds_of(subset: Any) -> dict[str, float]:
    table = next(panel for panel in load_panels(subset.path) if panel.title == "Languages")
    return {row[0]: row[2] for row in table.rows}


def test_every_matched_text_is_stored_in_order_kept_or_not(run_stage: Any, matches: Any) -> None:
    subset = curated(run_stage, matches, t=30)
    rows = subset_rows(subset)
    assert len(rows) == matches.num_matched == 4 * 300
    places = [(row["shard"], row["row"], row["language"], row["text_index"]) for row in rows]
    assert places == sorted(places)
    assert 0 < sum(row["kept"] for row in rows) < len(rows)
    assert subset.num_samples == len(open_dataset(subset)) == len({row["uid"] for row in rows if row["kept"]})
    for row in rows:
        number = uniform(np.array([text_key(row["uid"], row["language"], row["text_index"])], dtype=np.uint64), 0)[0]
        assert row["kept"] == (number < row["probability"])


def test_the_sampler_draws_from_what_was_stored(run_stage: Any, matches: Any) -> None:
    subset = curated(run_stage, matches, t=30)
    source = open_balanced(subset, seed=0, language="en")
    expected = Counter({row["uid"]: 1 for row in subset_rows(subset) if row["language"] == "en"})
    assert set(source.keys) <= {f"{i:06d}" for i in range(300)}
    assert len(source) == len(expected)


def test_languages_get_their_t_from_the_tail_share_of_the_reference(run_stage: Any, matches: Any) -> None:
    subset = curated(run_stage, matches, t=30, reference_language="en")
    counts = {language: Counter[str]() for language in WORDS}
    for _, texts in samples():
        for language, captions in texts.items():
            counts[language].update(word for caption in captions for word in caption.split() if word in WORDS[language])
    share = tail_share(np.array(list(counts["en"].values())), 30)
    german = sorted(counts["de"].values())
    below = {count: sum(c for c in german if c <= count) / sum(german) for count in german}
    found = thresholds_of(subset)
    assert found["en"] == 30
    assert found["de"] == pytest.approx(np.interp(share, list(below.values()), list(below)))
    assert found["fr"] == 300  # the only entry of its language: never t = 0, which would lose the language
    kept = Counter(row["language"] for row in subset_rows(subset) if row["kept"])
    assert kept["fr"] == 300
    assert 0 < kept["de"] < 300
    assert 0 < kept["en"] < 600
    assert subset.languages == ["en", "de", "fr"]


def test_a_t_for_each_language_is_used_and_one_t_is_for_all(run_stage: Any, matches: Any) -> None:
    t = {"en": 20, "de": 10, "fr": 5.5, "cs": 1}
    assert thresholds_of(curated(run_stage, matches, t=t)) == t
    assert thresholds_of(curated(run_stage, matches, t=12)) == dict.fromkeys(WORDS, 12)
    with pytest.raises(UserError, match="t: give one for 'fr', 'cs' too"):
        curated(run_stage, matches, t={"en": 20, "de": 10})
    with pytest.raises(UserError, match=r"t: the metadata has no entries of 'dee', it has entries by language.*de"):
        curated(run_stage, matches, t={**t, "dee": 1})


def test_a_tail_share_gives_each_language_its_own_t(run_stage: Any, matches: Any) -> None:
    found = thresholds_of(curated(run_stage, matches, tail_share=0.06))
    assert len({found["en"], found["de"], found["fr"]}) == 3
    assert found["fr"] == 300
    assert found["cs"] == 1


@pytest.mark.parametrize("reference", [None, "en"])
@pytest.mark.parametrize("texts", ["every", "one_per_image"])
def test_a_target_size_is_what_is_expected_and_about_what_is_kept(
    run_stage: Any, matches: Any, reference: str | None, texts: str
) -> None:
    target = {"every": 700, "one_per_image": 250}[texts]
    rule = {"target_size": target, "reference_language": reference, "texts": texts}
    events: list[Event] = []
    run_stage(MetaclipBalance(name="sized", matches="x", **rule), send=events.append, x=matches)
    values = next(event.data["values"] for event in events if event.type == "metrics")
    if reference is None:
        assert abs(values["curation/expected_texts"] - target) <= 0.5
    else:  # t of other languages changes in steps; the step above the target is chosen
        assert target - 0.5 <= values["curation/expected_texts"] < 1.5 * target
    assert abs(values["curation/kept_texts"] - values["curation/expected_texts"]) < 4 * target**0.5


def test_one_text_an_image_keeps_each_text_by_its_share_of_the_probability(run_stage: Any, matches: Any) -> None:
    kept = Counter[tuple[str, int]]()
    for seed in range(40):
        subset = run_stage(
            MetaclipBalance(name=f"s{seed}", matches="x", t=1e9, texts="one_per_image", seed=seed), x=matches
        )
        rows = [row for row in subset_rows(subset) if row["kept"]]
        assert len({row["uid"] for row in rows}) == len(rows) == 300
        kept.update((row["language"], row["text_index"]) for row in rows)
    assert subset.texts == "one_per_image"
    for place in (("en", 0), ("en", 1), ("de", 0), ("fr", 0)):
        assert abs(kept[place] - 40 * 300 / 4) < 4 * (40 * 300 * 3 / 16) ** 0.5


def test_the_data_card_counts_entries_before_and_after_by_language(run_stage: Any, matches: Any) -> None:
    subset = curated(run_stage, matches, t=30)
    card = json.loads((subset.path / "entry_counts.json").read_text())
    assert list(card) == list(WORDS)
    rows = pq.read_table(subset.path / "entry_counts.parquet").to_pylist()
    for row in rows:
        for step in ("matched", "kept"):
            assert card[row["language"]][step][row["entry"]] == row[step]
    assert sum(row["kept"] for row in rows) == sum(row["kept"] for row in subset_rows(subset))  # one entry each
    languages = next(panel for panel in load_panels(subset.path) if panel.title == "Languages").rows
    assert [row[0] for row in languages] == list(WORDS)
    assert [row[5:7] for row in languages] == [[600, 600], [300, 300], [300, 300], [300, 0]]
    assert sum(row[7] for row in languages) == subset_kept(subset)


def subset_kept(subset: Any) -> int:
    return sum(row["kept"] for row in subset_rows(subset))


def test_entries_that_lose_every_text_are_listed(run_stage: Any, matches: Any) -> None:
    subset = curated(run_stage, matches, t=0.3)
    lost = next(panel for panel in load_panels(subset.path) if panel.title == "Lost entries")
    card = pq.read_table(subset.path / "entry_counts.parquet").to_pylist()
    expected = {f"{r['entry']} ({r['language']})": r["matched"] for r in card if r["matched"] and not r["kept"]}
    assert dict(map(tuple, lost.rows)) == expected
    assert expected


def test_expectations_for_other_t_are_what_they_keep(run_stage: Any, matches: Any) -> None:
    choices = next(
        p for p in load_panels(curated(run_stage, matches, t=30).path) if p.title == "Other choices of t"
    ).rows
    for factor, row in zip((1 / 10, 1 / 3, 1, 3, 10), choices, strict=True):
        rows = subset_rows(curated(run_stage, matches, t=30 * factor, seed=int(10 * factor)))
        chances = np.array([one["probability"] for one in rows], dtype=float)
        assert row[4] == pytest.approx(chances.sum(), abs=1)


def test_a_language_with_huge_counts_has_no_nan_and_keeps_something() -> None:
    counts = np.array([0, 2**40, 3, 0, 0, 100, 0], dtype=np.int64)
    languages = EntryLanguages(["en", "de", "xx"], np.array([0, 0, 0, 1, 1, 1, 2]))
    for thresholds in (by_reference(languages, counts, 20, "en"), by_tail_share(languages, counts, 0.06)):
        t = languages.t_of_entries(thresholds)
        probability = t / np.maximum(counts, t)
        assert np.isfinite(probability).all()
        assert (probability > 0).all()
        assert thresholds["de"] == 100
    assert t_by_language(languages, 5.0) == {"en": 5, "de": 5, "xx": 5}


def test_tail_rule_chooses_the_t_of_each_other_language(run_stage: Any, matches: Any) -> None:
    interpolated = thresholds_of(curated(run_stage, matches, tail_share=0.2))
    nearest = thresholds_of(curated(run_stage, matches, tail_share=0.2, tail_rule="nearest"))
    by_reference = thresholds_of(curated(run_stage, matches, t=30, reference_language="en", tail_rule="nearest"))
    counts = np.load(matches.path / COUNTS_FILE)
    assert nearest.keys() == interpolated.keys()
    assert nearest != interpolated
    assert set(nearest.values()) <= {1, *counts.tolist()}  # 1 without a match
    assert by_reference["en"] == 30
    assert {t for language, t in by_reference.items() if language != "en"} <= {1, *counts.tolist()}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"t": {"en": 0}}, "greater than 0"),
        ({"t": {}}, r"got \{\}"),
        ({"t": {"en": 5}, "reference_language": "en"}, "reference_language needs target_size or a single t"),
        ({"tail_share": 0.06, "reference_language": "en"}, "reference_language needs"),
        ({"t": 5, "texts": "some"}, "every"),
        ({"t": 5, "tail_rule": "nearest"}, "tail_rule is only valid with tail_share or reference_language"),
    ],
)
def test_contradictory_rules_are_rejected(rule: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MetaclipBalance(name="b", matches="m", **rule)


def test_a_reference_without_entries_is_an_error_before_the_run(run_stage: Any, matches: Any) -> None:
    stage = MetaclipBalance(name="b", matches="x", t=5, reference_language="es")
    with pytest.raises(UserError, match="reference_language: the metadata has no entries of 'es'"):
        stage.preflight(Preflight({}, {"x": matches.path}))


def test_matches_of_a_subset_are_balanced_as_a_view_of_its_pool(make_pool: Any, run_stage: Any, matches: Any) -> None:
    first = curated(run_stage, matches, t=100)
    stage = MatchTexts(name="again", pool="p", metadata="m", languages=["en", "de"])
    metadata = Metadata.load(matches.linked(matches.metadata))
    again = run_stage(stage, p=first, m=metadata)
    second = run_stage(MetaclipBalance(name="second", matches="x", t=20), x=again)
    kept = {(row["uid"], row["language"], row["text_index"]) for row in subset_rows(first) if row["kept"]}
    rows = subset_rows(second)
    assert {(row["uid"], row["language"], row["text_index"]) for row in rows} <= kept
    assert second.linked(second.pool).resolve() == first.linked(first.pool).resolve()
    assert len(open_dataset(second)) == second.num_samples
    assert sum(1 for shard in read_shards(again.path) for _ in range(len(shard.table))) == len(rows)


def test_a_language_of_which_nearly_nothing_is_kept_is_a_warning(run_stage: Any, matches: Any) -> None:
    events: list[Event] = []
    config = MetaclipBalance(name="lost", matches="x", t={"en": 30, "de": 30, "fr": 1, "cs": 30})
    run_stage(config, send=events.append, x=matches)
    (warning,) = [event.data["message"] for event in events if event.type == "warning"]
    assert warning == "t = 1 keeps 0.33% of the matches of language 'fr'; a larger t keeps more"


def test_the_curves_show_the_counts_by_rank_before_and_after_and_t(run_stage: Any, matches: Any) -> None:
    subset = curated(run_stage, matches, t=30)
    card = pq.read_table(subset.path / "entry_counts.parquet").to_pylist()
    panel = next(panel for panel in load_panels(subset.path) if panel.title == "Counts by rank")
    assert panel.x_log
    assert panel.y_log
    lines = {series.name: list(zip(series.x, series.y, strict=True)) for series in panel.series}
    for name, column in (("before balancing", "matched"), ("after balancing", "kept")):
        counts = sorted((row[column] for row in card if row[column]), reverse=True)
        assert lines[name] == [(rank, count) for rank, count in enumerate(counts, 1)]
    assert lines["t of de"] == [(1, 30), (sum(row["language"] == "de" and row["matched"] > 0 for row in card), 30)]


def test_the_most_frequent_entries_have_no_function_words(make_pool: Any, run_stage: Any, tmp_path: Any) -> None:
    matched = match(
        make_pool, run_stage, tmp_path, [("en", "dog"), ("en", "en"), ("", "Hund"), ("", "en Katze"), ("", "nic")]
    )
    shown = next(panel for panel in load_panels(curated(run_stage, matched, t=30).path) if "frequent" in panel.title)
    assert {row[0] for row in shown.rows} == {"dog (en)", "en (en)", "Hund"}  # "en" is a function word of French only


def test_pictures_stand_beside_the_examples_of_head_middle_and_tail(
    make_pool: Any, run_stage: Any, tmp_path: Any
) -> None:
    texts = [f"{'dog' if number % 2 else f'w{number % 40}'} x" for number in range(200)]
    images = {f"u{number}": png(number) for number in range(200) if number % 5}
    pool = make_pool("pool", [(f"u{number}", {"en": [text]}) for number, text in enumerate(texts)], images=images)
    (tmp_path / "entries.txt").write_text("\n".join(["dog", *(f"w{number}" for number in range(40))]))
    metadata = run_stage(BuildMetadata(name="entries", path=f"{tmp_path}/entries.txt"))
    matched = run_stage(MatchTexts(name="matches", pool="p", metadata="m"), p=pool, m=metadata)
    subset = curated(run_stage, matched, t=20)
    panel = next(panel for panel in load_panels(subset.path) if isinstance(panel, ImagesPanel))
    assert [picture.caption.split(":")[0] for picture in panel.pictures] == ["head"] * 4 + ["middle"] * 4 + ["tail"] * 4
    kept = {(row["uid"]) for row in subset_rows(subset) if row["kept"]}
    shown = [picture.caption.split(": ")[1] for picture in panel.pictures]
    assert all("dog" in caption for caption in shown[:4])
    assert all("w" in caption for caption in shown[8:])
    assert len(kept) > 12
    for picture in panel.pictures:
        with Image.open(subset.path / picture.file) as image:
            assert image.size == (160, 80)


def png(number: int) -> bytes:
    """Return an image with a colour of its own."""
    buffer = io.BytesIO()
    Image.new("RGB", (320, 160), (number, 0, 255 - number)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_pool_without_readable_images_has_no_pictures(run_stage: Any, matches: Any) -> None:
    assert not any(isinstance(panel, ImagesPanel) for panel in load_panels(curated(run_stage, matches, t=30).path))


@pytest.mark.parametrize(("t", "warns"), [(1000, True), (10, False)])
def test_a_subset_of_nearly_all_texts_is_a_warning(run_stage: Any, matches: Any, t: int, warns: bool) -> None:
    events: list[Event] = []
    thresholds = {"en": t, "de": 1000, "fr": 300, "cs": 1}
    stage = MetaclipBalance(name="kept", matches="x", t=thresholds)
    subset = run_stage(stage, send=events.append, x=matches)
    lines = [event.data["message"] for event in events if event.type == "warning"]
    share = subset_kept(subset) / matches.num_matched
    assert (share > 0.8) == warns
    assert [line.split(",")[0] for line in lines] == ([f"{share:.1%} of the matched texts are kept"] if warns else [])
