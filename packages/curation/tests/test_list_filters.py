"""Filters with the user's lists, and of texts that are nearly the same: against plain twins and chosen cases."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vfm.data import read_subset, uid_of
from vfm.data.pairs.stages import Pairs
from vfm.plugin import Event, Preflight, UserError
from vfm_curation.filters.list_filters import BlockedUrls, BlockedWords, NearDuplicateTexts, Synsets, Uids
from vfm_curation.filters.lists.lists import uid_passes, url_passes, word_passes
from vfm_curation.filters.lists.synsets import synset_passes
from vfm_curation.filters.stages import FilterPool
from vfm_curation.uids import uid_halves


def listed(folder: Path, text: str, name: str = "list.txt") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_urls_are_blocked_by_host_its_domains_and_the_beginning_of_the_path(tmp_path: Path) -> None:
    path = listed(
        tmp_path, "# ads\nExample.com\n0.0.0.0 first.net ads.net # a hosts file\n*.wild.org\nhttps://a.io/img/\n"
    )
    cases = {
        "http://example.com/1.jpg": False,
        "HTTPS://cdn.EXAMPLE.com:8080/1.jpg": False,
        "http://notexample.com/1.jpg": True,
        "http://example.com.evil.org/": True,
        "http://x.ads.net/a": False,
        "http://first.net/a": False,
        "http://deep.wild.org/a": False,
        "http://a.io/img/1.jpg": False,
        "http://sub.a.io/img/1.jpg": False,
        "http://a.io/other/1.jpg": True,
        "http://[broken": True,
        "": True,
    }
    table = pa.table({"address": [*cases, None]})
    assert url_passes(BlockedUrls(path=path), table).tolist() == [*cases.values(), True]


def test_words_are_blocked_whole_in_any_case_and_anywhere_in_scripts_without_spaces(tmp_path: Path) -> None:
    path = listed(tmp_path, "Bad\nvery bad idea\nl'eau\nStraße\n悪い\n")
    cases = {
        "a BAD dog": False,
        "a badger, not a baddie": True,
        "bad!": False,
        "a very, bad idea": False,
        "a very good idea": True,
        "de l'eau": False,
        "eine STRASSE": False,
        "とても悪い犬": False,
        "良い犬": True,
    }
    table = pa.table({"caption": list(cases)})
    assert word_passes(BlockedWords(path=path), table).tolist() == list(cases.values())
    several = word_passes(BlockedWords(path=path, max_count=1), pa.table({"caption": ["bad", "a very bad idea"]}))
    assert several.tolist() == [True, False]  # two items in the second


HIGH, LOW = "00000000000000ff", "fedcba9876543210"


@pytest.mark.parametrize("order", ["ascending", "other"])
def test_uids_are_kept_if_both_of_their_halves_are_listed(tmp_path: Path, order: str) -> None:
    uids = [HIGH + LOW, HIGH + HIGH, LOW + HIGH, "0" * 32, "f" * 32]
    pairs = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids[:3]]
    own = "an uid of another form"
    pairs.append((int(uid_of(own)[:16], 16), int(uid_of(own)[16:], 16)))
    pairs = sorted(pairs) if order == "ascending" else sorted(pairs)[::-1]
    np.save(tmp_path / "uids.npy", np.array(pairs, "u8,u8"))
    table = pa.table({"uid": [*uids, LOW + LOW, own, "another one"]})
    expected = [True, True, True, False, False, False, True, False]
    assert uid_passes(Uids(path=str(tmp_path / "uids.npy")), table).tolist() == expected


@pytest.mark.parametrize(
    ("array", "line"),
    [
        (np.arange(4), r"expected uids as pairs of 64-bit halves \(u8, u8\), got int64 \(4,\)"),
        (np.empty(0, "u8,u8"), "expected uids, got an empty list"),
        (None, "it does not begin as an npy file"),
    ],
)
def test_a_file_that_is_no_list_of_uids_is_one_line(tmp_path: Path, array: Any, line: str) -> None:
    file = tmp_path / "uids.npy"
    file.write_text("uids") if array is None else np.save(file, array)
    with pytest.raises(UserError, match=line) as caught:
        uid_passes(Uids(path=str(file)), pa.table({"uid": ["0" * 32]}))
    assert "\n" not in str(caught.value)


INDEX = """  1 a licence
dog n 2 1 @ 2 1 02084071 10114209
hot_dog n 1 1 @ 1 1 07697537
crane n 2 2 @ ~ 2 1 03126707 02012849
berry n 1 0 1 1 07742704
"""


def test_texts_pass_by_the_first_sense_of_a_noun_also_in_plural(tmp_path: Path) -> None:
    listed(tmp_path, INDEX, "index.noun")
    path = listed(tmp_path, "n02084071\n07697537 frankfurter\nn02012849\nn07742704\n")
    cases = {
        "a Dog!": True,
        "two dogs": True,
        "hot dogs for all": True,
        "wild berries": True,
        "a crane by the lake": False,  # the bird is its second sense
        "a dogged man": False,
        "": False,
    }
    config = Synsets(path=path, wordnet=str(tmp_path))
    assert synset_passes(config, pa.table({"caption": list(cases)})).tolist() == list(cases.values())
    with pytest.raises(UserError, match="expected a WordNet ID such as n02084071, got 'dog'"):
        synset_passes(Synsets(path=listed(tmp_path, "dog", "b"), wordnet=str(tmp_path)), pa.table({"caption": ["x"]}))
    with pytest.raises(UserError, match="none of its 1 synsets is the first sense of a noun"):
        synset_passes(Synsets(path=listed(tmp_path, "n1" + "0" * 7, "c"), wordnet=str(tmp_path)),
                      pa.table({"caption": ["x"]}))  # fmt: skip


@pytest.mark.parametrize("kind", [BlockedUrls, BlockedWords, Synsets])
def test_a_missing_or_empty_list_is_one_line(kind: Any, tmp_path: Path) -> None:
    assert next(iter(kind(path="/no/list").errors(Preflight({}, {}), "pool"))) == "/no/list: no such file"
    empty = kind(path=listed(tmp_path, "# nothing\n"))
    with pytest.raises(UserError, match="expected one item a line, got an empty list"):
        empty.build(pa.table({"caption": ["x"], "address": ["x"]}))


def links(run_stage: Any, folder: Path, rows: list[tuple[str, str]]) -> Any:
    lines = [f'{{"uid": "u{i:04d}", "url": "{url}", "text": "{text}"}}' for i, (url, text) in enumerate(rows)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return run_stage(Pairs(name="pool", path=str(folder / "captions.jsonl"), images=False))


def test_lists_filter_a_table_of_links_before_any_download(run_stage: Any, tmp_path: Path) -> None:
    rows = [(f"http://h{i % 3}.org/{i}.jpg", f"the {('good', 'bad')[i % 2]} dog {i}") for i in range(60)]
    pool = links(run_stage, tmp_path, rows)
    filters = [
        {"type": "blocked_urls", "path": listed(tmp_path, "h1.org", "urls")},
        {"type": "blocked_words", "path": listed(tmp_path, "bad", "words")},
        {"type": "uids", "path": str(tmp_path / "uids.npy")},
    ]
    np.save(tmp_path / "uids.npy", np.sort(uid_halves(pa.chunked_array([[f"u{i:04d}" for i in range(5, 50)]]))))
    stage = FilterPool(name="filtered", pool="p", filters=filters)
    stage.preflight(Preflight({}, {"p": pool.path}))
    subset = run_stage(stage, p=pool)
    expected = {f"u{i:04d}" for i in range(5, 50) if i % 3 != 1 and i % 2 == 0}
    assert set(read_subset(subset.path)["uid"].to_pylist()) == expected


@pytest.mark.parametrize("with_url", [True, False])
def test_filters_of_urls_on_a_pool_without_urls_are_a_warning(run_stage: Any, tmp_path: Path, with_url: bool) -> None:
    url = '"url": "http://h.org/1.jpg", ' if with_url else ""
    lines = [f'{{"uid": "u{i}", {url if i == 2 else ""}"text": "a dog"}}' for i in range(4)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    pool, events = run_stage(Pairs(name="pool", path=str(tmp_path / "captions.jsonl"), images=False)), list[Event]()
    filters = [
        {"type": "blocked_urls", "path": listed(tmp_path, "other.org")},
        {"type": "duplicates", "of": "url"},
    ]
    subset = run_stage(FilterPool(name="filtered", pool="p", filters=filters), send=events.append, p=pool)
    assert len(read_subset(subset.path)) == 4
    warnings = [event.data["message"].partition(";")[0] for event in events if event.type == "warning"]
    expected = [f"no image of 'p' has a URL, so {name} drops nothing" for name in ("blocked_urls", "duplicate_url")]
    assert warnings == ([] if with_url else expected)


WORDS = [f"word{i}" for i in range(300)]


def test_near_duplicate_texts_equal_a_comparison_of_all(run_stage: Any, tmp_path: Path) -> None:
    from vfm_curation.filters.copies.near_texts import runs_of, similarity

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=12)) for _ in range(120)]
    texts += [text.upper() + "." for text in texts[:40]]  # another case and a mark: similar
    texts += [" ".join([*text.split()[:6], *rng.choices(WORDS, k=6)]) for text in texts[40:80]]  # half of it: not
    order = rng.sample(range(len(texts)), len(texts))
    pool = links(run_stage, tmp_path, [(f"http://x/{i}", texts[i]) for i in order])
    kept = {}
    for workers in (1, 2):
        one = {"type": "near_duplicate_texts"}
        stage = FilterPool(name=f"w{workers}", pool="p", filters=[one], runtime={"workers": workers})
        kept[workers] = set(read_subset(run_stage(stage, p=pool).path)["uid"].to_pylist())
    assert kept[1] == kept[2]
    runs = [runs_of(texts[i], 5) for i in order]
    near = np.array([[similarity(a, b) for b in runs] for a in runs])
    expected = {f"u{i:04d}" for i in range(len(order)) if not (near[i, :i] >= 0.8).any()}
    assert len(expected) == len(texts) - 40
    assert kept[1] == expected


def test_candidates_agree_on_a_band_as_often_as_the_formula_says() -> None:
    from vfm_curation.filters.copies.near_texts import bands_of, runs_of, similarity

    rng, config = random.Random(1), NearDuplicateTexts(bands=4, rows=4, ngram=5)
    pairs = []
    for _ in range(1500):
        words = rng.choices(WORDS, k=30)
        pairs.append((" ".join(words), " ".join([*words[:24], *rng.choices(WORDS, k=6)])))
    one, other = (bands_of([pair[side] for pair in pairs], config) for side in (0, 1))
    found = (one == other).any(axis=1).sum()
    chances = [1 - (1 - similarity(*(runs_of(text, 5) for text in pair)) ** 4) ** 4 for pair in pairs]
    variance = sum(chance * (1 - chance) for chance in chances)
    assert abs(found - sum(chances)) < 5 * variance**0.5
