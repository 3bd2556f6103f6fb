"""Caption-choice data: MMVP-VLM, SugarCrepe and Winoground as published, items in JSON lines, and their storage."""

import json

import pytest
from hypothesis import given, strategies as st

from data_samples import context, encoded
from vfm.base import UserError
from vfm.data.choices.choices import Choice, load_choices, write_choices
from vfm.data.choices.stages import ChoiceFiles, PooledChoices
from vfm.data.tables.delimited import MAX_LINE
from vfm.interfaces import ChoiceDataset, Context


@given(
    st.lists(
        st.builds(
            Choice,
            key=st.text(st.characters(codec="utf-8"), max_size=5),
            pattern=st.sampled_from(["colour", "count"]),
            images=st.just([b"a", b"b"]),
            statements=st.just(["one", "zwei"]),
            truth=st.lists(st.integers(-1, 1), min_size=2, max_size=2),
        ),
        max_size=150,
    )
)
def test_items_are_read_back_unchanged(tmp_path_factory, choices):
    directory = tmp_path_factory.mktemp("choices")
    write_choices(directory, iter(choices))
    dataset = ChoiceDataset.load(directory)
    assert list(load_choices(dataset)) == choices
    assert dataset.num_pairs == len(choices)
    assert dataset.patterns == list(dict.fromkeys(choice.pattern for choice in choices))


def test_truth_out_of_range_is_refused():
    with pytest.raises(ValueError, match="does not fit 1 images and 2 statements"):
        Choice("a", "p", [b"x"], ["one", "two"], [0, 1])


def mmvp(folder, *, root="MLLM_VLM Images", pairs=3):
    kinds = ["Quantity and Count", "Color and Appearance"]
    lines = ["Question ID,Type,Statement"]
    for number in range(1, 2 * pairs + 1):
        kind = kinds[(number - 1) // 2 % 2]
        lines.append(f'{number},{kind},"Statement, number {number}"')
        (folder / root / kind).mkdir(parents=True, exist_ok=True)
        (folder / root / kind / f"{number}.jpg").write_bytes(encoded(number, "JPEG"))
    (folder / "Questions.csv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def load(tmp_path, path, **fields):
    stage = ChoiceFiles(kind="data.choices", name="mmvp", path=str(path), **fields)
    stage.preflight(None)
    ctx = context(tmp_path / "artifact", "mmvp")
    return ctx, list(load_choices(stage.run(ctx)))


@pytest.mark.parametrize("root", ["MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images"])
def test_mmvp_rows_are_pairs_and_odd_questions_belong_to_the_first_image(tmp_path, root):
    _, choices = load(tmp_path, mmvp(tmp_path / "mmvp", root=root))
    assert [choice.key for choice in choices] == ["1-2", "3-4", "5-6"]
    assert choices[1] == Choice(
        "3-4", "Color and Appearance", [encoded(3, "JPEG"), encoded(4, "JPEG")],
        ["Statement, number 3", "Statement, number 4"], [0, 1],
    )  # fmt: skip


def test_patterns_of_the_official_135_pairs_go_by_position_even_if_one_is_bad(tmp_path):
    folder = mmvp(tmp_path / "mmvp", pairs=135)
    (folder / "MLLM_VLM Images" / "Quantity and Count" / "1.jpg").write_bytes(b"broken")
    ctx, choices = load(tmp_path, folder, max_bad_fraction=0.1)
    assert ctx.bad == {"unreadable_image": 1}
    assert choices[0].key == "3-4"
    assert choices[0].pattern == choices[13].pattern == "Orientation and Direction"
    assert choices[14].pattern != choices[13].pattern
    assert choices[-1].pattern == "Viewpoint and Perspective"


def test_bad_item_of_a_benchmark_stops_unless_tolerated(tmp_path):
    folder = mmvp(tmp_path / "mmvp")
    (folder / "MLLM_VLM Images" / "Quantity and Count" / "6.jpg").unlink()
    with pytest.raises(UserError, match=r"mmvp: 1 of 3 items .* are bad: missing_image \(1\)"):
        load(tmp_path, folder)


def test_items_in_json_lines_may_have_one_image_and_a_wrong_statement(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(1))
    item = {"images": ["a.png"], "statements": ["right", "wrong"], "truth": [0, -1], "pattern": "swap"}
    outside = {**item, "images": ["../a.png"]}
    half_character = {**item, "images": ["\ud800.png"]}
    (tmp_path / "items.jsonl").write_text("\n\n".join(map(json.dumps, (item, outside, half_character))) + "\n")
    ctx, choices = load(tmp_path, tmp_path / "items.jsonl", max_bad_fraction=0.7)
    assert choices == [Choice("1", "swap", [encoded(1)], ["right", "wrong"], [0, -1])]
    assert ctx.bad == {"unsafe_path": 1, "missing_image": 1}


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (None, "no such file; expected MMVP-VLM's folder, Questions.csv"),
        ("id,type,statement\n1,A,one\n", "expected pairs of questions, got 1 questions"),
        ("id,type,statement\n1,A,x\n2,A,y\n", "no folder of images; expected one of"),
        ("id,type,statement\n1,A," + (MAX_LINE + 1) * "x", r"Questions\.csv: not readable as csv: field larger"),
    ],
)
def test_invalid_mmvp_folder_raises_one_line(tmp_path, questions, message):
    if questions:
        (tmp_path / "Questions.csv").write_text(questions)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "out", tmp_path)


def test_missing_or_non_utf8_json_lines_raise_one_line(tmp_path):
    for content, message in ((None, "no such file"), (b"\xff\xfe", "not UTF-8")):
        if content:
            (tmp_path / "items.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=rf"items\.jsonl: {message}"):
            load(tmp_path / "out", tmp_path / "items.jsonl")


def sugarcrepe(folder, **records):
    """Write subsets as they are published, and COCO's images."""
    (folder / "val2017").mkdir(parents=True)
    for number in (1, 2):
        (folder / "val2017" / f"{number:012d}.jpg").write_bytes(encoded(number, "JPEG"))
    item = {"filename": "000000000001.jpg", "caption": "a dog", "negative_caption": "a cat"}
    subsets = {
        "add_obj": {"0": item, "7": {**item, "filename": "000000000002.jpg"}},
        "swap_att": {"3": item},
        **records,
    }
    for name, content in subsets.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_sugarcrepe_subsets_are_patterns_and_images_are_from_coco(tmp_path):
    folder = sugarcrepe(tmp_path / "crepe")
    _, choices = load(tmp_path, folder, image_root=str(folder / "val2017"))
    assert [(choice.key, choice.pattern) for choice in choices] == [
        ("add_obj/0", "add_obj"),
        ("add_obj/7", "add_obj"),
        ("swap_att/3", "swap_att"),
    ]
    assert choices[1].images == [encoded(2, "JPEG")]
    assert (choices[0].statements, choices[0].truth) == (["a dog", "a cat"], [0, -1])
    _, one = load(tmp_path / "one", folder / "swap_att.json", image_root=str(folder / "val2017"))
    assert one == choices[2:]


@pytest.mark.parametrize(
    ("records", "root", "message"),
    [
        ({}, None, "uses COCO's images; give their folder"),
        ({"add_att": [1]}, "val2017", r"add_att.json: expected SugarCrepe's records by number, or .*, got a list"),
        (
            {"add_att": {"5": {"filename": "1.jpg", "caption": "a"}}},
            "val2017",
            r"missing_caption \(1\); the first is .*add_att.json: item 5",
        ),
        (
            {"add_att": {"5": {"filename": "1.jpg", "caption": "a", "negative_caption": "b"}}},
            "val2017",
            "missing_image",
        ),
    ],
)
def test_invalid_sugarcrepe_files_raise_one_line(tmp_path, records, root, message):
    folder = sugarcrepe(tmp_path / "crepe", **records)
    with pytest.raises(UserError, match=message):
        load(tmp_path, folder, image_root=root and str(folder / root))


def test_json_that_is_nested_too_deep_is_one_line(tmp_path):
    (tmp_path / "add_att.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"add_att\.json: not readable as JSON"):
        load(tmp_path, tmp_path / "add_att.json", image_root=str(tmp_path))


WINOGROUND = [
    {
        "id": number,
        "image_0": f"ex_{number}_img_0",
        "image_1": f"ex_{number}_img_1",
        "caption_0": "an old person kisses a young person",
        "caption_1": "a young person kisses an old person",
        "collapsed_tag": "Relation",
    }
    for number in (4, 9)
]
PICTURES = {f"ex_{number}_img_{side}": encoded(10 * number + side) for number in (4, 9) for side in (0, 1)}


def test_winoground_is_equal_from_json_lines_and_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "images").mkdir()
    for name, data in PICTURES.items():
        (tmp_path / "images" / f"{name}.png").write_bytes(data)
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, WINOGROUND)))
    inside = [
        row | {side: {"bytes": PICTURES[row[side]], "path": row[side]} for side in ("image_0", "image_1")}
        for row in WINOGROUND
    ]
    pq.write_table(pa.Table.from_pylist(inside), tmp_path / "test.parquet")
    _, lines = load(tmp_path / "lines", tmp_path / "examples.jsonl")
    _, table = load(tmp_path / "table", tmp_path / "test.parquet")
    assert lines == table
    assert lines[1] == Choice(
        "9", "Relation", [encoded(90), encoded(91)], [WINOGROUND[1]["caption_0"], WINOGROUND[1]["caption_1"]], [0, 1]
    )


def test_winoground_without_a_caption_or_an_image(tmp_path):
    (tmp_path / "examples.jsonl").write_text(json.dumps({**WINOGROUND[0], "caption_1": ""}))
    with pytest.raises(UserError, match=r"no usable item in .*missing_caption.*examples.jsonl: item 4"):
        load(tmp_path / "one", tmp_path / "examples.jsonl")
    (tmp_path / "examples.jsonl").write_text(json.dumps(WINOGROUND[0]))
    with pytest.raises(UserError, match="missing_image"):
        load(tmp_path / "two", tmp_path / "examples.jsonl")


def test_bad_records_of_every_benchmark_are_skipped_and_counted(tmp_path):
    """What is put in is what comes out, or is counted: one bad record does not end an import."""
    folder = mmvp(tmp_path / "mmvp")
    questions = (folder / "Questions.csv").read_text().splitlines()
    (folder / "Questions.csv").write_text("\n".join([*questions[:3], questions[3] + ",more", *questions[4:]]) + "\n")
    ctx, choices = load(tmp_path / "a", folder, max_bad_fraction=0.5)
    assert (len(choices), ctx.bad) == (2, {"unreadable_row": 1})

    broken = {"1": 7, "2": {"filename": "000000000001.jpg", "caption": "a"}, "3": {"filename": [], "caption": "a"}}
    folder = sugarcrepe(tmp_path / "crepe", broken=broken)
    ctx, choices = load(tmp_path / "b", folder, image_root=str(folder / "val2017"), max_bad_fraction=0.5)
    assert (len(choices), ctx.bad) == (3, {"unreadable_row": 1, "missing_caption": 2})

    (tmp_path / "images").mkdir()
    for name in ("x.png", "y.png"):
        (tmp_path / "images" / name).write_bytes(encoded(1))
    good = {"id": 1, "image_0": "x", "image_1": "y", "caption_0": "a b", "caption_1": "b a"}
    lines = [good, {**good, "image_1": None}, {**good, "caption_1": 3}]
    (tmp_path / "examples.jsonl").write_text("\n".join([*map(json.dumps, lines), "{", "[1]"]) + "\n")
    ctx, choices = load(tmp_path / "c", tmp_path / "examples.jsonl", max_bad_fraction=0.9)
    assert (len(choices), ctx.bad) == (1, {"missing_image": 1, "missing_caption": 1, "broken_json": 2})

    (tmp_path / "a.png").write_bytes(encoded(1))
    item = {"images": ["a.png"], "statements": ["right", "wrong"], "truth": [0, -1]}
    odd = [
        {**item, "truth": [5, 5]},
        {**item, "statements": [1, 2]},
        {**item, "truth": ["0", 0]},
        {**item, "truth": [0.5, -1]},
        {**item, "truth": [False, -1]},
        {**item, "statements": "ab"},
        {**item, "statements": {"right": 0, "wrong": -1}},
        {"images": ["a.png"]},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join([*map(json.dumps, [item, *odd]), "[]", "{"]) + "\n")
    ctx, choices = load(tmp_path / "d", tmp_path / "items.jsonl", max_bad_fraction=0.95)
    assert (len(choices), ctx.bad) == (1, {"unreadable_row": 9, "broken_json": 1})


def two_by_two(columns, first, second):
    """Make a record of the columns of two images and two captions."""
    return dict(zip(columns, (first, second, "a red cup and a blue hat", "a blue cup and a red hat"), strict=True))


PAIR = [encoded(1), encoded(2)]
CAPTIONS = ["a red cup and a blue hat", "a blue cup and a red hat"]


def write_pair(folder, *names):
    for name, data in zip(names, PAIR, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_colorswap_is_equal_from_the_hubs_parquet_and_from_json(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ("image_1", "image_2", "caption_1", "caption_2")
    write_pair(tmp_path, "images/7_1.png", "images/7_2.png")
    (tmp_path / "test.json").write_text(json.dumps([{"id": 7, **two_by_two(columns, "7_1.png", "7_2.png")}]))
    cells = [{"bytes": data, "path": "x.png"} for data in PAIR]
    row = {"id": 7, **two_by_two(columns, *cells), "image_source": "midjourney"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test-00000-of-00001.parquet")
    for file in ("test.json", "test-00000-of-00001.parquet"):
        _, choices = load(tmp_path / f"{file}.out", tmp_path / file)
        assert choices == [Choice("7", "", PAIR, CAPTIONS, [0, 1])]


def test_naturalbench_retrieval_is_read_from_its_metadata(tmp_path):
    columns = ("image_0", "image_1", "caption_0", "caption_1")
    write_pair(tmp_path, "images/0_0.jpg", "images/0_1.jpg")
    record = {"index": 3, **two_by_two(columns, "0_0.jpg", "0_1.jpg")}
    broken = {**record, "image_1": "gone.jpg"}
    (tmp_path / "metadata.json").write_text(json.dumps([record, broken, 5]))
    for path in (tmp_path, tmp_path / "metadata.json"):
        ctx, choices = load(tmp_path / f"{path.name}.out", path, max_bad_fraction=0.7)
        assert choices == [Choice("3", "", PAIR, CAPTIONS, [0, 1])]
        assert ctx.bad == {"missing_image": 2}


def test_eqbens_subset_and_full_set_give_the_same_pairs_and_video_frames_are_arrays(tmp_path):
    import io

    import numpy as np
    from PIL import Image

    columns = ("image0", "image1", "caption0", "caption1")
    names = ["eqbensd/1/0.png", "eqbensd/1/1.png"]
    write_pair(tmp_path, *names)
    (tmp_path / "eqben_subset_10percent_final.json").write_text(json.dumps([two_by_two(columns, *names)]))
    full = [
        {
            "image": names[image],
            "caption": CAPTIONS[caption],
            "private_info": {"name": f"c{caption}i{image}", "dataset": "eqbensd", "sample_cnt": 1},
        }
        for image in (0, 1)
        for caption in (0, 1)
    ]
    (tmp_path / "ann_json_finegrained_random.json").write_text(json.dumps([*full, {"image": 3}]))
    _, subset = load(tmp_path / "a", tmp_path / "eqben_subset_10percent_final.json")
    ctx, whole = load(tmp_path / "b", tmp_path / "ann_json_finegrained_random.json", max_bad_fraction=0.6)
    assert subset == [Choice("0", "eqbensd", PAIR, CAPTIONS, [0, 1])]
    assert whole == [Choice("eqbensd/1", "eqbensd", PAIR, CAPTIONS, [0, 1])]
    assert ctx.bad == {"unreadable_row": 1}

    frame = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)  # blue, green, red
    np.save(tmp_path / "frame.npy", frame)
    (tmp_path / "video.json").write_text(json.dumps([two_by_two(columns, "frame.npy", names[1])]))
    _, video = load(tmp_path / "c", tmp_path / "video.json")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(video[0].images[0]))), frame[:, :, ::-1])


def test_whatsups_images_of_the_same_objects_are_pairs_of_opposite_relations(tmp_path):
    relations = ["to the left of", "to the right of", "on", "under"]
    texts = [f"A cup {relation} a chair" for relation in relations]
    records = []
    for number, text in enumerate(texts):
        name = f"controlled_images/cup_{number}_chair.jpeg"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(number))
        others = [each for each in texts if each != text]
        records.append({"image_path": f"data/{name}", "caption_options": [text, *others[::-1]]})
    (tmp_path / "controlled_images_dataset.json").write_text(json.dumps(records[::-1]))
    _, choices = load(tmp_path / "out", tmp_path / "controlled_images_dataset.json")
    assert [(choice.pattern, choice.statements) for choice in choices] == [
        ("left of, right of", texts[:2]),
        ("on, under", texts[2:]),
    ]
    assert [choice.images for choice in choices] == [[encoded(0), encoded(1)], [encoded(2), encoded(3)]]
    (tmp_path / "controlled_images_dataset.json").write_text(json.dumps([*records[:3], {"image_path": "x"}]))
    ctx, choices = load(tmp_path / "some", tmp_path / "controlled_images_dataset.json", max_bad_fraction=0.7)
    assert (len(choices), ctx.bad) == (1, {"missing_image": 1, "missing_caption": 1})


def test_whatsups_coco_subset_has_a_right_and_a_wrong_caption(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "000000000139.jpg").write_bytes(encoded(1, "JPEG"))
    rows = [[139, "A photo of a cup on the left", "A photo of a cup on the right"], [139, "one"]]
    (tmp_path / "coco_qa_one_obj.json").write_text(json.dumps(rows))
    ctx, choices = load(tmp_path / "out", tmp_path / "coco_qa_one_obj.json", max_bad_fraction=0.5)
    assert choices == [Choice("coco_qa_one_obj/0", "coco_qa_one_obj", [encoded(1, "JPEG")], rows[0][1:], [0, -1])]
    assert ctx.bad == {"unreadable_row": 1}


def test_pooled_benchmarks_keep_every_item_or_a_draw_and_name_their_source(tmp_path):
    paths = {}
    for name, count in (("mmvp", 3), ("winoground", 8)):
        items = [Choice(str(number), "p", PAIR, CAPTIONS, [0, 1]) for number in range(count)]
        write_choices(tmp_path / name, items)
        paths[name] = tmp_path / name

    def pool(folder, **settings):
        stage = PooledChoices(name="pooled", datasets=list(paths), **settings)
        made = stage.run(Context("pooled", tmp_path / folder, tmp_path / "work", paths))
        return list(load_choices(made))

    pooled = pool("all")
    assert [choice.key for choice in pooled] == [f"mmvp/{n}" for n in range(3)] + [f"winoground/{n}" for n in range(8)]
    assert [choice.pattern for choice in pooled] == ["mmvp"] * 3 + ["winoground"] * 8
    some, again, other = (pool(f"some{n}", max_items=4, seed=seed) for n, seed in enumerate((0, 0, 1)))
    assert [choice.pattern for choice in some] == ["mmvp"] * 3 + ["winoground"] * 4
    assert some == again
    assert some != other
    assert len({choice.key for choice in some}) == 7
