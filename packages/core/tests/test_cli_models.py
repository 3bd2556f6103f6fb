"""`vfm embed`, `predict` and `view` on artifacts, folders and tars; a mistake is one line."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from cli_world import run_here
from eval_world import NAMES, labeled, png, pool, run_in, tiny_clip
from vfm.base import UserError
from vfm.data import open_dataset
from vfm.data.samples.images import decode_image
from vfm.eval import encode_dataset, load_encoder
from vfm.eval.encode.embeddings import NpyWriter, ParquetWriter, read_embeddings
from vfm.interfaces import Artifact
from vfm.models import build_vision, load_clip, save_vision, set_class_names
from vfm.plugin import ReadSettings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model, a classifier, an encoder without a head, labelled images, pairs, and a flat folder of images."""
    here = tmp_path_factory.mktemp("world")
    tiny_clip(here / "clip", 0)
    model = build_vision("vit_pico_patch8_32", num_classes=7, seed=0)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    set_class_names(model, NAMES)
    save_vision(model, here / "classifier")
    save_vision(build_vision("vit_pico_patch8_32", seed=0), here / "encoder")
    labeled(here / "labeled", 21, broken=[3])
    pool(here / "pool")
    (here / "flat").mkdir()
    for n, name in enumerate(NAMES):
        (here / "flat" / f"{name}.png").write_bytes(png(name, n + 1))
    return here


@pytest.mark.parametrize("model", ["clip", "classifier", "encoder"])
@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_embeddings_are_the_encoders_in_order_without_the_bad(
    world: Path, tmp_path: Path, model: str, suffix: str
) -> None:
    out = tmp_path / f"e{suffix}"
    done = run_here(
        "embed", world / model, world / "labeled", "--out", out, "--batch-size", "4", "--max-bad-fraction", "0.1"
    )
    assert done.code == 0, done.err
    assert "20 embeddings; skipped: 1 unreadable_image" in done.out
    encoder = load_encoder(Artifact.load(world / model), torch.device("cpu"))
    source = open_dataset(Artifact.load(world / "labeled"))
    peer = encode_dataset(run_in(tmp_path / "ctx").ctx, source, {"m": encoder}, ReadSettings(4, 0.1))
    found = read_embeddings(out)
    assert found.keys == peer.keys
    assert torch.equal(found.vectors, peer.features["m"])
    keys = {"e.keys.txt"} if suffix == ".npy" else set()
    assert {file.name for file in tmp_path.glob("e*")} == {out.name, f"{out.name}.json"} | keys
    if suffix == ".npy":
        assert np.load(out).shape == found.vectors.shape
    else:
        assert found.texts[:3] == NAMES[:3], "a class is what a labelled image says"
        assert found.model == str((world / model).resolve())


def test_folders_and_tars_need_no_captions(world: Path, tmp_path: Path) -> None:
    for data in (world / "flat", world / "labeled" / "0.tar"):
        out = tmp_path / f"{data.stem}.parquet"
        done = run_here("embed", world / "clip", data, "--out", out, "--max-bad-fraction", "0.1")
        assert done.code == 0, done.err
    assert read_embeddings(tmp_path / "flat.parquet").keys == sorted(f"{name}.png" for name in NAMES)
    captions = tmp_path / "pool.parquet"
    assert run_here("embed", world / "clip", world / "pool", "--out", captions).code == 0
    assert pq.read_table(captions)["text"][2].as_py().startswith("blue number")


def test_a_file_of_a_folder_that_is_no_image_is_left_out_of_predictions(world: Path, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    (tmp_path / "cut.png").write_bytes(png("red")[:40])
    done = run_here("predict", world / "classifier", tmp_path)
    assert done.code == 0, done.err
    assert [line for line in done.out.splitlines() if line.endswith(".png")] == [
        str(tmp_path / "blue.png"),
        str(tmp_path / "red.png"),
    ]
    assert f"skipped: 1 of 3 images; the first is {tmp_path / 'cut.png'}: unreadable image" in done.err
    named = run_here("predict", world / "classifier", tmp_path / "red.png", tmp_path / "cut.png")
    assert (named.code, named.err) == (2, f"error: {tmp_path / 'cut.png'}: unreadable image\n")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read, whatever the user")
def test_a_file_of_a_folder_that_the_system_cannot_read_is_left_out_too(world: Path, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    (tmp_path / "fault.png").symlink_to("/proc/self/mem")
    done = run_here("predict", world / "classifier", tmp_path)
    assert done.code == 0, done.err
    assert f"skipped: 1 of 2 images; the first is {tmp_path / 'fault.png'}: Input/output error" in done.err


def pictures_with_captions(folder: Path) -> None:
    """Write pictures in each format: one has a caption, one has none, and one has a caption that is not UTF-8."""
    captions = {"a": b"a red boat", "b": None, "c": b"gr\xf6\xdfer"}
    (folder / "flat").mkdir()
    for name, caption in captions.items():
        (folder / "flat" / f"{name}.png").write_bytes(png("red"))
        if caption:
            (folder / "flat" / f"{name}.txt").write_bytes(caption)
    with tarfile.open(folder / "t.tar", "w") as out:
        for file in sorted((folder / "flat").iterdir()):
            out.add(file, file.name)
    rows = b"".join(b"flat/%s.png,%s\n" % (name.encode(), caption or b"") for name, caption in captions.items())
    (folder / "t.csv").write_bytes(b"image,caption\n" + rows)
    texts = pa.array(captions.values(), pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"image": [png("red")] * 3, "caption": texts}), folder / "t.parquet")


@pytest.mark.parametrize("data", ["flat", "t.tar", "t.csv", "t.parquet"])
def test_captions_are_taken_along_and_pictures_without_one_are_kept(world: Path, tmp_path: Path, data: str) -> None:
    pictures_with_captions(tmp_path)
    done = run_here("embed", world / "clip", tmp_path / data, "--out", tmp_path / "e.parquet")
    assert done.code == 0, done.err
    assert pq.read_table(tmp_path / "e.parquet")["text"].to_pylist() == ["a red boat", None, None]
    found = run_here("search", "boat", "--index", tmp_path / "e.parquet", "--out", tmp_path / "s.png")
    assert "a red boat" in found.out


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    for writer in (ParquetWriter(tmp_path / "a.parquet", "m"), NpyWriter(tmp_path / "a.npy")):
        with pytest.raises(ValueError, match="lengths"), writer:  # noqa: PT012 (what fails is the block)
            writer.write(["a"], [None], np.zeros((1, 3), np.float32))
            raise ValueError("lengths")
    assert list(tmp_path.iterdir()) == []


def test_an_npy_of_many_batches_is_numpys(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(1234, 5)).astype(np.float32)
    with NpyWriter(tmp_path / "a.npy") as writer:
        for start in range(0, 1234, 100):
            part = rows[start : start + 100]
            writer.write([f"{n}\u2028\x0b" for n in range(len(part))], [None] * len(part), part)
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), rows)
    assert read_embeddings(tmp_path / "a.npy").keys[:2] == ["0\u2028\x0b", "1\u2028\x0b"]


def shown(out: str) -> list[tuple[float, str]]:
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    return [(float(share), words) for share, words in lines]


def test_a_clip_model_chooses_among_names_as_zero_shot_does(world: Path, tmp_path: Path) -> None:
    image = world / "flat" / "red.png"
    done = run_here("predict", world / "clip", image, "--classes", ",".join(NAMES), "--top", "3")
    clip = load_clip(world / "clip")
    texts = clip.encode_texts([f"a photo of a {name}." for name in NAMES])
    logits = clip.module.logit_scale.exp() * clip.encode_images([decode_image(image.read_bytes(), "x")]) @ texts.T
    best = logits.softmax(dim=-1)[0].topk(3)
    assert done.out.splitlines()[0] == str(image)
    assert [words for _, words in shown(done.out)] == [NAMES[i] for i in best.indices.tolist()]
    assert [share for share, _ in shown(done.out)] == pytest.approx(best.values.tolist(), abs=6e-4)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    again = run_here("predict", world / "clip", image, "--classes", tmp_path / "names.txt", "--top", "3")
    assert again.out == done.out


def test_class_names_in_another_encoding_or_longer_than_a_path(world: Path, tmp_path: Path) -> None:
    image = world / "flat" / "red.png"
    (tmp_path / "names.txt").write_bytes("Füchse\nBären".encode("latin-1"))
    done = run_here("predict", world / "clip", image, "--classes", tmp_path / "names.txt")
    assert (done.code, done.err) == (2, f"error: {tmp_path}/names.txt: not UTF-8\n")
    assert run_here("predict", world / "clip", image, "--classes", "red,blue" * 1000).code == 0


def test_a_classifier_says_its_own_classes(world: Path) -> None:
    done = run_here("predict", world / "classifier", world / "flat" / "red.png", world / "flat" / "blue.png")
    assert len(shown(done.out)) == 10
    model = load_encoder(Artifact.load(world / "classifier"), torch.device("cpu"))
    shares = model.logits([decode_image((world / "flat" / "red.png").read_bytes(), "x")]).softmax(dim=-1)[0]
    best = shares.topk(5)
    assert [words for _, words in shown(done.out)[:5]] == [NAMES[i] for i in best.indices.tolist()]
    assert [share for share, _ in shown(done.out)[:5]] == pytest.approx(best.values.tolist(), abs=6e-4)


def test_the_nearest_of_an_index_is_the_picture_itself(world: Path, tmp_path: Path) -> None:
    index = tmp_path / "i.parquet"
    assert run_here("embed", world / "clip", world / "flat", "--out", index).code == 0
    done = run_here("predict", world / "clip", world / "flat" / "green.png", "--index", index, "--top", "2")
    assert shown(done.out)[0] == (pytest.approx(1.0), "green.png")
    assert not done.err
    tiny_clip(tmp_path / "other", 1)
    other = run_here("predict", tmp_path / "other", world / "flat" / "green.png", "--index", index)
    assert other.code == 0
    clip, second = (world / "clip").resolve(), (tmp_path / "other").resolve()
    assert f"i.parquet: made with {clip}, not with {second};" in other.errors[0]
    wrong = run_here("predict", world / "encoder", world / "flat" / "green.png", "--index", index)
    assert wrong.code == 2
    assert "with 16; use" in wrong.errors[0]


def test_views_are_png_files_one_a_picture(world: Path, tmp_path: Path) -> None:
    for model in ("clip", "classifier"):
        images = [world / "flat" / "red.png", world / "flat" / "blue.png"]
        done = run_here("view", world / model, *images, "--out", tmp_path / model)
        assert done.code == 0, done.err
        for name in ("red", "blue"):
            with Image.open(tmp_path / model / f"{name}.png") as image:
                assert image.size == (4 * 96 + 24, 96 + 20)  # the maps, their names above them


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["embed", "{}/clip", "{}/flat", "--out", "x.csv"], "x.csv: expected .parquet or .npy, got .csv"),
        (["embed", "{}/clip", "{}/nothing", "--out", "x.npy"], "nothing: no such file or folder"),
        (["embed", "{}/clip", "{}/clip", "--out", "x.npy"], "expected ImageDataset, got ClipCheckpoint"),
        (["embed", "{}/labeled", "{}/flat", "--out", "x.npy"], "expected a model, got a LabeledDataset"),
        (["embed", "{}/clip", "{}/flat", "--out", "x.npy", "--device", "gpu"], "device gpu: choose from auto"),
        (["predict", "{}/clip", "{}/flat/red.png"], "give classes or an index"),
        (["predict", "{}/clip", "{}/flat/rd.png", "--classes", "a,b"], "rd.png: no such image"),
        (["predict", "{}/clip", "{}/clip/artifact.json", "--classes", "a,b"], "artifact.json: unreadable image"),
        (["predict", "{}/clip", "{}/flat/red.png", "--classes", "a"], "expected at least two names, got 'a'"),
        (["predict", "{}/clip", "{}/flat/red.png", "--classes", "no.txt"], "classes no.txt: no such file"),
        (["predict", "{}/encoder", "{}/flat/red.png"], "it has no classification head; give an index"),
        (["predict", "{}/classifier", "{}/flat/red.png", "--classes", "a,b"], "expected class_names for 7 outputs"),
        (
            ["predict", "{}/clip", "{}/flat/red.png", "--index", "no.npy"],
            "no.npy: no such file; make one with vfm embed",
        ),
        (
            ["predict", "{}/clip", "{}/flat/red.png", "--index", "{}/clip/artifact.json"],
            "artifact.json: expected .parquet or .npy, got .json",
        ),
        (["predict", "{}/clip", "{}/flat/red.png", "--classes", "a,b", "--index", "i"], "not both"),
        (["predict", "vit_picoo_patch8_32", "{}/flat/red.png"], "did you mean 'vit_pico_patch8_32'"),
        (
            ["predict", "{}/clip", "https://u:hunter2@h/x.png?sig=hunter2", "--classes", "a,b"],
            "error: https://u:***@h/x.png?sig=***: expected a local file, got an address; download it first",
        ),
        (["view", "{}/clip", "s3://k:hun/ter2@h/x.png", "--out", "o"], "error: s3://k:***@h/x.png: expected a local"),
        (["view", "ViT-Pico-8-32", "{}/flat/red.png", "--out", "o"], "pretrained is required"),
    ],
)
def test_a_mistake_is_one_clear_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here(*(word.format(world) for word in words))
    assert done.code == 2, done.out
    assert len(done.errors) == 1
    assert line in done.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_npy_is_reported(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "a.keys.txt").write_text("one\n")
    with pytest.raises(UserError, match="1 keys for an array of"):
        read_embeddings(tmp_path / "a.npy")


def test_an_npy_is_compared_with_its_record_also_under_another_name(tmp_path: Path) -> None:
    with NpyWriter(tmp_path / "a.npy") as writer:
        writer.write(["one", "two"], [None] * 2, np.eye(2, dtype=np.float32))
    for suffix in (".npy", ".keys.txt", ".npy.json"):
        (tmp_path / f"a{suffix}").rename(tmp_path / f"b{suffix}")
    assert read_embeddings(tmp_path / "b.npy").keys == ["one", "two"]
    for file, data in ((tmp_path / "b.npy", None), (tmp_path / "b.keys.txt", b"one\ntwp\n")):
        before = file.read_bytes()
        file.write_bytes(data or before[:-1] + b"\x3e")
        with pytest.raises(UserError, match=rf"{file.name}: not as it was written: .* make it again with vfm embed"):
            read_embeddings(tmp_path / "b.npy")
        (tmp_path / "b.npy.json").rename(tmp_path / "away")
        assert len(read_embeddings(tmp_path / "b.npy").keys) == 2  # as of older versions, without a record
        (tmp_path / "away").rename(tmp_path / "b.npy.json")
        file.write_bytes(before)


def test_a_footer_of_parquet_is_compared_with_its_record(tmp_path: Path) -> None:
    with ParquetWriter(tmp_path / "a.parquet", "the model") as writer:
        writer.write(["one"], [None], np.ones((1, 2), np.float32))
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"the model", b"the nodel"))
    with pytest.raises(UserError, match=r"a\.parquet: not as it was written: .* make it again with vfm embed"):
        read_embeddings(tmp_path / "a.parquet")


def test_the_type_of_a_model_follows_from_its_folder_file_or_name(world: Path, tmp_path: Path) -> None:
    """Folders in the two layouts are recognised, files of weights by their keys, and names of either registry."""
    from vfm.models import is_vision_source, save_state_dict

    for name in ("clip", "encoder"):
        (tmp_path / name).mkdir()
        for file in (world / name).glob("*"):
            if file.name != "artifact.json":
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
        done = run_here("view", tmp_path / name, world / "flat" / "red.png", "--out", tmp_path / "views")
        assert done.code == 0, done.err
    for key, encoder in {"visual.pos_embed": False, "module.blocks.0.norm1.weight": True}.items():
        save_state_dict({key: torch.zeros(1)}, tmp_path / "w.safetensors")
        assert is_vision_source(str(tmp_path / "w.safetensors"), None) == encoder
    assert is_vision_source("convnext_base", None), "a name of both registries is timm's without a tag of open_clip's"
    assert is_vision_source("convnext_base", str(tmp_path / "w.safetensors"))
    assert not is_vision_source("convnext_base", "laion400m_s13b_b51k")
    assert [is_vision_source(name, None) for name in ("vit_pico_patch8_32", "timm/resnet18.a1_in1k", "ViT-B/32")] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("compare", [True, False])
def test_what_an_import_differed_by_is_shown_by_looks_and_views(world: Path, tmp_path: Path, compare: bool) -> None:
    stage = {"kind": "models.clip", "name": "clip", "source": str(world / "clip"), "compare": compare}
    (tmp_path / "r.yaml").write_text(json.dumps({"stages": [stage]}))
    assert run_here("run", tmp_path / "r.yaml", "--store", tmp_path / "store", "--quiet").code == 0
    folder = next((tmp_path / "store").glob("models.clip-*"))
    numbers = json.loads((folder / "manifest.json").read_text())["numbers"]
    expected = "not compared with the library that wrote it when it was imported"
    if compare:
        assert set(numbers) >= {"import/open_clip/features", "import/open_clip/pixels", "import/open_clip/ids"}
        shown = (f"{name.rpartition('/')[2].replace('_', ' ')} {value:.2g}" for name, value in numbers.items())
        expected = f"differences to open_clip when it was imported: {', '.join(shown)}"
    doctor = run_here("doctor", folder)
    assert f"  {expected}\n" in doctor.out
    assert f"  image_size: {Artifact.load(folder).image_size}\n" in doctor.out
    drawn = run_here("view", folder, world / "flat" / "red.png", "--out", tmp_path / "views")
    assert f"{folder}: {expected}\n" in drawn.out
    plain = run_here("view", world / "clip", world / "flat" / "red.png", "--out", tmp_path / "views")
    assert "imported" not in plain.out + run_here("doctor", world / "clip").out
