"""`curation.filter` over pools on disk: filters against plain twins, with any shards; bad images, kills, chains."""

import errno
import hashlib
import io
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import Field, ValidationError

from filter_runs import jpeg, passed, run, verdicts
from shard_tasks import KilledError
from vfm.data import open_balanced, open_dataset, read_subset
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import load_panels
from vfm.plugin import (
    Artifact,
    Context,
    Event,
    Pool,
    Preflight,
    UserError,
)
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.filters.copies import buckets, near_duplicates
from vfm_curation.filters.hashes import phash
from vfm_curation.filters.stages import FilterPool, RowFilter
from vfm_curation.language import detect
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.pool_texts import encoded

Samples = list[tuple[str, dict[str, list[str]]]]


WORDS = ["a", "dog", "red", "house", "in", "snow", "the"]


def world(number: int = 90, seed: int = 0) -> tuple[Samples, dict[str, bytes], dict[str, str]]:
    """Return samples of one to three captions with many repetitions: of texts, files, URLs, images."""
    rng = random.Random(seed)
    samples: Samples = []
    images, urls = {}, {}
    for i in range(number):
        uid = hashlib.blake2b(f"{seed} {i}".encode(), digest_size=8).hexdigest()
        texts = {"en": [" ".join(rng.choices(WORDS, k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]}
        if rng.random() < 0.4:
            texts["de"] = [" ".join(rng.choices(WORDS, k=rng.randint(1, 5)))]
        samples.append((uid, texts))
        images[uid] = jpeg(rng.randrange(number // 2), rng.choice([(64, 48), (48, 36)]), rng.choice([60, 90]))
        if rng.random() < 0.9:
            urls[uid] = f"http://x.org/{rng.randrange(number // 2)}.jpg"
    return samples, images, urls


def rows_of(subset: Artifact) -> list[dict[str, Any]]:
    return read_subset(subset.path).to_pylist()


def texts_of(samples: Samples) -> dict[tuple[str, str, int], str]:
    return {(uid, lang, k): t for uid, texts in samples for lang, given in texts.items() for k, t in enumerate(given)}


def whole_images(samples: Samples, uids: Iterable[str]) -> set[tuple[str, str, int]]:
    chosen = set(uids)
    return {place for place in texts_of(samples) if place[0] in chosen}


def sizes_of(images: Mapping[str, bytes]) -> dict[str, tuple[int, int]]:
    """Return the pixels and the bytes of each image."""
    sizes = {uid: Image.open(io.BytesIO(image)).size for uid, image in images.items()}
    return {uid: (width * height, len(images[uid])) for uid, (width, height) in sizes.items()}


def first_uids(values: Mapping[str, Any]) -> set[str]:
    """Return the smallest of the uids with equal values."""
    first: dict[Any, str] = {}
    for uid in sorted(values):
        first.setdefault(values[uid], uid)
    return set(first.values())


def test_caption_length_equals_a_plain_twin(make_pool: Any, run_stage: Any) -> None:
    samples, _, _ = world()
    for number, (options, keeps) in enumerate(
        [
            ({}, lambda text: len(text) > 5 and len(text.split()) > 2),
            ({"min_words": 0, "min_characters": 0, "max_words": 2}, lambda text: len(text.split()) <= 2),
            ({"min_words": 1, "min_characters": 4, "max_characters": 9}, lambda text: 4 <= len(text) <= 9),
        ]
    ):
        pool = make_pool(f"pool{number}", samples)
        subset = run(run_stage, pool, [{"type": "caption_length", **options}], f"f{number}")
        expected = {place for place, text in texts_of(samples).items() if keeps(text)}
        assert passed(subset) == expected
        assert 0 < len(expected) < len(texts_of(samples))


@pytest.mark.parametrize("languages", [["en"], ["de", "en"]])
def test_languages_are_stored_as_text(make_pool: Any, run_stage: Any, languages: list[str]) -> None:
    samples = [(f"{number:032x}", {language: ["a dog"] for language in languages}) for number in range(4)]
    subset = run(run_stage, make_pool("p", samples), [{"type": "caption_length", "min_words": 1, "min_characters": 1}])
    for folder in ("subset", "verdicts"):
        column = pq.read_table(subset.path / folder)["language"]
        assert column.type == pa.string()
        assert column.to_pylist() == languages * 4


@pytest.mark.parametrize("values", [[], [None], ["a"], ["a", "a"], ["a", "b", "a"], ["a", None, "a"], [None, "a"]])
def test_encoded_values_are_the_values(values: list[str | None]) -> None:
    column = pa.chunked_array([pa.array(values[:1], pa.string()), pa.array(values[1:], pa.string())])
    assert encoded(column).to_pylist() == values


def test_image_size_equals_a_plain_twin_without_decoding(make_pool: Any, run_stage: Any) -> None:
    samples, images, _ = world()
    sizes = [(40, 40), (39, 40), (120, 40), (40, 120), (121, 40), (40, 121), (300, 90)]
    images = {uid: jpeg(i, sizes[i % len(sizes)]) for i, uid in enumerate(images)}
    images[samples[0][0]] = images[samples[0][0]][:700]  # the header is whole, the pixels cannot be decoded
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(images[samples[0][0]])).load()
    subset = run(run_stage, make_pool("p", samples, images=images), [{"type": "image_size", "min_side": 40}])
    good = [uid for i, uid in enumerate(images) if i % len(sizes) in (0, 2, 3)]
    assert passed(subset) == whole_images(samples, good)
    assert set(verdicts(subset).values()) == {"", "image_size"}


@pytest.fixture(params=["one bucket", "many buckets"])
def bucket_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many buckets":
        monkeypatch.setattr(buckets, "ROWS_PER_BUCKET", 11)
        monkeypatch.setattr(buckets, "BYTES_IN_MEMORY", 1000)


@pytest.mark.usefixtures("bucket_size")
@pytest.mark.parametrize("of", ["url", "text", "image", "phash"])
def test_duplicates_equal_a_dictionary_with_any_shards(make_pool: Any, run_stage: Any, of: str) -> None:
    samples, images, urls = world()
    texts = texts_of(samples)
    if of == "text":
        first: dict[str, tuple[str, str, int]] = {}
        for place in sorted(texts):
            first.setdefault(texts[place], place)
        expected = set(first.values())
    elif of == "url":
        expected = whole_images(samples, first_uids(urls) | (set(images) - set(urls)))
    elif of == "image":
        expected = whole_images(samples, first_uids(images))
    else:
        hashes = {uid: phash(Image.open(io.BytesIO(image))) for uid, image in images.items()}
        rank = {uid: (*[-size for size in sizes], uid) for uid, sizes in sizes_of(images).items()}
        near = {a for a in hashes for b in hashes if rank[b] < rank[a] and (hashes[a] ^ hashes[b]).bit_count() <= 4}
        expected = whole_images(samples, set(hashes) - near)
    assert 0.2 < len(expected) / len(texts) < 0.95
    one = {"type": "near_duplicates"} if of == "phash" else {"type": "duplicates", "of": of}
    shuffled = random.Random(3).sample(samples, len(samples))
    for name, ordered, size in (("one", samples, 1000), ("small", samples, 7), ("shuffled", shuffled, 13)):
        pool = make_pool(name, ordered, shard_size=size, images=images, urls=urls)
        subset = run(run_stage, pool, [one], f"f{name}")
        assert passed(subset) == expected
        reason = "near_duplicates" if of == "phash" else f"duplicate_{of}"
        assert {reason} == set(verdicts(subset).values()) - {""}


def test_of_near_duplicates_the_largest_is_kept_then_the_largest_file(make_pool: Any, run_stage: Any) -> None:
    copies = {"c": jpeg(1, (64, 48)), "a": jpeg(1, (32, 24)), "b": jpeg(1, (64, 48), 50), "d": jpeg(2), "e": jpeg(2)}
    assert len(copies["c"]) > len(copies["b"])
    pool = make_pool("pool", [(uid, {"en": ["a dog"]}) for uid in copies], shard_size=2, images=copies)
    for distance in (0, 8):
        subset = run(run_stage, pool, [{"type": "near_duplicates", "max_distance": distance}], f"n{distance}")
        assert {"c", "d"} <= {uid for uid, _, _ in passed(subset)}
    assert {uid for uid, _, _ in passed(subset)} == {"c", "d"}


def test_each_text_has_the_reason_of_the_first_filter_it_failed(make_pool: Any, run_stage: Any) -> None:
    samples, images, urls = world()
    pool = make_pool("pool", samples, shard_size=20, images=images, urls=urls)
    filters = [{"type": "duplicates", "of": "url"}, {"type": "caption_length"}, {"type": "duplicates", "of": "text"}]
    subset = run(run_stage, pool, filters)
    texts = texts_of(samples)
    by_url = whole_images(samples, first_uids(urls) | (set(images) - set(urls)))
    long_enough = {place for place in by_url if len(texts[place]) > 5 and len(texts[place].split()) > 2}
    first: dict[str, tuple[str, str, int]] = {}
    for place in sorted(long_enough):
        first.setdefault(texts[place], place)
    expected = {
        place: "duplicate_url"
        if place not in by_url
        else "caption_length"
        if place not in long_enough
        else "duplicate_text"
        if place not in first.values()
        else ""
        for place in texts
    }
    assert verdicts(subset) == expected
    assert passed(subset) == {place for place, reason in expected.items() if not reason}

    funnel, seconds, examples = load_panels(subset.path)
    counts = Counter(expected.values())
    left = len(texts)
    assert funnel.labels == ["texts", "readable images", "duplicate_url", "caption_length", "duplicate_text"]
    for value, reason in zip(funnel.values, [None, None, *funnel.labels[2:]], strict=True):
        left -= counts[reason] if reason else 0
        assert value == left
    assert [row[1] for row in seconds.rows] == funnel.values
    assert {row[0] for row in examples.rows} == set(funnel.labels[2:])
    for reason, number, language, text, uid in examples.rows:
        assert counts[reason] == number
        assert any(
            expected[place] == reason for place in texts if place[:2] == (uid, language) and texts[place] == text
        )

    view = open_dataset(subset)
    assert len(view) == subset.num_samples
    read = {
        (view[i].uid, language, text)
        for i in range(len(view))
        for language in view[i].texts
        for text in view[i].texts[language]
    }
    assert read == {(uid, language, texts[uid, language, k]) for uid, language, k in passed(subset)}


def test_bad_images_are_skipped_and_counted_by_reason(make_pool: Any, run_stage: Any) -> None:
    samples, images, _ = world(40)
    uids = [uid for uid, _ in samples]
    images[uids[3]] = b"not an image"
    images[uids[4]] = images[uids[4]][:300]
    samples[5] = (uids[5], {"en": []})
    pool = make_pool("pool", samples, shard_size=11, images=images)
    events: list[Event] = []
    subset = run(run_stage, pool, [{"type": "near_duplicates", "max_distance": 0}], send=events.append)
    found = verdicts(subset)
    assert {uid for (uid, *_), reason in found.items() if reason == "unreadable_image"} == {uids[3], uids[4]}
    reported = Counter(event.data["reason"] for event in events if event.type == "bad_sample")
    assert reported == {"unreadable_image": 2, "missing_caption": 1}
    assert uids[5] not in {uid for uid, *_ in found}


def test_a_large_distance_warns(make_pool: Any, run_stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, images, _ = world(12)
    pool = make_pool("pool", samples, images=images)

    def warnings(distance: int) -> list[str]:
        events: list[Event] = []
        run(
            run_stage,
            pool,
            [{"type": "near_duplicates", "max_distance": distance, "variants": False}],
            f"d{distance}",
            send=events.append,
        )
        return [event.data["message"] for event in events if event.type == "warning"]

    assert warnings(10) == []  # few images need few masks
    monkeypatch.setattr(near_duplicates, "MANY_ROWS", 5)
    assert warnings(4) == []
    assert warnings(9) == [
        "near_duplicates: with max_distance 9 each of 12 images is written and sorted 10 times,"
        " with 4 and variants: false 5 times"
    ]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and "seconds" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def where(event: Event) -> tuple[str | None, int]:
    """Return how far a filter run is: the current pass and its number of shards."""
    return event.data["shown"].get("filter"), event.data["done"]


def test_killed_filter_resumes_and_ends_with_the_same_files(make_pool: Any, run_stage: Any) -> None:
    samples, images, urls = world()
    pool = make_pool("pool", samples, shard_size=20, images=images, urls=urls)
    filters = [
        {"type": "caption_length", "min_words": 2, "min_characters": 3},
        {"type": "duplicates", "of": "image"},
        {"type": "near_duplicates"},
        {"type": "duplicates", "of": "text"},
    ]
    events: list[Event] = []
    unbroken = run(run_stage, pool, filters, "unbroken", send=events.append)
    moments = [event for event in events if event.type == "progress"]
    times: dict[str, int] = {}
    work = pool.path.parents[1] / "work" / "filtered"
    for moment in moments:  # a kill at every shard of every pass, all in one work folder

        def kill(event: Event, last: Event = moment) -> None:
            if event.type == "progress" and where(event) == where(last):
                raise KilledError

        with pytest.raises(KilledError):
            run(run_stage, pool, filters, send=kill)
        measured = {str(f): f.stat().st_mtime_ns for name in ("texts", "images") for f in work.glob(f"{name}/*")}
        assert measured | times == measured  # whole files are not written again
        times = measured
    subset = run(run_stage, pool, filters)
    assert contents(subset.path) == contents(unbroken.path)
    assert {path.name for path in work.parent.iterdir()} == {"filtered", "unbroken"}  # no other folder remains


@pytest.mark.parametrize("has_links", [True, False])
def test_a_kill_between_the_last_two_moves_loses_no_verdict(
    make_pool: Any, run_stage: Any, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    samples, *_ = world(30)
    pool, filters = make_pool("pool", samples), [{"type": "caption_length", "min_words": 2}]
    moved: list[Path] = []

    def kill(path: Path, to: Path, move: Any) -> Any:
        if moved:
            raise KilledError
        moved.append(to)
        return move(path, to)

    def no_link(path: Path, to: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", partial(kill, move=os.link) if has_links else no_link)
        if not has_links:
            patch.setattr(Path, "rename", partialmethod(kill, move=Path.rename))
        with pytest.raises(KilledError):
            run(run_stage, pool, filters)
    again = run(run_stage, pool, filters)
    assert verdicts(again).keys() == texts_of(samples).keys()
    assert passed(again) == {place for place, reason in verdicts(again).items() if not reason}


def test_several_processes_make_the_same_files(make_pool: Any, run_stage: Any) -> None:
    samples, images, urls = world()
    pool = make_pool("pool", samples, shard_size=20, images=images, urls=urls)
    filters = [{"type": "caption_length", "min_words": 2}, {"type": "near_duplicates"}]
    one = run(run_stage, pool, filters, "one")
    two = run(run_stage, pool, filters, "two", runtime={"workers": 2})
    assert contents(one.path) == contents(two.path)


def test_kept_texts_of_a_balanced_subset_are_filtered_and_not_drawn_again(
    make_pool: Any, run_stage: Any, tmp_path: Path
) -> None:
    rng = random.Random(0)
    samples = [(f"u{i:03d}", {"en": [f"the {rng.choice(WORDS)} {i}" for _ in range(2)]}) for i in range(150)]
    (tmp_path / "entries.txt").write_text("\n".join(WORDS))
    pool = make_pool("pool", samples)
    metadata = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "entries.txt")))
    matches = run_stage(MatchTexts(name="matches", pool="p", metadata="m"), p=pool, m=metadata)
    balanced = run_stage(MetaclipBalance(name="balanced", matches="x", t=20), x=matches)
    subset = run(run_stage, balanced, [{"type": "caption_length", "min_characters": 9, "min_words": 3}])
    before = {(row["uid"], row["text_index"]): row["probability"] for row in rows_of(balanced) if row["kept"]}
    assert min(before.values()) < 0.9
    texts, rows = texts_of(samples), rows_of(subset)
    assert {(row["uid"], row["text_index"]) for row in rows} == {
        place for place in before if len(texts[place[0], "en", place[1]]) >= 9
    }
    assert {(row["kept"], row["probability"]) for row in rows} == {(True, 1.0)}
    drawn = open_balanced(subset, seed=3)
    assert len(drawn) == len(open_dataset(subset)) == drawn.epochs.sizes(0).sum()
    assert {(uid, k) for uid, _, k in verdicts(subset)} == set(before)
    assert Pool.load(subset.linked(subset.pool)).path.resolve() == pool.path.resolve()


def test_languages_are_those_that_fasttext_detects(make_pool: Any, run_stage: Any) -> None:
    english = ["a dog runs through the deep snow", "two people are walking along the beach"]
    german = ["ein Hund rennt durch den tiefen Schnee", "zwei Leute gehen am Strand spazieren"]
    samples = [
        (f"u{i}", {"en": [text], "de": [other]}) for i, (text, other) in enumerate(zip(english, german, strict=True))
    ]
    samples += [
        (f"w{i}", {"en": [other], "de": [text]}) for i, (text, other) in enumerate(zip(english, german, strict=True))
    ]
    subset = run(run_stage, make_pool("p", samples), [{"type": "language"}])
    assert passed(subset) == {(f"u{i}", name, 0) for i in range(2) for name in ("en", "de")}
    codes, scores = detect(english + german)
    assert list(codes) == ["en", "en", "de", "de"]
    middle = float(np.sort(scores)[2])
    subset = run(
        run_stage, make_pool("q", samples), [{"type": "language", "languages": ["en", "de"], "min_score": middle}], "f"
    )
    sure = {text for text, score in zip(english + german, scores, strict=True) if score >= np.float32(middle)}
    assert passed(subset) == {place for place, text in texts_of(samples).items() if text in sure}


def test_no_passing_text_is_an_error_in_one_line(make_pool: Any, run_stage: Any) -> None:
    samples, images, _ = world(20)
    pool = make_pool("pool", samples, images=images)
    total = len(texts_of(samples))
    with pytest.raises(UserError, match=rf"no text of 'p' passes all filters: {total} caption_length"):
        run(run_stage, pool, [{"type": "caption_length", "min_words": 99}])


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([], "at least 1 item"),
        ([{"type": "caption_lenght"}], "caption_length"),
        ([{"type": "caption_length", "min_words": 5, "max_words": 4}], "at least 5 and at most 4 words"),
        ([{"type": "image_size", "max_aspect": 0.5}], "must be at least 1, got 0.5"),
        ([{"type": "near_duplicates", "max_distance": 30}], "must be at most 10, got 30"),
        ([{"type": "clip_score", "clip": "c"}], "exactly one of min_score, max_score, top_fraction, bottom_fraction"),
        ([{"type": "clip_score", "clip": "c", "top_fraction": 1.5}], "must be less than 1"),
        ([{"type": "decontaminate", "against": ["e"], "clip": "c"}], "clip and min_cosine belong together"),
    ],
)
def test_invalid_configurations_are_rejected(filters: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FilterPool(name="f", pool="p", filters=filters)


def test_links_are_deduplicated_by_url_before_a_download(run_stage: Any, tmp_path: Path) -> None:
    samples, _, urls = world()
    rows = [{"uid": uid, "url": urls.get(uid), "text": texts["en"]} for uid, texts in samples]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stage = Pairs(name="p", path=str(tmp_path / "pool.jsonl"), images=False)
    pool = run_stage(stage)
    subset = run(run_stage, pool, [{"type": "duplicates", "of": "url"}, {"type": "duplicates", "of": "text"}])
    by_url = first_uids(urls) | {uid for uid, _ in samples if uid not in urls}
    assert {uid for (uid, *_), reason in verdicts(subset).items() if reason != "duplicate_url"} == by_url
    assert set(verdicts(subset).values()) == {"", "duplicate_url", "duplicate_text"}

    needs_images = FilterPool(name="f", pool="p", filters=[{"type": "duplicates", "of": "url"}, {"type": "image_size"}])
    with pytest.raises(UserError, match=r"^filters\[1\] image_size: reads images, but 'p' has only texts$"):
        needs_images.preflight(Preflight({"p": stage}, {}))
    with pytest.raises(UserError, match="image_size: reads images, but 'p' has only texts"):
        run_stage(needs_images, p=pool)


def test_preflight_reports_each_mistake_in_a_line(tmp_path: Path) -> None:
    filters = [
        {"type": "clip_score", "clip": "c", "min_score": 28},
        {"type": "decontaminate", "against": ["p"]},
        {"type": "linear_score", "clip": "c", "head": str(tmp_path / "none.safetensors"), "max_score": 0.5},
    ]
    stage = FilterPool(name="f", pool="p", filters=filters)
    with pytest.raises(UserError) as error:
        stage.preflight(Preflight({}, {}))
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"filters[{i}] {one['type']}" for i, one in enumerate(filters)]
    assert ["expected a cosine" in lines[0], "itself" in lines[1], "no such file" in lines[2]] == [True] * 3
    assert list(stage.sources()) == [str(tmp_path / "none.safetensors")]


def test_bad_samples_beyond_those_shown_are_counted(make_pool: Any) -> None:
    samples, images, _ = world(60)
    images = {uid: b"?" if number < 40 else image for number, (uid, image) in enumerate(images.items())}
    pool = make_pool("pool", samples, shard_size=1000, images=images)
    out, work = (pool.path.parent / name for name in ("out", "work"))
    out.mkdir()
    work.mkdir()
    context = Context("f", out, work, {"p": pool.path})
    FilterPool(name="f", pool="p", filters=[{"type": "image_size", "min_side": 1}]).run(context)
    assert context.bad == {"unreadable_image": 40}


class EvenWords(RowFilter):
    """Keep texts with an even number of words that contain `word`."""

    type: Literal["even_words"] = Field("even_words", description="texts with an even number of words")
    word: str = Field("a", description="a word that they contain")

    columns: ClassVar[frozenset[str]] = frozenset({"caption"})
    work: ClassVar[str] = f"{__name__}:has_even_words"


def has_even_words(config: EvenWords, table: pa.Table) -> pa.Array:
    captions = table["caption"].to_pylist()
    return pa.array(len(text.split()) % 2 == 0 and config.word in text.split() for text in captions)


def test_a_plugins_filter_fills_the_slot_and_reads_captions(make_pool: Any, run_stage: Any) -> None:
    samples, _, _ = world()
    filters = [{"type": "caption_length", "min_words": 2, "min_characters": 0}, {"type": "even_words", "word": "dog"}]
    subset = run(run_stage, make_pool("pool", samples), filters)
    texts = {place: text.split() for place, text in texts_of(samples).items()}
    expected = {place for place, words in texts.items() if len(words) % 2 == 0 and "dog" in words}
    assert passed(subset) == expected
    assert set(verdicts(subset).values()) == {"", "caption_length", "even_words"}
    with pytest.raises(ValidationError, match="unknown key; did you mean 'word'"):
        FilterPool(name="f", pool="p", filters=[{"type": "even_words", "wrod": "dog"}])
