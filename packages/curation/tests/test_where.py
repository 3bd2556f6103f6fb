"""The filter `where`: conditions against a plain evaluation in Python, over tables, tars and csv files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import Field, ValidationError

from filter_runs import jpeg, passed, run, verdicts
from vfm.data import write_tar
from vfm.data.pairs.stages import Pairs
from vfm.interfaces import load_panels
from vfm.plugin import UserError
from vfm_curation.filters.stages import RowFilter
from vfm_curation.filters.where.evaluation import bound_of, masks, values_of
from vfm_curation.filters.where.expression import Expression
from vfm_curation.filters.where.stages import Where
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata

ROWS = st.fixed_dictionaries(
    {
        "a": st.none() | st.integers(-3, 3).map(float),
        "b": st.none() | st.integers(-3, 3).map(float),
        "s": st.none() | st.sampled_from(["", "en", "de", "a b"]),
        "f": st.none() | st.booleans(),
    }
)
Row = dict[str, Any]


def holds(text: Any, row: Row) -> Any:
    """Evaluate a condition that is built by `conditions`: a tuple of a word and its parts."""
    word, *parts = text
    if word in ("and", "or"):
        values = [holds(part, row) for part in parts]
        decisive = word == "or"
        return decisive if decisive in values else None if None in values else not decisive
    if word == "not":
        value = holds(parts[0], row)
        return None if value is None else not value
    if word == "f":
        return row["f"]
    if word == "is_null":
        return row[parts[0]] is None
    left, right = (row[part] if isinstance(part, str) and part in row else part for part in parts)
    if left is None or right is None:
        return None
    if word == "in":
        return left in right
    return {"<": left < right, ">=": left >= right, "==": left == right, "!=": left != right}[word]


def spelled(text: Any, words: tuple[str, str, str]) -> str:
    """Write a condition with some spelling of `and`, `or` and `not`."""
    word, *parts = text
    if word in ("and", "or"):
        joint = words[0] if word == "and" else words[1]
        return "(" + f" {joint} ".join(spelled(part, words) for part in parts) + ")"
    if word == "not":
        return f"{words[2]} {spelled(parts[0], words)}"
    if word == "f":
        return "f"
    if word == "is_null":
        return f"is_null({parts[0]})"
    shown = [part if isinstance(part, str) and part in ("a", "b", "s") else repr(part) for part in parts]
    return f"{shown[0]} {word} {shown[1]}"


NUMBERS = st.sampled_from(["a", "b"]) | st.integers(-3, 3).map(float)
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["<", ">=", "==", "!="]), st.sampled_from(["a", "b"]), NUMBERS),
    st.tuples(st.sampled_from(["==", "!="]), st.just("s"), st.sampled_from(["en", "x y"])),
    st.tuples(st.just("in"), st.just("s"), st.just(("en", "de"))),
    st.tuples(st.just("is_null"), st.sampled_from(["a", "s", "f"])),
    st.just(("f",)),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda part: st.tuples(st.sampled_from(["and", "or"]), part, part) | st.tuples(st.just("not"), part),
    max_leaves=8,
)


def table_of(rows: list[Row]) -> pa.Table:
    kinds = {"a": pa.float64(), "b": pa.float64(), "s": pa.string(), "f": pa.bool_()}
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})


@settings(max_examples=150, deadline=None)
@given(
    text=CONDITIONS,
    rows=st.lists(ROWS, max_size=6),
    words=st.sampled_from([("and", "or", "not"), ("&", "|", "~"), ("AND", "OR", "NOT")]),
)
def test_conditions_equal_a_plain_evaluation(text: Any, rows: list[Row], words: tuple[str, str, str]) -> None:
    expression = Expression(spelled(text, words))
    found = [mask.to_pylist() for mask in masks(expression, table_of(rows), len(rows), {})]
    whole = [False if False in values else None if None in values else True for values in zip(*found, strict=True)]
    assert whole == [holds(text, row) for row in rows]


def test_words_bind_less_than_comparisons_and_arithmetic_more() -> None:
    rows = [{"a": a, "b": b, "s": "A b", "f": False} for a in (0.0, 1.0, 2.0) for b in (1.0, 2.0)]
    expression = Expression("a + 1 >= b * 2 & b / 2 < 0.75\n | ~f & contains(lower(s), 'a') & max(a, b) == 2 & -a < 0")
    expected = [
        (row["a"] + 1 >= row["b"] * 2 and row["b"] / 2 < 0.75) or (max(row["a"], row["b"]) == 2 and -row["a"] < 0)
        for row in rows
    ]
    assert masks(expression, table_of(rows), len(rows), {})[0].to_pylist() == expected
    expression = Expression("json.meta.score > q70 & width > 200 & top(height * words, 0.5)")
    assert expression.names == {"json.meta.score", "width", "height", "words"}
    assert [cut.names for cut in expression.cuts.values()] == [{"json.meta.score"}, {"height", "words"}]


def test_quantiles_and_shares_of_all_values() -> None:
    values = np.random.default_rng(0).normal(size=101).round(1)
    rows = [{"a": value, "b": None, "s": None, "f": None} for value in [*values.tolist(), None]]
    expression = Expression("q20 <= a < q99_5 & top(a + 0, 0.3) & bottom(a, 0.9)")
    table = table_of(rows)
    bounds = {name: bound_of(cut, values_of(cut, table)) for name, cut in expression.cuts.items()}
    datacomp = -np.sort(-values)[int(101 * 0.3)]  # the public code's threshold
    assert bounds == {
        "quantile 0.2 of a": np.quantile(values, 0.2),
        "quantile 0.995 of a": np.quantile(values, 0.995),
        "top 0.3 of a + 0": datacomp,
        "bottom 0.9 of a": np.sort(values)[int(101 * 0.9)],
    }
    first, second, _ = masks(expression, table, len(rows), bounds)
    assert (
        first.to_pylist()[:-1]
        == ((np.quantile(values, 0.2) <= values) & (values < bounds["quantile 0.995 of a"])).tolist()
    )
    assert second.to_pylist() == [*(values >= datacomp).tolist(), None]


@pytest.mark.parametrize(
    "text",
    ["n > 1", "~(n > n)", "n in ['en']", "~(n not in [1, 2])", "len(n) > 1", "contains(lower(n), 'a')", "max(n, u) < 9",
     "n + n > 1", "-n / u < 1", "n > q70", "top(n, 0.3)", "n"],
)  # fmt: skip
def test_a_column_of_type_null_is_missing_as_one_of_another_type_is(text: str) -> None:
    expression, table = Expression(text), pa.table({"n": pa.nulls(2), "u": pa.array([1, 2])})
    bounds = {name: bound_of(cut, values_of(cut, table)) for name, cut in expression.cuts.items()}
    assert masks(expression, table, 2, bounds)[0].to_pylist() == [None, None]


def test_narrow_integers_do_not_overflow_and_wide_ones_are_refused() -> None:
    table = pa.table({"w": pa.array([70_000, 2], pa.int32()), "u": pa.array([1, 200], pa.uint8())})
    expression = Expression("w * w > 4e9 & -u < 0 & u + u > 255 & u - w < 0 & abs(-u) > 1")
    expected = [[True, False], [True, True], [False, True], [True, False], [False, True]]
    assert [mask.to_pylist() for mask in masks(expression, table, 2, {})] == expected
    with pytest.raises(ValueError, match=r"w \* w \* w \* w: overflow"):
        masks(Expression("w * w * w * w > 1"), table, 2, {})


def test_zero_by_zero_is_missing_and_changes_no_quantile() -> None:
    table = pa.table({"a": [0, 1, 3], "b": [0, 1, 1]})
    expression = Expression("a / b > q50 | ~(a / b < 9)")
    bounds = {name: bound_of(cut, values_of(cut, table)) for name, cut in expression.cuts.items()}
    assert bounds == {"quantile 0.5 of a / b": 2.0}
    assert masks(expression, table, 3, bounds)[0].to_pylist() == [None, False, True]


@pytest.mark.parametrize("text", ["a > 0.28", "a <= 0.28", "0.28 < a", "a == 0.28", "a >= q50"])
def test_columns_of_32_bits_compare_as_numpys_do(text: str) -> None:
    values = np.array([0.28, 0.27, 0.29], dtype=np.float32)
    expression, table = Expression(text), pa.table({"a": values})
    bounds = {name: bound_of(cut, values_of(cut, table)) for name, cut in expression.cuts.items()}
    (mask,) = masks(expression, table, 3, bounds)
    assert mask.to_pylist() == eval(text.replace("q50", "np.float32(0.28)"), {"a": values, "np": np}).tolist()


WRONG = {
    "a >": "expected a condition such as",
    "a = 1": "expected a condition such as",
    "__import__('os').system('id')": "not a function of conditions",
    "().__class__ == 1": "expected the name of a column",
    "(lambda: 1)()": "lambda.*: not allowed",
    "[a for a in (1, 2)] == 1": "not allowed",
    "a[0] > 1": "not allowed",
    "f'{a}' == 'x'": "not allowed",
    "(a := 1) > 0": "not allowed",
    "a if b else c": "not allowed",
    "a ** 9 > 1": "not allowed",
    "a % 2 == 0": "mod: not allowed",
    "a == None": "is_null",
    "a in b": "expected a list of texts or numbers",
    "eval('1')": "not a function of conditions; choose from abs, bottom",
    "len(a, b) > 1": "expected 1 arguments, got 2",
    "min(a) > 1": "expected two or more arguments",
    "matches(s, a)": "expected a text in quotes",
    "top(a, 30)": "a share between 0 and 1",
    "top(a > q10, 0.3)": "within another one",
    "q70 > q80": "expected a column on one side",
    "a > q70 + 1": "expected a comparison with it",
    "b'x' == a": "expected a number, a text",
    "(" * 300 + "a" + ")" * 300: "expected a condition such as",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_condition_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(ValidationError, match=WRONG[text]):
        Where(type="where", keep=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s > 1", "s > 1: .*(string|no kernel)"),
        ("s & f", "s: expected a condition, got string"),
        ("len(a) > 1", r"len\(a\): .*no kernel"),
        ("s > q70", "s: expected numbers, got string"),
        ("matches(s, '(')", r"matches\(s, '\('\): "),
    ],
)
def test_values_of_the_wrong_type_are_named(text: str, message: str) -> None:
    expression, table = Expression(text), table_of([{"a": 1.0, "b": 1.0, "s": "x", "f": True}])
    with pytest.raises(ValueError, match=message):
        masks(expression, table, 1, {name: float(*values_of(cut, table)) for name, cut in expression.cuts.items()})


def datacomp_table(folder: Path, rows: int = 200) -> tuple[str, list[dict[str, Any]]]:
    """Write two Parquet files with columns as in DataComp's metadata, and return their pattern and rows."""
    rng = np.random.default_rng(1)
    records = []
    for number in range(rows):
        score = None if number % 17 == 0 else float(np.float32(rng.normal(0.25, 0.05)))
        records.append(
            {
                "uid": f"{number:032x}",
                "url": f"http://x.org/{number}.jpg",
                "text": "a red dog"[: 3 + number % 7],
                "original_width": int(rng.integers(50, 900)),
                "clip_l14": score,
                "noai": bool(number % 5 == 0),
                "meta": {"source": ["alt", "blip"][number % 2]},
            }
        )
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(records[part::2]), folder / f"part-{part}.parquet", row_group_size=30)
    return str(folder / "part-*.parquet"), records


KEEP = "clip_l14 > q70 & ~noai & original_width >= 200 & meta.source == 'alt' & characters > 3"


def test_a_table_is_filtered_by_its_columns_and_the_report_says_what_each_condition_drops(tmp_path, run_stage) -> None:
    path, records = datacomp_table(tmp_path)
    pool = run_stage(Pairs(name="pool", path=path, images=False, texts={"en": "text"}))
    subset = run(run_stage, pool, [{"type": "where", "keep": KEEP, "label": "mine"}], runtime={"workers": 2})
    scores = np.array([row["clip_l14"] for row in records if row["clip_l14"] is not None])
    bound = np.quantile(scores, 0.7)
    conditions = [
        [row["clip_l14"] is not None and row["clip_l14"] > bound for row in records],
        [not row["noai"] for row in records],
        [row["original_width"] >= 200 for row in records],
        [row["meta"]["source"] == "alt" for row in records],
        [len(row["text"]) > 3 for row in records],
    ]
    expected = {row["uid"] for row, ok in zip(records, np.all(conditions, axis=0), strict=True) if ok}
    assert {uid for uid, _, _ in passed(subset)} == expected
    assert 5 < len(expected) < 100
    assert set(verdicts(subset).values()) == {"", "mine"}
    (panel,) = (panel for panel in load_panels(subset.path) if panel.title == "Conditions of mine")
    num_failed = (~np.array(conditions)).sum(axis=0)
    assert panel.rows[-1] == ["all together", len(expected), None, None, "none"]
    for row, values, missing in zip(panel.rows[:-1], conditions, [12, 0, 0, 0, 0], strict=True):
        alone = sum(not ok and failed == 1 for ok, failed in zip(values, num_failed, strict=True))
        assert row[1:] == [sum(values), alone, missing, "none"]
    assert f"quantile 0.7 of clip_l14: {bound:.6g}" in panel.note


def test_the_table_counts_the_entries_and_languages_that_each_condition_loses(tmp_path, run_stage) -> None:
    words = ["dog", "cat", "house", "red"]
    records = [
        {
            "uid": f"{number:032x}",
            "en": f"a {words[number % 3]}",
            "de": None if number % 3 else "red",
            "score": number % 6,
        }
        for number in range(60)
    ]
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(records[part::2]), tmp_path / f"{part}.parquet")
    (tmp_path / "entries.txt").write_text("\n".join(words))
    texts = {"en": "en", "de": "de"}
    pool = run_stage(Pairs(name="pool", path=str(tmp_path / "*.parquet"), images=False, texts=texts))
    entries = run_stage(BuildMetadata(name="entries", path=str(tmp_path / "entries.txt")))
    matching = MatchTexts(name="matches", pool="p", metadata="m", languages=["en", "de"])
    matches = run_stage(matching, p=pool, m=entries)
    keep = "score != 1 & score != 4 & score >= 2 & (score > 3 | language == 'en') & score != 3"
    filters = [{"type": "where", "keep": keep, "matches": "x"}]
    subset = run(
        run_stage,
        pool,
        [{"type": "caption_length", "min_characters": 3, "min_words": 1}, *filters],
        inputs={"x": matches},
    )
    (panel,) = (panel for panel in load_panels(subset.path) if panel.title == "Conditions of where")
    pairs = [(r["score"], key, word) for r in records for key in texts for word in words if word in str(r[key])]

    def lost(condition: Any) -> int:
        left = {word for score, language, word in pairs if condition(score, language)}
        return len({word for _, _, word in pairs} - left)

    conditions = [
        lambda score, language: score != 1,
        lambda score, language: score != 4,
        lambda score, language: score >= 2,
        lambda score, language: score > 3 or language == "en",
        lambda score, language: score != 3,
        lambda score, language: score in (2, 5) and language == "en",
    ]
    assert panel.columns[-2:] == ["languages lost", "entries lost"]
    assert [row[-1] for row in panel.rows] == [lost(condition) for condition in conditions] == [0, 0, 0, 1, 0, 3]
    assert [row[-2] for row in panel.rows] == ["none", "none", "none", "de", "none", "de"]
    other = run_stage(Pairs(name="other", path=str(tmp_path / "0.parquet"), images=False, texts=texts))
    with pytest.raises(UserError, match=r"where: matches: expected matches of 'p', got ones of"):
        run(run_stage, other, filters, "third", inputs={"x": matches})


def test_a_wrong_column_lists_the_columns_and_one_without_values_is_named(tmp_path, run_stage, make_pool) -> None:
    path, _ = datacomp_table(tmp_path, 4)
    pool = run_stage(Pairs(name="pool", path=path, images=False, texts={"en": "text"}))
    with pytest.raises(UserError, match=r"part-0.parquet: no column 'clip'; the columns are uid, url, text, orig"):
        run(run_stage, pool, [{"type": "where", "keep": "clip > 0.3"}])
    with pytest.raises(UserError, match=r"where: reads images, but 'p' has only texts"):
        run(run_stage, pool, [{"type": "where", "keep": "width > 0.3"}])
    tars = make_pool("tars", [("1", {"en": ["a dog"]}), ("2", {"en": ["a cat"]})])
    with pytest.raises(UserError, match=r"where: no text of 'p' has a value json\.punsfae, punsafe"):
        run(run_stage, tars, [{"type": "where", "keep": "punsafe < 0.1 | json.punsfae < 1"}])


def test_json_of_tars_and_columns_of_csv_are_read_and_missing_values_are_dropped(tmp_path, run_stage) -> None:
    records = [{"punsafe": 0.05}, {"punsafe": 0.5}, {}, {"punsafe": "?"}, {"punsafe": 0}]
    members = [
        (
            f"{n}",
            {"jpg": jpeg(n, (64, 40 + n)), "json": json.dumps({"uid": f"u{n}", "text": "a dog", **record}).encode()},
        )
        for n, record in enumerate(records)
    ]
    write_tar(tmp_path / "a.tar", members)
    tars = run_stage(Pairs(name="tars", path=str(tmp_path / "a.tar"), texts={"en": "json.text"}))

    def kept(pool: Any, text: str, name: str) -> set[str]:
        subset = run(run_stage, pool, [{"type": "where", "keep": text}], name)
        return {uid for uid, _, _ in passed(subset)}

    assert kept(tars, "punsafe < 0.1 & height <= 43", "first") == {"u0"}
    assert kept(tars, "~(punsafe < 0.1)", "second") == {"u1"}
    lines = ["uid,caption,punsafe,site"]
    lines += [f"u{n},a dog,{record.get('punsafe', '')},{'xy'[n % 2]}" for n, record in enumerate(records)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    table = run_stage(Pairs(name="csv", path=str(tmp_path / "a.csv"), images=False, columns=["punsafe", "site"]))
    assert kept(table, "punsafe < 0.1", "third") == {"u0", "u4"}
    assert kept(table, "site == 'y'", "fourth") == {"u1", "u3"}


class FromSite(RowFilter):
    """A plugin's filter by a column of the user."""

    type: Literal["from_site"] = Field("from_site", description="another site")

    values: ClassVar[frozenset[str]] = frozenset({"site"})
    work: ClassVar[str] = f"{__name__}:from_site"


def from_site(config: FromSite, table: pa.Table) -> list[bool]:
    return [value == "x" for value in table["stored.site"].to_pylist()]


def test_a_plugins_filter_reads_the_users_columns(tmp_path, run_stage) -> None:
    (tmp_path / "a.csv").write_text("uid,caption,site\nu0,a dog,x\nu1,a cat,y\n")
    table = run_stage(Pairs(name="csv", path=str(tmp_path / "a.csv"), images=False, columns=["site"]))
    assert {uid for uid, _, _ in passed(run(run_stage, table, [{"type": "from_site"}]))} == {"u0"}


@pytest.mark.parametrize(
    ("filters", "counted"),
    [
        ([{"type": "where", "keep": "clip_l14 > 0.2"}], False),
        ([{"type": "where", "keep": "clip_l14 > 0.2 & words > 1"}], True),
        ([{"type": "where", "keep": "clip_l14 > 0.2"}, {"type": "caption_length", "min_words": 1}], True),
    ],
)
def test_words_are_counted_only_if_a_filter_may_read_them(
    tmp_path: Path, run_stage: Any, filters: list[dict[str, Any]], counted: bool
) -> None:
    path, records = datacomp_table(tmp_path)
    pool = run_stage(Pairs(name="pool", path=path, images=False, texts={"en": "text"}))
    subset = run(run_stage, pool, filters)
    dropped = [uid for (uid, _, _), reason in verdicts(subset).items() if reason == "where"]
    assert 0 < len(dropped) < 200
    captions = {row["uid"]: row["text"] for row in records}
    (panel,) = (panel for panel in load_panels(subset.path) if panel.title == "Dropped texts")
    examples = [row for row in panel.rows if row[0] == "where"]
    assert examples == [["where", len(dropped), "en", captions[uid], uid] for uid in dropped[:5]]
    with pa.memory_map(str(tmp_path / "work/filtered/texts/00000000.arrow")) as file:
        names = pa.ipc.open_file(file).schema.names
    assert {"characters", "words"}.issubset(names) == counted
    assert ("words" in names) == counted


def test_a_column_may_be_read_by_both_of_its_names(tmp_path: Path, run_stage: Any) -> None:
    (tmp_path / "a.csv").write_text("uid,caption,score\nu0,a dog,1\nu1,a cat,5\nu2,a cow,9\n")
    pool = run_stage(Pairs(name="csv", path=str(tmp_path / "a.csv"), images=False, columns=["score"]))
    subset = run(run_stage, pool, [{"type": "where", "keep": "score > 2 & stored.score < 8"}])
    assert {uid for uid, _, _ in passed(subset)} == {"u1"}
