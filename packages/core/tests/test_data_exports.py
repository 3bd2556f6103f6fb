"""Tables as pandas and Excel write them by default: an index column without a name, a byte order mark, semicolons."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_samples import context, encoded
from vfm.config import UserError
from vfm.data import Source, open_dataset
from vfm.stages.data import Pairs
from vfm.stages.labeled import Labeled

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
    with pytest.raises(UserError, match=r"no column 'caption' \(texts\); the columns are image, words$"):
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
