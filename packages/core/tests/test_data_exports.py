"""Tables as pandas and Excel write them by default: an unnamed index, UTF-16, semicolons, quoting between tabs."""

import csv
import io
import json
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from data_samples import context, encoded
from vfm.base import UserError
from vfm.data import Source, open_dataset
from vfm.data.labeled.stages import Labeled
from vfm.data.pairs.stages import Images, Pairs
from vfm.data.tables.delimited import unquoted

CAPTIONS = ["a cat, asleep", "ein Hund; größer", 'a "quoted" word']


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(len(CAPTIONS)):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    return tmp_path


def index(path: Path, **fields) -> Source:
    stage = Pairs(kind="data.pairs", name="pool", path=str(path), **fields)
    stage.preflight(None)
    ctx = context(path.parent / f"artifact-{path.name}")
    source = open_dataset(stage.run(ctx))
    assert not ctx.bad
    return source


def check(source: Source) -> None:
    assert [source[i].texts["en"] for i in range(len(source))] == [[caption] for caption in CAPTIONS]
    assert [source[i].image for i in range(len(source))] == [encoded(n) for n in range(len(CAPTIONS))]


def quoted(text: str, delimiter: str) -> str:
    return '"' + text.replace('"', '""') + '"' if delimiter in text or '"' in text else text


def csv_text(delimiter: str = ",", *, index: bool = False, end: str = "\n") -> str:
    lines = [delimiter.join([*[""][:index], "image", "caption"])]
    for n, caption in enumerate(CAPTIONS):
        lines.append(delimiter.join([*[str(n)][:index], f"{n}.png", quoted(caption, delimiter)]))
    return end.join([*lines, ""])


def test_to_csv_with_its_unnamed_index_column(folder):
    text = csv_text(index=True)
    assert text.startswith(",image,caption\n0,0.png,")
    (folder / "t.csv").write_bytes(text.encode())
    check(index(folder / "t.csv"))


def test_errors_of_an_unnamed_column_name_the_others(folder):
    (folder / "t.csv").write_text(",image,words\n0,0.png,x\n")
    with pytest.raises(UserError, match=r"no column 'caption' \(texts\); the columns are image, words; captions"):
        index(folder / "t.csv")


def test_an_unnamed_index_column_of_labels_and_of_captions_alone(folder):
    (folder / "l.csv").write_text(",image,label\n0,0.png,cat\n1,1.png,dog\n")
    labeled = Labeled(kind="data.labeled", name="val", path=f"{folder}/l.csv").run(context(folder / "labeled"))
    assert labeled.class_names == ["cat", "dog"]
    (folder / "c.csv").write_bytes(csv_text(index=True).encode())
    texts = index(folder / "c.csv", images=False).texts_of_shard(0)
    assert texts["text"].to_pylist() == CAPTIONS


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_excel_csv_in_utf_8_has_a_byte_order_mark(folder, end):
    (folder / "t.csv").write_bytes(csv_text(end=end).encode("utf-8-sig"))
    check(index(folder / "t.csv"))


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("with_index", [False, True])
def test_csv_with_semicolons_or_tabs(folder, delimiter, with_index):
    (folder / "t.csv").write_bytes(csv_text(delimiter, index=with_index, end="\r\n").encode("utf-8-sig"))
    check(index(folder / "t.csv"))


@pytest.mark.parametrize("name", ["t.txt", "t.tsv", "t.csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
@pytest.mark.parametrize("also_commas", [False, True])
def test_excels_unicode_text_and_tab_delimited_text(folder, name, encoding, also_commas):
    rows = [["image", "caption"], *([f"{n}.png", caption] for n, caption in enumerate(CAPTIONS))]
    # Excel quotes a value with a comma between tabs too.
    text = "".join(f"{image}\t{quoted(word, ',' if also_commas else chr(9))}\r\n" for image, word in rows)
    (folder / name).write_bytes((("\ufeff" if encoding == "utf-16-be" else "") + text).encode(encoding))
    check(index(folder / name))


@pytest.mark.parametrize("name", ["t.csv", "t.txt"])
def test_captions_that_excel_saves_in_the_codepage_are_counted(folder, name):
    text = csv_text(";" if name == "t.csv" else "\t", end="\r\n")
    (folder / name).write_bytes(text.encode("cp1252"))
    ctx = context(folder / "artifact")
    pool = Pairs(kind="data.pairs", name="pool", path=f"{folder}/{name}", max_bad_fraction=0.5).run(ctx)
    assert ctx.bad == pool.bad_samples == {"wrong_encoding": 1}
    source = open_dataset(pool)
    assert [source[i].texts["en"] for i in range(len(source))] == [[CAPTIONS[0]], [CAPTIONS[2]]]


def test_lists_of_images_and_captions_in_utf_16(folder):
    (folder / "captions.txt").write_bytes("".join(f"{caption}\r\n" for caption in CAPTIONS).encode("utf-16"))
    assert index(folder / "captions.txt").texts_of_shard(0)["text"].to_pylist() == CAPTIONS
    (folder / "list.txt").write_bytes("".join(f"{n}.png\r\n" for n in range(3)).encode("utf-16"))
    images = Images(kind="data.images", name="images", path=f"{folder}/list.txt").run(context(folder / "images"))
    assert open_dataset(images).keys == ["0.png", "1.png", "2.png"]


def test_utf_16_without_a_byte_order_mark_is_no_caption(folder):
    (folder / "t.txt").write_bytes("a red dog\na cat\n".encode("utf-16-le"))
    source, bad = index(folder / "t.txt"), []
    assert len(source.texts_of_shard(0, lambda *one: bad.append(one))) == 0
    assert {reason for reason, _ in bad} == {"nul_in_caption"}


def test_half_a_character_of_utf_16_is_refused_by_name(folder):
    (folder / "t.csv").write_bytes(csv_text().encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"t\.csv: not readable: 'utf-16-le' codec"):
        index(folder / "t.csv")


LINES = st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]))


@given(LINES, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_a_value_that_csv_quotes_between_tabs_is_read_back(value, quoting):
    buffer = io.StringIO()
    csv.writer(buffer, csv.excel_tab, quoting=quoting).writerow([value, ""])
    assert unquoted(buffer.getvalue().partition("\t")[0]) == value


@pytest.mark.parametrize("value", ['"so" and "so"', '"so', 'so"', '"', '"""', 'a ""b""', '"a "b"', "", "so"])
def test_a_raw_value_between_tabs_stays(value):
    assert unquoted(value) == value


LONG = ['He said "hi",\nand left', "two\t\ttabs", 'first\n\n"second"\nthird', "a cat", '"whole"', "one\r\ntwo\ttab"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("order", [("image", "caption"), ("caption", "image"), ("image", "caption", "site")])
def test_line_breaks_and_tabs_in_quoted_values_between_tabs(tmp_path, order, quoting):
    rows = [{"image": f"{n}.png", "caption": caption, "site": "west"} for n, caption in enumerate(LONG)]
    for n in range(len(LONG)):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    with (tmp_path / "t.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, order, extrasaction="ignore", dialect=csv.excel_tab, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
    source = index(tmp_path / "t.tsv")
    assert [source[n].texts["en"] for n in range(len(source))] == [[caption.strip()] for caption in LONG]


RAW = ['"so', "a cat", 'the 12" screen', '"so" he said', 'end"', '"', "a dog"]


@pytest.mark.parametrize("names", ["{}.png", "{}"])
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_stray_quotation_marks_between_tabs_join_no_rows(tmp_path, names, first):
    captions = RAW[first:] + RAW[:first]
    lines = [f"{names.format(n)}\t{caption}\n" for n, caption in enumerate(captions)]
    (tmp_path / "t.tsv").write_text("".join(["image\tcaption\n", *lines]))
    for n in range(len(RAW)):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    source = index(tmp_path / "t.tsv", image_key="{image}.png" if names == "{}" else None)
    assert [source[n].texts["en"] for n in range(len(source))] == [[caption] for caption in captions]


def test_a_row_without_its_last_value_is_not_joined_to_the_next_row_between_tabs(tmp_path):
    (tmp_path / "t.tsv").write_text('image\tcaption\tsite\n0.png\t"so\n1.png\tend"\twest\n')
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    source = index(tmp_path / "t.tsv")
    assert [source[n].texts["en"] for n in range(len(source))] == [['"so'], ['end"']]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("first", "mark"), [*product(["", "blank"], ";,\t"), *product(["sep", '"sep'], ";,|\t")]
)  # what separates the values is guessed, or any character that Excel's line names
def test_a_blank_first_line_and_excels_line_of_the_separator(folder, first, mark, end):
    line = {"": "", "sep": f"sep={mark}{end}", '"sep': f'"sep={mark}"{end}', "blank": f"{end}  {end}"}[first]
    (folder / "t.csv").write_bytes((line + csv_text(mark, end=end)).encode("utf-8-sig"))
    check(index(folder / "t.csv"))


def test_column_names_of_a_table_behind_a_blank_line(folder):
    (folder / "t.csv").write_text("\nu1,a cat\nu2,a dog\n")
    source = index(folder / "t.csv", images=False, header=["uid", "caption"])
    assert source.texts_of_shard(0)["text"].to_pylist() == ["a cat", "a dog"]


def test_csv_whose_header_is_quoted(folder):
    (folder / "t.csv").write_text('"image";"caption"\n"0.png";"x; y"\n')
    assert index(folder / "t.csv")[0].texts == {"en": ["x; y"]}


def test_to_json_of_records_in_lines(folder):
    rows = [{"image": f"{n}.png", "caption": caption} for n, caption in enumerate(CAPTIONS)]
    text = "\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n"
    (folder / "t.jsonl").write_bytes(text.replace("/", "\\/").encode())  # pandas escapes slashes and all but ASCII
    check(index(folder / "t.jsonl"))


@pytest.mark.parametrize("text", [pa.string(), pa.large_string()])  # of pandas 2 and 3
@pytest.mark.parametrize("with_bytes", [False, True])
def test_to_parquet(folder, text, with_bytes):
    images = [encoded(n) if with_bytes else f"{n}.png" for n in range(len(CAPTIONS))]
    kind = pa.binary() if with_bytes else text
    columns = {"image": pa.array(images, kind), "caption": pa.array(CAPTIONS, text)}
    named = {"index_columns": ["__index_level_0__"], "columns": []}
    table = pa.table({**columns, "__index_level_0__": pa.array(range(len(CAPTIONS)), pa.int64())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(named)}), folder / "t.parquet")
    source = index(folder / "t.parquet")
    check(source)
    assert source.texts_of_shard(0)["text"].to_pylist() == CAPTIONS
