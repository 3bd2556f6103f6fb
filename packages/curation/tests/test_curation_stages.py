"""The three stages over pools on disk: equal to a plain twin, independent of shards and workers, safe to kill."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from shard_tasks import KilledError
from vfm.data import open_dataset, read_subset, text_key, uniform
from vfm.interfaces import load_panels
from vfm.plugin import Context, Event, Pool, UserError
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.counts.matches import FOLDER, read_shards
from vfm_curation.match.stages import MatchTexts
from vfm_curation.matching import match_plain
from vfm_curation.metadata import load_entries
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.plugin import vfm_stages

NOUNS = ["dog", "cat", "red car", "lighthouse", "okapi", "church", "piano", "glacier", "U.S."]


def samples(number: int = 200, seed: int = 0) -> list[tuple[str, dict[str, list[str]]]]:
    """Return samples with up to three captions, whose nouns follow Zipf's law; some captions have no noun."""
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(NOUNS) + 1)]
    made = []
    for i in range(number):
        nouns = [rng.choices([*NOUNS, "thing"], [*weights, 0.5])[0] for _ in range(rng.randint(1, 3))]
        made.append((f"uid{i}", {"en": [f"photo {i}, the {noun}!" for noun in nouns]}))
    return made


@pytest.fixture
def entry_file(tmp_path: Path) -> Path:
    path = tmp_path / "entries.txt"
    path.write_text("\n".join([*NOUNS, "photo of"]), encoding="utf-8")
    return path


def curate(run_stage: Any, pool: Pool, entry_file: Path, *, prefix: str = "", workers: int = 0, **rule: Any) -> Any:
    metadata = run_stage(BuildMetadata(name=f"{prefix}entries", path=str(entry_file)))
    match = MatchTexts(name=f"{prefix}matches", pool="p", metadata="m", runtime={"workers": workers})
    matches = run_stage(match, p=pool, m=metadata)
    return run_stage(MetaclipBalance(name=f"{prefix}curated", matches="x", **rule), x=matches)


def identities(subset: Any) -> list[tuple[str, str, int]]:
    table = read_subset(subset.path).filter(pc.field("kept"))
    return sorted(zip(*(table[name].to_pylist() for name in ("uid", "language", "text_index")), strict=True))


def test_chain_keeps_exactly_the_texts_of_a_plain_twin(make_pool: Any, run_stage: Any, entry_file: Path) -> None:
    pool = make_pool("pool", samples())
    subset = curate(run_stage, pool, entry_file, t=20, seed=3)

    entries = [*NOUNS, "photo of"]
    found = {(uid, k): match_plain(text, entries) for uid, texts in samples() for k, text in enumerate(texts["en"])}
    counts = [sum(i in ids for ids in found.values()) for i in range(len(entries))]
    chance = {name: 1 - np.prod([1 - min(1, 20 / counts[i]) for i in ids]) for name, ids in found.items()}
    expected = [
        (uid, "en", k)
        for (uid, k), p in chance.items()
        if uniform(np.array([text_key(uid, "en", k)], dtype=np.uint64), 3)[0] < p
    ]
    assert identities(subset) == sorted(expected)
    assert 0 < len(expected) < sum(map(bool, found.values())) < len(found)

    card = pq.read_table(subset.path / "entry_counts.parquet").to_pydict()
    assert card["matched"] == counts
    kept = set(expected)
    assert card["kept"] == [
        sum(i in ids and (uid, "en", k) in kept for (uid, k), ids in found.items()) for i in range(len(entries))
    ]
    table = read_subset(subset.path)
    stored = {(row["uid"], row["text_index"]): row["probability"] for row in table.to_pylist()}
    assert stored == {name: pytest.approx(p, abs=1e-6) for name, p in chance.items() if p}


def test_subset_is_read_back_as_a_view_of_the_pool(make_pool: Any, run_stage: Any, entry_file: Path) -> None:
    subset = curate(run_stage, make_pool("pool", samples()), entry_file, t=20)
    originals, seen = dict(samples()), []
    view = open_dataset(subset)
    assert len(view) == subset.num_samples
    places = {(uid, k) for uid, _, k in identities(subset)}
    for i in range(len(view)):
        sample = view[i]
        texts = [text for k, text in enumerate(originals[sample.uid]["en"]) if (sample.uid, k) in places]
        assert sample.texts == {"en": texts}
        seen += texts
    assert len(seen) == len(places)


def test_kept_set_depends_on_no_order_shards_or_workers(make_pool: Any, run_stage: Any, entry_file: Path) -> None:
    shuffled = samples()
    random.Random(1).shuffle(shuffled)
    pools = [
        make_pool("whole", samples(), shard_size=1000),
        make_pool("small", samples(), shard_size=17),
        make_pool("shuffled", shuffled, shard_size=33),
    ]
    kept = [
        identities(curate(run_stage, pool, entry_file, prefix=f"w{workers}", workers=workers, target_size=120))
        for pool, workers in zip(pools, (0, 0, 2), strict=True)
    ]
    assert kept[0] == kept[1] == kept[2]
    assert 90 < len(kept[0]) < 150
    other = curate(run_stage, pools[0], entry_file, prefix="seed", target_size=120, seed=1)
    assert identities(other) != kept[0]


def test_killed_match_repeats_only_unfinished_shards(make_pool: Any, run_stage: Any, entry_file: Path) -> None:
    pool = make_pool("pool", samples(), shard_size=40)
    metadata = run_stage(BuildMetadata(name="entries", path=str(entry_file)))
    stage = MatchTexts(name="matches", pool="p", metadata="m")

    def kill(event: Event) -> None:
        if event.type == "progress" and event.data["done"] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run_stage(stage, send=kill, p=pool, m=metadata)
    folder = pool.path.parents[1] / "work" / "matches" / FOLDER
    finished = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(finished) == 2
    parts = folder.with_name(f"{FOLDER}.parts")
    parts.mkdir(exist_ok=True)
    (parts / "00000002.parquet.0").write_bytes(b"half a file")
    matches = run_stage(stage, p=pool, m=metadata)
    after = {file.name: file.stat().st_mtime_ns for file in (matches.path / FOLDER).iterdir()}
    assert after | finished == after
    assert len(after) == 5

    unbroken = run_stage(stage.model_copy(update={"name": "unbroken"}), p=pool, m=metadata)
    for name in [*after, "../counts.npy"]:
        assert (matches.path / FOLDER / name).read_bytes() == (unbroken.path / FOLDER / name).read_bytes()
    assert matches.model_dump() == unbroken.model_dump()
    assert {path.name for path in matches.path.parent.iterdir()} == {"entries", "matches", "pool", "unbroken"}


def test_bad_samples_are_counted_by_reason_also_after_a_resume(
    make_pool: Any, run_stage: Any, entry_file: Path
) -> None:
    broken = samples(60)
    broken[3] = ("uid3", {"en": ["dog " * 50_000]})
    broken[7] = ("uid7", {"en": []})
    broken[41] = ("uid41", {"en": ["  "]})
    pool = make_pool("pool", broken, shard_size=20)
    metadata = run_stage(BuildMetadata(name="entries", path=str(entry_file)))
    events: list[Event] = []

    def kill_at_the_end(event: Event) -> None:
        if event.type == "metrics":
            raise KilledError

    stage = MatchTexts(name="matches", pool="p", metadata="m")
    with pytest.raises(KilledError):
        run_stage(stage, send=kill_at_the_end, p=pool, m=metadata)
    matches = run_stage(stage, send=events.append, p=pool, m=metadata)
    reasons = [event.data["reason"] for event in events if event.type == "bad_sample"]
    assert sorted(reasons) == ["caption_too_long", "missing_caption", "missing_caption"]
    good = [texts["en"] for i, (_, texts) in enumerate(broken) if i not in (3, 7, 41)]
    assert matches.num_texts == sum(map(len, good))


def test_bad_samples_beyond_those_shown_are_counted(run_stage: Any, make_pool: Any, entry_file: Path) -> None:
    pool = make_pool("pool", [*samples(40), *((f"bad{i}", {"en": []}) for i in range(50))], shard_size=1000)
    metadata = run_stage(BuildMetadata(name="entries", path=str(entry_file)))
    work = pool.path.parent / "w"
    work.mkdir()
    context = Context("matches", pool.path.parent / "matches", work, {"p": pool.path, "m": metadata.path})
    context.directory.mkdir()
    MatchTexts(name="matches", pool="p", metadata="m").run(context)
    assert context.bad == {"missing_caption": 50}


def test_texts_of_other_languages_are_ignored(make_pool: Any, run_stage: Any, entry_file: Path) -> None:
    pool = make_pool("pool", [(f"u{i}", {"en": ["a dog", "a cat"], "de": ["ein dog"]}) for i in range(30)])
    metadata = run_stage(BuildMetadata(name="entries", path=str(entry_file)))
    for languages, expected in ((None, {"en"}), (["de"], {"de"}), (["de", "en"], {"de", "en"})):
        stage = MatchTexts(name=f"m{len(expected)}{languages is None}", pool="p", metadata="m", languages=languages)
        matches = run_stage(stage, p=pool, m=metadata)
        assert {one for shard in read_shards(matches.path) for one in shard.table["language"].to_pylist()} == expected
        subset = run_stage(MetaclipBalance(name=f"s{stage.name}", matches="x", t=1000), x=matches)
        assert subset.languages == [language for language in ("en", "de") if language in expected]
    with pytest.raises(UserError, match="p has no captions in 'fr'; known: de, en"):
        run_stage(MatchTexts(name="fr", pool="p", metadata="m", languages=["fr"]), p=pool, m=metadata)


def test_metadata_from_captions_is_frozen_and_sized(make_pool: Any, run_stage: Any) -> None:
    pool = make_pool("pool", samples())
    shuffled = samples()
    random.Random(5).shuffle(shuffled)
    stage = BuildMetadata(name="entries", captions="p", size=12, min_count=2, bigram_min_count=2)
    metadata = run_stage(stage, p=pool)
    other = run_stage(stage.model_copy(update={"name": "other"}), p=make_pool("other_pool", shuffled, shard_size=7))
    entries = load_entries(metadata)["entry"].to_pylist()
    assert metadata.num_entries == len(entries) == 12
    assert {"dog", "the", "red car"} <= set(entries)
    assert metadata.sha256 == other.sha256


def test_no_match_is_an_error_in_one_line(make_pool: Any, run_stage: Any, tmp_path: Path) -> None:
    path = tmp_path / "none.txt"
    path.write_text("zeppelin\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"none of the \d+ texts of 'p' \(en\) contains any of the 1 entries of 'm'"):
        curate(run_stage, make_pool("pool", samples()), path, t=20)


def test_empty_metadata_is_an_error_in_one_line(make_pool: Any, run_stage: Any, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n!\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no entries"):
        run_stage(BuildMetadata(name="entries", path=str(path)))
    rare = BuildMetadata(name="entries", captions="p", min_count=10_000, bigram_min_count=10_000)
    with pytest.raises(UserError, match="no word occurs 10000 times in the captions of 'p'"):
        run_stage(rare, p=make_pool("pool", samples()))


def test_target_beyond_the_matched_texts_is_rejected(make_pool: Any, run_stage: Any, entry_file: Path) -> None:
    with pytest.raises(UserError, match=r"target_size 100000 is not possible: \d+ texts matched"):
        curate(run_stage, make_pool("pool", samples()), entry_file, target_size=100_000)


def test_t_that_keeps_nothing_is_rejected(make_pool: Any, run_stage: Any, entry_file: Path) -> None:
    with pytest.raises(UserError, match=r"t = 1e-09 keeps none of \d+ matched texts; raise t"):
        curate(run_stage, make_pool("pool", samples()), entry_file, t=1e-9)


def test_entries_with_more_than_the_tails_share_are_head(make_pool: Any, run_stage: Any, entry_file: Path) -> None:
    subset = curate(run_stage, make_pool("pool", samples()), entry_file, tail_share=0.2)
    card = pq.read_table(subset.path / "entry_counts.parquet")
    probability, matched, kept = (card[name].to_numpy() for name in ("probability", "matched", "kept"))
    head = probability < 1
    assert 0.7 < matched[head].sum() / matched.sum() < 0.95
    assert (kept[~head] == matched[~head]).all()
    assert (kept[head] <= matched[head]).all()
    assert (kept[matched > 30] < matched[matched > 30]).all()  # an entry just above t may keep all its texts


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MetaclipBalance(name="b", matches="m"), "exactly one of t, target_size and tail_share"),
        (lambda: MetaclipBalance(name="b", matches="m", t=1, target_size=1), "exactly one of"),
        (lambda: MetaclipBalance(name="b", matches="m", t=0), "greater than 0"),
        (lambda: MetaclipBalance(name="b", matches="m", tail_share=1), "less than 1"),
        (lambda: BuildMetadata(name="e"), "exactly one of captions"),
        (lambda: BuildMetadata(name="e", captions="p", path="x"), "exactly one of captions"),
        (lambda: BuildMetadata(name="e", path="x", size=0), "greater than or equal to 1"),
    ],
)
def test_invalid_configurations_are_rejected(build: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build()


def test_panels_show_funnel_curve_entries_and_examples(make_pool: Any, run_stage: Any, entry_file: Path) -> None:
    subset = curate(run_stage, make_pool("pool", samples()), entry_file, t=20)
    funnel, steps, ranks, curve, choices, languages, top, examples = load_panels(subset.path)
    num_texts = sum(len(texts["en"]) for _, texts in samples())
    assert funnel.labels == ["texts", "matched", "kept"]
    assert num_texts == funnel.values[0] > funnel.values[1] > funnel.values[2] == len(identities(subset))
    assert [row[:2] for row in steps.rows] == [
        [name, int(n)] for name, n in zip(funnel.labels, funnel.values, strict=True)
    ]
    assert [one.name for one in ranks.series] == ["before balancing", "after balancing", "t"]
    before, after, *others = curve.series
    assert [one.name for one in others] == ["t / 10", "t / 3", "t × 3", "t × 10"]
    sizes = [float(row[4]) for row in choices.rows]
    assert sizes == sorted(sizes)
    assert abs(sizes[2] - funnel.values[2]) < 4 * sizes[2] ** 0.5
    assert languages.rows[0][:3] == ["any", len(NOUNS) + 1, 20]
    assert languages.rows[1][0] == "en"
    assert before.y[-1] == after.y[-1] == pytest.approx(1)
    assert before.y[0] > after.y[0]  # the most frequent entry has a smaller fraction
    assert top.rows[0][0] == "dog"
    texts = {text for _, captions in samples() for text in captions["en"]}
    assert {row[2] for row in examples.rows} == {"kept", "dropped", "no entry"}
    assert all(row[1] in texts for row in examples.rows)
    bars, dead = load_panels(subset.path.parent / "entries")
    assert bars.values == [len(NOUNS) + 1]
    assert dead.rows[0][0] == "U.S."


def test_plugin_has_its_stages_and_imports_no_torch() -> None:
    assert set(vfm_stages()) == {
        "curation.extract",
        "curation.retry",
        "curation.export",
        "curation.filter",
        "curation.metadata",
        "curation.match",
        "curation.random",
        "curation.balance",
    }
    code = (
        "import sys, vfm_curation.plugin; assert not {'torch', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "import vfm_curation.match.match, vfm_curation.balance.balance, vfm_curation.filters.filter\n"
        "import vfm_curation.export.export\n"
        "import vfm_curation.crawl.extract, vfm_curation.metadata.build; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
