"""Videos in every layout, of every codec, whole and broken: which frames are read, and why others are left out."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from ledger_totals import read_totals
from vfm.base import UserError
from vfm.data import BadSample, write_tar
from vfm.data.videos import (
    ClipSampling,
    ClipView,
    Media,
    VideoSource,
    drawn_view,
    fixed_views,
    read_clips,
)
from vfm.data.videos.probing import VideoFacts, probe
from vfm.data.videos.stages import Videos, VideoUnion
from vfm.interfaces import Context, Event, Preflight, Runtime, VideoDataset
from video_files import CODECS, encode, grey_frames, number_of, rotated, sound_only, without_frames, write

CLIP = encode(grey_frames(10))
EXTENSIONS = {"webm": "webm", "no_frames": "avi"}


def indexed(tmp_path: Path, name: str = "videos", **fields: object) -> VideoDataset:
    config = Videos(kind="data.videos", name=name, **fields)  # type: ignore[arg-type]
    config.preflight(Preflight({}, {}))
    folder = tmp_path / f"{name}-artifact"
    (folder / "work").mkdir(parents=True)
    return config.run(Context(name, folder, folder / "work", {}))  # type: ignore[return-value]


def labels_of(dataset: VideoDataset) -> dict[str, str]:
    source = VideoSource.of(dataset)
    return {key: dataset.class_names[label] for key, label in zip(source.keys, source.labels, strict=True)}


def whole(facts_size: tuple[int, int], frames: tuple[int, ...]) -> ClipView:
    return ClipView(frames, facts_size, (0, 0, *facts_size))


@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_of_every_codec_is_found_by_its_number(codec: str, tmp_path: Path) -> None:
    media = Media(str(write(tmp_path / f"a.{CODECS[codec][1]}", encode(grey_frames(30), codec, key_every=7))))
    facts = probe(media)
    assert (facts.num_frames, facts.width, facts.height, round(facts.rate)) == (30, 64, 48, 25)
    assert not facts.variable_rate
    frames = (0, 3, 3, 13, 14, 29)
    (clip,) = read_clips(media, facts, [whole((64, 48), frames)])
    assert [number_of(frame) for frame in clip] == list(frames)


def test_frames_in_a_folder_are_ordered_by_number(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for number, pixels in enumerate(grey_frames(12), 1):
        Image.fromarray(pixels).save(tmp_path / "run" / f"frame{number}.png")
    media = Media(str(tmp_path / "run"), -2)
    assert [Path(path).stem for path in media.frame_paths()] == [f"frame{number}" for number in range(1, 13)]
    facts = probe(media)
    (clip,) = read_clips(media, facts, [whole((64, 48), (0, 1, 9, 11))])
    assert [number_of(frame) for frame in clip] == [0, 1, 9, 11]


def test_two_videos_of_one_name_are_both_listed(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        write(tmp_path / "videos" / "run" / name, CLIP)
    write(tmp_path / "videos" / "walk" / "a.mp4", CLIP)
    dataset = indexed(tmp_path, path=str(tmp_path / "videos"))
    assert labels_of(dataset) == {"run/a.mkv": "run", "run/a.mp4": "run", "walk/a": "walk"}


SOUGHT: tuple[Media, VideoFacts]  # set below, since hypothesis takes no fixture that is made for each test


@given(frames=st.lists(st.integers(0, 39), min_size=1, max_size=6).map(sorted))
@settings(max_examples=25)
def test_seeking_to_key_frames_gives_the_bytes_of_decoding_from_the_beginning(frames: list[int]) -> None:
    media, facts = SOUGHT
    view = whole((64, 48), tuple(frames))
    assert len(facts.key_frames) > 3
    plain = facts.__class__(facts.num_frames, facts.rate, facts.width, facts.height)
    assert np.array_equal(*(read_clips(media, one, [view])[0] for one in (facts, plain)))


@pytest.fixture(scope="module", autouse=True)
def _sought(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SOUGHT
    noisy = grey_frames(40) + np.random.default_rng(0).integers(0, 9, (40, 48, 64, 3), dtype=np.uint8)
    path = write(tmp_path_factory.mktemp("sought") / "a.mp4", encode(noisy, key_every=9))
    SOUGHT = (Media(str(path)), probe(Media(str(path))))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_video_is_read_upright(turns: int, tmp_path: Path) -> None:
    media = Media(str(write(tmp_path / "a.mp4", rotated(CLIP, turns))))
    facts = probe(media)
    assert (facts.width, facts.height) == ((48, 64) if turns % 2 else (64, 48))
    (clip,) = read_clips(media, facts, [whole((facts.width, facts.height), (5,))])
    upright = np.rot90(grey_frames(10)[5], -turns)
    assert np.abs(clip[0].astype(int) - upright).mean() < 4


def test_what_cannot_be_used_is_counted_by_reason_and_what_is_unusual_is_used(tmp_path: Path) -> None:
    front = encode(grey_frames(40, (128, 96)), options={"movflags": "faststart"})
    broken = {
        "truncated": front[: len(front) * 2 // 3],
        "headless": CLIP[: len(CLIP) // 2],
        "sound": sound_only(),
        "empty": b"",
        "text": b"no video",
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n",
        "no_frames": without_frames(),
        "codec": CLIP.replace(b"avc1", b"zzzz"),
    }
    good = {
        "plain": CLIP,
        "with_sound": encode(grey_frames(10), sound=True),
        "turned": rotated(CLIP, 1),
        "uneven": encode(grey_frames(10), times=[0, 1, 2, 7, 8, 9, 20, 21, 22, 30]),
        "webm": encode(grey_frames(10), "vp9"),
    }
    for name, data in (broken | good).items():
        write(tmp_path / "root" / "one" / f"{name}.{EXTENSIONS.get(name, 'mp4')}", data)
    dataset = indexed(tmp_path, path=str(tmp_path / "root"), max_bad_fraction=0.9)
    assert sorted(VideoSource.of(dataset).keys) == sorted(f"one/{name}" for name in good)
    # Read once, since evaluations look up the key and the class of each of many thousand videos.
    source = VideoSource.of(dataset)
    assert source.keys is source.keys
    assert source.labels is source.labels
    assert dataset.bad_samples == {"truncated_video": 1, "unreadable_video": 5, "no_video_stream": 1, "no_frames": 1}
    assert dataset.unusual == {"rotated": 1, "variable_rate": 1}
    with pytest.raises(UserError, match=r"8 of 13 samples are bad.*max_bad_fraction: 0.05"):
        indexed(tmp_path, "strict", path=str(tmp_path / "root"))


def test_a_frame_that_is_lost_after_indexing_is_a_bad_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", encode(grey_frames(30), options={"movflags": "faststart"}))
    media, facts = Media(str(path)), probe(Media(str(path)))
    path.write_bytes(CLIP)
    with pytest.raises(BadSample, match="truncated_video"):
        read_clips(media, facts, [whole((64, 48), (29,))])
    path.unlink()
    with pytest.raises(BadSample, match="unreadable_video"):
        read_clips(media, facts, [whole((64, 48), (3,))])


def test_class_folders_and_folders_of_frames(tmp_path: Path) -> None:
    for name in ("run/a", "run/b", "jump/c"):
        write(tmp_path / "clips" / f"{name}.mp4", CLIP)
        for number, pixels in enumerate(grey_frames(10)):
            (tmp_path / "frames" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "frames" / name / f"{number:03d}.png")
    expected = {"run/a": "run", "run/b": "run", "jump/c": "jump"}
    for name in ("clips", "frames"):
        dataset = indexed(tmp_path, name, path=str(tmp_path / name))
        assert labels_of(dataset) == expected
        sample = VideoSource.of(dataset)[0]
        (clip,) = read_clips(sample.media, sample.facts, [whole((64, 48), (2, 9))])
        assert [number_of(frame) for frame in clip] == [2, 9]


def test_kinetics_lists_ucf_hmdb_and_something(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("run/id_1_000010_000020", "jump/idtwo_000003_000013", "x/v_a", "x/7"):
        write(root / f"{name}.mp4", CLIP)
    with open(tmp_path / "train.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        rows.writerow(["running, fast", "id_1", 10, 20, "train"])
        rows.writerow(["jumping", "idtwo", 3, 13, "train"])
        rows.writerow(["jumping", "gone", 3, 13, "train"])
    kinetics = indexed(tmp_path, "k", path=str(root), annotations=str(tmp_path / "train.csv"), max_bad_fraction=0.5)
    assert labels_of(kinetics) == {"id_1_000010_000020": "running, fast", "idtwo_000003_000013": "jumping"}
    assert kinetics.bad_samples == {"missing_video": 1}

    write(tmp_path / "list.txt", b"x/v_a.mp4 1\nrun/id_1_000010_000020.mp4 0\n")
    write(tmp_path / "names.csv", b"id,name\n0,running\n1,walking, slowly\n")
    listed = indexed(
        tmp_path, "l", path=str(root), annotations=str(tmp_path / "list.txt"), names=str(tmp_path / "names.csv")
    )
    assert labels_of(listed) == {"x/v_a": "walking, slowly", "run/id_1_000010_000020": "running"}

    write(tmp_path / "ucf" / "trainlist01.txt", b"x/v_a.mp4 2\n")
    write(tmp_path / "ucf" / "classInd.txt", b"1 y\n2 x\n")
    ucf = indexed(tmp_path, "u", path=str(root), annotations=str(tmp_path / "ucf/trainlist01.txt"))
    assert (labels_of(ucf), ucf.class_names) == ({"x/v_a": "x"}, ["y", "x"])

    write(tmp_path / "hmdb" / "x_test_split1.txt", b"v_a.mp4 1 \n7.mp4 2 \n")
    for split, key in (("train1", "x/v_a"), ("test", "x/7")):
        hmdb = indexed(tmp_path, split, path=str(root), annotations=str(tmp_path / "hmdb"), split=split)
        assert labels_of(hmdb) == {key: "x"}

    write(tmp_path / "s" / "train.json", json.dumps([{"id": "7", "template": "Moving [something] up"}]).encode())
    write(tmp_path / "s" / "labels.json", json.dumps({"Moving something up": "1", "Doing": "0"}).encode())
    something = indexed(tmp_path, "s", path=str(root), annotations=str(tmp_path / "s/train.json"))
    assert labels_of(something) == {"7": "Moving something up"}


@pytest.mark.parametrize("classes", ["numbers", "words", "json"])
def test_tars_with_videos_and_classes(classes: str, tmp_path: Path) -> None:
    members = {
        "numbers": [{"cls": b"1"}, {"cls": b"0"}],
        "words": [{"cls": b"run"}, {"cls": b"jump"}],
        "json": [{"json": b'{"action": "run"}'}, {"json": b'{"action": "jump"}'}],
    }[classes]
    write_tar(tmp_path / "a.tar", [(f"{n:03d}", {"mp4": CLIP, **one}) for n, one in enumerate(members)])
    names = {"class_names": ["jump", "run"]} if classes == "numbers" else {}
    key = {"label_key": "json.action"} if classes == "json" else {}
    dataset = indexed(tmp_path, path=str(tmp_path / "a.tar"), **names, **key)
    assert labels_of(dataset) == {"000": "run", "001": "jump"}
    sample = VideoSource.of(dataset)[1]
    (clip,) = read_clips(sample.media, sample.facts, [whole((64, 48), (4,))])
    assert number_of(clip[0]) == 4


def test_one_class_with_a_name_makes_names_of_all_numbers(tmp_path: Path) -> None:
    classes = [b"run", b"1", b"jump", b"10"]
    write_tar(tmp_path / "a.tar", [(f"{n:03d}", {"mp4": CLIP, "cls": one}) for n, one in enumerate(classes)])
    dataset = indexed(tmp_path, path=str(tmp_path / "a.tar"))
    assert labels_of(dataset) == {"000": "run", "001": "1", "002": "jump", "003": "10"}


def test_a_clip_whose_frames_are_gone_is_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "root/run" / name).mkdir(parents=True)
        Image.fromarray(grey_frames(1)[0]).save(tmp_path / "root/run" / name / "1.png")
    frame = tmp_path / "root/run/b/1.png"
    frame.unlink()
    frame.symlink_to("nowhere")
    dataset = indexed(tmp_path, path=str(tmp_path / "root"), max_bad_fraction=0.5)
    assert (dataset.num_samples, dataset.bad_samples) == (1, {"missing_video": 1})


def test_workers_index_the_same_bytes(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "root" / "one" / f"{number}.mp4", encode(grey_frames(5 + number)))
    one = indexed(tmp_path, "a", path=str(tmp_path / "root"))
    two = indexed(tmp_path, "b", path=str(tmp_path / "root"), runtime=Runtime(workers=2))
    assert (one.path / "videos.parquet").read_bytes() == (two.path / "videos.parquet").read_bytes()
    source = pickle.loads(pickle.dumps(VideoSource.of(one)))
    assert [source[n].facts.num_frames for n in range(4)] == [5, 6, 7, 8]


def test_a_union_has_all_classes_once_and_no_video_of_the_tests(tmp_path: Path) -> None:
    parts = {"k4": {"run": "ab", "jump": "c"}, "k6": {"jump": "cd", "swim": "e"}, "val": {"run": "b"}}
    folders = {}
    for name, classes in parts.items():
        for label, clips in classes.items():
            for clip in clips:
                write(tmp_path / name / label / f"{clip}.mp4", CLIP)
        folders[name] = indexed(tmp_path, name, path=str(tmp_path / name)).path
    config = VideoUnion(kind="data.video_union", name="k7", data=["k4", "k6"], without=["val"])  # type: ignore[list-item]
    config.preflight(Preflight({}, {}))
    folder = tmp_path / "union"
    folder.mkdir()
    union = config.run(Context("k7", folder, folder, folders))
    assert isinstance(union, VideoDataset)
    assert union.class_names == ["jump", "run", "swim"]
    assert {key.split("/")[-1]: label for key, label in labels_of(union).items()} == {
        "a": "run", "c": "jump", "d": "jump", "e": "swim",
    }  # fmt: skip
    assert union.left_out == {"held_out": 1, "repeated": 1}
    sample = VideoSource.of(union)[0]
    assert read_clips(sample.media, sample.facts, [whole((64, 48), (4,))])[0].shape == (1, 48, 64, 3)


def test_files_of_one_name_in_two_classes_are_named_when_a_union_leaves_them_out(tmp_path: Path) -> None:
    for name in ("run/001", "run/002", "jump/001"):
        write(tmp_path / "a" / f"{name}.mp4", CLIP)
    part = indexed(tmp_path, "made", path=str(tmp_path / "a")).path
    folder = tmp_path / "union"
    folder.mkdir()
    events: list[Event] = []
    config = VideoUnion(kind="data.video_union", name="u", data=["a"])  # type: ignore[list-item]
    union = config.run(Context("u", folder, folder, {"a": part}, events.append))
    assert union.num_samples == 2
    (warning,) = [event.data["message"] for event in events if event.type == "warning"]
    assert warning.startswith("u: a: 1 of its videos have the id of another video, such as '001'")


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, {}, "no videos found"),
        ({"a.mp4": b""}, {}, "no videos found"),
        ({"c/a.mp4": b"nothing"}, {}, "none of the first videos can be used: .*unreadable_video"),
        (
            {"c/a.mp4": CLIP, "l.txt": b"c/a.mp4 3\n"},
            {"class_names": ["one"]},
            "expected a label of the 1 classes, got 3",
        ),
        ({"c/a.mp4": CLIP, "l.txt": b"c/a.mp4\n"}, {}, "line 1: expected `path label`"),
        ({"c/a.mp4": CLIP, "l.txt": b"../a.mp4 0\n"}, {}, "unsafe_path"),
        (
            {"c/a.mp4": CLIP, "l.csv": b"label,youtube_id,time_start,time_end\nx,y,z,1\n"},
            {},
            "expected label, time_end",
        ),
        (
            {"c/a.mp4": CLIP, "l.csv": b"label,youtube_id,time_start,time_end\nx,y,inf,1\n"},
            {},
            "expected label, time_end",
        ),
        ({"c/a.mp4": CLIP, "l.txt": b"c/a.mp4 202611280138\n"}, {}, "c/a: expected a label below 100,000"),
        ({"c/a.mp4": CLIP, "l.json": b"{"}, {}, "not readable as JSON"),
        ({"c/a.mp4": CLIP, "l.json": b"[" * 100_000}, {}, "not readable as JSON"),
        ({"c/a.mp4": CLIP, "l.json": b'[{"id": 1}]'}, {}, "expected videos with `id` and `template`"),
        ({"c/a.mp4": CLIP}, {"format": "kinetics"}, "needs annotations"),
        ({"c/a.mp4": CLIP, "l.txt": b"c/a.mp4 0\nc/a.mp4 0\n"}, {}, "2 videos have the key 'c/a.mp4'"),
    ],
)
def test_wrong_data_are_one_line(
    files: dict[str, bytes], fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    for name, data in files.items():
        if name.startswith("l."):
            fields = {**fields, "annotations": str(write(tmp_path / name, data))}
        else:
            write(tmp_path / "root" / name, data)
    with pytest.raises(UserError, match=message) as caught:
        indexed(tmp_path, path=str(tmp_path / "root"), **fields)
    assert "\n" not in str(caught.value)


def test_wrong_names_of_classes_are_one_line(tmp_path: Path) -> None:
    write(tmp_path / "root/c/a.mp4", CLIP)
    listed = write(tmp_path / "l.txt", b"c/a.mp4 0\n")
    names = write(tmp_path / "names.csv", b"id,name\n0,run\njump\n")
    settings = {"path": str(tmp_path / "root"), "annotations": str(listed), "names": str(names)}
    with pytest.raises(UserError, match=r"names\.csv: line 3: expected `id,name`, got 'jump'"):
        indexed(tmp_path, **settings)
    names.write_text("id,name\n1,run\n2,jump\n")  # label 1 would be named jump
    with pytest.raises(UserError, match=r"names\.csv: expected the numbers 0 to 1, each once"):
        indexed(tmp_path, **settings)


@given(total=st.integers(1, 400), length=st.integers(1, 32), clips=st.integers(1, 5), stride=st.integers(1, 9))
def test_frames_of_clips_are_ascending_and_inside(total: int, length: int, clips: int, stride: int) -> None:
    for kind in ("segments", "dense"):
        sampling = ClipSampling(length, kind, stride)  # type: ignore[arg-type]
        found = [sampling.fixed(total, clip, clips) for clip in range(clips)]
        found.append(sampling.drawn(total, np.random.default_rng(total)))
        for frames in found:
            assert len(frames) == length
            assert list(frames) == sorted(frames)
            assert 0 <= frames[0] <= frames[-1] < total
    if total >= length:  # the middle of each segment, and one frame of each
        edges = np.arange(length + 1) * total / length
        middle = np.array(ClipSampling(length).fixed(total, 0, 1))
        assert (np.floor(edges[:-1]) <= middle).all()
        assert (middle < np.ceil(edges[1:])).all()


@given(width=st.integers(20, 300), height=st.integers(20, 300), seed=st.integers(0, 99), crops=st.sampled_from([1, 3]))
def test_crops_lie_inside_the_resized_frame(width: int, height: int, seed: int, crops: int) -> None:
    views = [
        drawn_view((0,), (width, height), 32, np.random.default_rng(seed), scales=(1.0, 0.875, 0.75, 0.66), flip=0.5)
    ]
    fixed = fixed_views((0,), (width, height), 32, crops)
    assert len(fixed) == crops
    for view in [*views, *fixed]:
        left, top, *shape = view.box
        assert shape == [32, 32]
        assert min(left, top) >= 0
        assert left + 32 <= view.size[0]
        assert top + 32 <= view.size[1]
    assert min(fixed[0].size) == 32


def test_the_benchmark_of_decoding_runs(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "video_decoding.py"
    command = [sys.executable, str(script), "--quick", "--out", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "found.json").read_text())["cases"]["150 frames of 160 x 120"]["vfm, ms"] > 0


def test_every_entry_of_a_folder_of_videos_is_in_the_ledger(tmp_path: Path) -> None:
    root = tmp_path / "clips"
    for name in ("run/a.mp4", "run/b.mp4", "jump/c.mp4"):
        write(root / name, CLIP)
    for name in ("run/notes.txt", "run/._a.mp4", "d.mp4", "jump/broken.mp4"):
        (root / name).write_bytes(b"?")
    write(tmp_path / "real" / "e.mp4", CLIP)
    (root / "walk").symlink_to(tmp_path / "real")
    dataset = indexed(tmp_path, "clips", path=str(root), max_bad_fraction=0.9)
    assert dataset.bad_samples == {"linked_folder": 1, "unreadable_video": 1}
    totals = read_totals(dataset.path)
    assert totals == {"entries": {"used": 3, "linked_folder": 1, "unreadable_video": 1, "hidden": 1, "not_read": 2}}
