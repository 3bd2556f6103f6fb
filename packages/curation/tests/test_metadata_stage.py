"""curation.metadata in recipes: sources merged in order, a list for each language, errors in one line."""

import bz2
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from vfm.base import error_lines
from vfm.data import subset_schema, write_subset
from vfm.interfaces import load_panels, refs
from vfm.plugin import CuratedSubset, Event, Preflight, UserError
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata import load_entries
from vfm_curation.metadata.stages import BuildMetadata

GERMAN = ["ein Hund im Schnee", "ein Hund am See", "ein roter Hund"] * 4
ENGLISH = ["a dog in the snow", "a dog by a lake", "a red dog"] * 4


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    page = "<page><ns>0</ns><revision><text>{}</text></revision></page>"
    texts = ["New York saw the dog", "New York had a dog", "the cat"] * 4
    whole = f"<mediawiki>{''.join(map(page.format, texts))}</mediawiki>"
    (tmp_path / "wiki.xml.bz2").write_bytes(bz2.compress(whole.encode()))
    return tmp_path / "wiki.xml.bz2"


def rows(metadata: Any) -> list[tuple[str, str, str]]:
    return [tuple(row.values()) for row in load_entries(metadata).to_pylist()]


def test_sources_are_merged_in_order_and_each_entry_keeps_its_first(
    run_stage: Any, make_pool: Any, wiki: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("okapi\nthe\nU.S.\n", encoding="utf-8")
    (tmp_path / "pageviews-0").write_text("en New_York 70 0\nen Okapi 60 0\nen Cat 80 0\n", encoding="utf-8")
    wikipedia = {"type": "wikipedia", "dump": str(wiki), "unigram_min_count": 5, "bigram_min_pmi": 2}
    stage = BuildMetadata(
        name="entries",
        merge=[
            {"type": "list", "path": str(tmp_path / "mine.txt")},
            wikipedia,
            {"type": "pageviews", "paths": str(tmp_path / "pageviews-*")},
            {"type": "captions", "pool": "p", "languages": ["de"], "min_count": 12, "bigram_min_count": 8},
            {"type": "numbers", "languages": ["de", "en"]},
        ],
    )
    assert [key for key, _ in refs(stage)] == ["merge[3].pool"]
    assert set(stage.sources()) == {str(tmp_path / name) for name in ("mine.txt", "wiki.xml.bz2", "pageviews-0")}
    metadata = run_stage(stage, p=make_pool("pool", [(str(i), {"de": [text]}) for i, text in enumerate(GERMAN)]))
    found = rows(metadata)
    # PMI: 48 words; "had a" 12 times what chance gives, the others 6 times, "the dog" 3 times.
    pairs = ("had a", "New York", "York had", "York saw", "a dog", "saw the", "the cat")
    assert found[:14] == [
        *(("", entry, "mine.txt") for entry in ("okapi", "the", "U.S.")),
        *(("", entry, "wikipedia unigram") for entry in ("New", "York", "dog")),
        *(("", entry, "wikipedia bigram") for entry in pairs),
        ("", "Cat", "wikipedia title"),
    ]
    assert ("de", "Hund", "unigram") in found
    assert next(row for row in found if row[2] == "number") == ("de", "0", "number")
    assert metadata.languages == ["", "de", "en"]
    assert metadata.num_entries == len(found) == len({row[:2] for row in found})
    lint = pq.read_table(metadata.path / "lint.parquet").to_pylist()
    assert {row["verdict"] for row in lint if row["entry"] == "U.S."} == {"dead"}
    assert {(row["entry"], row["source"], row["reason"]) for row in lint if row["verdict"] == "left out"} == {
        ("the", "wikipedia unigram", "also in an earlier source: mine.txt"),
        ("New York", "wikipedia title", "also in an earlier source: wikipedia bigram"),
    }
    by_source, by_language, dead, left_out = load_panels(metadata.path)
    assert dict(zip(by_source.labels, by_source.values, strict=True))["number"] == 200
    assert {row[0]: row[1] for row in by_language.rows}["en"] == 100
    assert dead.rows == [["U.S.", "", "mine.txt", dead.rows[0][3]]]
    assert [row[3] for row in left_out.rows] == [1, 1]


def test_captions_in_several_languages_give_each_its_own_entries(run_stage: Any, make_pool: Any) -> None:
    samples = [(str(i), {"en": [en], "de": [de]}) for i, (en, de) in enumerate(zip(ENGLISH, GERMAN, strict=True))]
    pool = make_pool("pool", samples)
    settings = {"captions": "p", "size": 4, "min_count": 4, "bigram_min_count": 4}
    both = run_stage(BuildMetadata(name="both", languages=["en", "de"], **settings), p=pool)
    assert both.languages == ["en", "de"]
    english, german = ([entry for language, entry, _ in rows(both) if language == own] for own in ("en", "de"))
    assert len(english) == len(german) == 4
    assert english[:2] == ["a", "dog"]
    assert german[:2] == ["Hund", "ein"]
    shared = run_stage(BuildMetadata(name="shared", **settings), p=pool)
    assert rows(shared) == [("", entry, source) for language, entry, source in rows(both) if language == "en"]
    long = run_stage(
        BuildMetadata(
            name="merged",
            merge=[
                {"type": "captions", "pool": "p", "languages": ["en", "de"]}
                | {name: settings[name] for name in ("size", "min_count", "bigram_min_count")}
            ],
        ),
        p=pool,
    )
    assert long.sha256 == both.sha256 != shared.sha256
    with pytest.raises(UserError, match="p has no captions in 'fr'"):
        run_stage(BuildMetadata(name="fr", languages=["fr"], **settings), p=pool)


def test_entries_of_a_language_without_spaces_belong_to_it_and_match(run_stage: Any, make_pool: Any) -> None:
    pool = make_pool("pool", [(str(i), {"zh": ["黑猫在睡觉", "白猫"]}) for i in range(9)])
    metadata = run_stage(BuildMetadata(name="entries", captions="p"), p=pool)
    assert metadata.languages == ["zh"]
    matches = run_stage(MatchTexts(name="matches", pool="p", metadata="m"), p=pool, m=metadata)
    assert matches.num_matched == matches.num_texts == 18


def test_entries_of_a_curated_subset_come_from_its_kept_texts(run_stage: Any, make_pool: Any, tmp_path: Path) -> None:
    make_pool("pool", [(str(i), {"en": [text]}) for i, text in enumerate(["a cat", "an owl"] * 10)])
    subset = CuratedSubset.create(tmp_path / "store" / "subset", num_samples=10, pool="../pool")
    kept = {"shard": 0, "language": "en", "text_index": 0, "probability": 1.0, "kept": True}
    table = pa.Table.from_pylist([{"row": row, "uid": str(row), **kept} for row in range(0, 20, 2)])
    write_subset(subset.path, table.select(subset_schema().names).cast(subset_schema()))
    stage = BuildMetadata(name="entries", captions="s", bigram_min_count=100)
    assert [entry for _, entry, _ in rows(run_stage(stage, s=subset))] == ["a", "cat"]


def test_the_same_entries_from_any_number_of_processes_and_any_order_of_captions(
    run_stage: Any, make_pool: Any, wiki: Path
) -> None:
    samples = [(str(i), {"en": [text]}) for i, text in enumerate(ENGLISH)]
    hashes = set()
    for workers in (0, 2):
        random.Random(workers).shuffle(samples)
        stage = BuildMetadata(
            name=f"entries{workers}",
            runtime={"workers": workers},
            merge=[
                {"type": "wikipedia", "dump": str(wiki), "unigram_min_count": 1, "bigram_min_pmi": 1},
                {"type": "captions", "pool": "p", "min_count": 1, "bigram_min_count": 1},
            ],
        )
        hashes.add(run_stage(stage, p=make_pool(f"pool{workers}", samples, shard_size=5 + workers)).sha256)
    assert len(hashes) == 1


def test_a_warning_reports_a_threshold_that_no_bigram_can_reach(run_stage: Any, wiki: Path) -> None:
    events: list[Event] = []
    merge = [{"type": "wikipedia", "dump": str(wiki), "unigram_min_count": 1}]
    run_stage(BuildMetadata(name="entries", merge=merge), send=events.append)
    (warning,) = [event.data["message"] for event in events if event.type == "warning"]
    assert warning.startswith("no bigram has a PMI of 30 bits; 48 words can reach 5.6:")
    progress = [event.data for event in events if event.type == "progress"]
    assert progress[-1]["shown"]["pages"] == 12


def test_entries_may_be_written_in_the_recipe(run_stage: Any) -> None:
    merge = [{"type": "words", "words": ["Katze", "!", "Hund"], "language": "de"}]
    assert rows(run_stage(BuildMetadata(name="entries", merge=merge))) == [
        ("de", "Katze", "recipe"),
        ("de", "Hund", "recipe"),
    ]


def test_a_folder_without_wordnet_is_an_error_before_the_run(tmp_path: Path) -> None:
    stage = BuildMetadata(name="entries", merge=[{"type": "wordnet", "path": str(tmp_path)}])
    with pytest.raises(UserError, match=r"data\.noun: no such file"):
        stage.preflight(Preflight({}, {}))


def test_sources_without_entries_are_an_error(run_stage: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("!\n\n" + "x" * 10_000, encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.txt: has no entries"):
        run_stage(BuildMetadata(name="entries", merge=[{"type": "list", "path": str(tmp_path / "a.txt")}]))


@pytest.mark.parametrize(
    ("merge", "line"),
    [
        ([], "merge: []: list should have at least 1 item after validation, not 0"),
        ([{"type": "wikpedia"}], "merge.0: type 'wikpedia' is not known; did you mean 'wikipedia'?"),
        ([{"type": "wordnet"}], "merge.0.path: is required (folder with data.noun"),
        ([{"type": "wordnet", "path": "x", "langage": "en"}], "merge.0.langage: unknown key; did you mean 'language'?"),
        ([{"type": "wikipedia"}], "merge.0: give exactly one of dump and text"),
        ([{"type": "wikipedia", "text": "x", "bigram_rank": "score"}], "merge.0: bigram_rank score needs max_bigrams"),
        ([{"type": "pageviews", "paths": "x", "share": 2}], "merge.0.share: must be at most 1, got 2"),
        ([{"type": "captions", "pool": "p", "tokenizer": "jieba"}], "merge.0.tokenizer: type 'jieba' is not known"),
    ],
)
def test_mistakes_in_a_source_are_one_line(merge: list[dict[str, str]], line: str) -> None:
    with pytest.raises(ValidationError) as error:
        BuildMetadata(name="entries", merge=merge)
    ((where, message),) = error_lines(error.value, BuildMetadata)
    assert f"{'.'.join(map(str, where))}: {message}".startswith(line)


def test_settings_of_captions_without_captions_are_rejected() -> None:
    with pytest.raises(ValidationError, match="languages, min_count: only with captions"):
        BuildMetadata(name="entries", path="x", min_count=3, languages=["en"])


def test_a_recipe_is_planned_without_arrow_numpy_or_the_extras() -> None:
    code = (
        "import sys\nfrom vfm_curation import BuildMetadata\n"
        "BuildMetadata(name='e', merge=[{'type': 'wikipedia', 'dump': 'x'}]).model_dump()\n"
        "assert not {'pyarrow', 'numpy', 'mwparserfromhell', 'icu4py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
