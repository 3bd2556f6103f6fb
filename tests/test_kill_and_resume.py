"""SIGKILL, SIGTERM or SIGINT at any moment, then two runs at once: the same bits as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from outside import ROOT, call, checked
from vfm.data import write_tar
from vfm.data.synthetic.videos import encode_video
from vfm.models import build_vision

RECIPES = Path(__file__).parent / "recipes"
HAS_RED = b'{"has": ["red"]}'
NUM_KILLS = int(os.environ.get("VFM_NUM_KILLS", "2"))
LONG = pytest.mark.skipif(NUM_KILLS < 5, reason="long; make kill-test runs it")
VFM = (sys.executable, "-m", "vfm")

# What may differ between two runs that did the same: when, how long, how fast, how much memory; and nothing else.
# Nor does it matter which of many bad samples are named: workers meet them in any order.
# The tree may be worked on meanwhile.
TIMES = {"finished", "seconds", "sha256", "bad_examples", "commit"}
PANELS_OF_TIMES = "*-seconds.json"
SPEED = (
    "train/samples_per_second",
    "train/data_wait_pct",
    "train/checkpoint_wait_pct",
    "train/tflops",
    "sys/",
)  # beginnings of names

# The exit codes after a signal: SIGTERM is handled in a training only, and a run may just have ended by itself.
ENDS = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {-signal.SIGTERM, 128 + signal.SIGTERM, 0},
    signal.SIGINT: {128 + signal.SIGINT, 0},
}


def run(
    folder: Path, store: str, recipe: Path = RECIPES / "every_stage.yaml", processes: int = 1
) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*VFM, "run", str(recipe), "--store", store, "--quiet"]
    command += ["--set", f"runtime.processes={processes}"] if processes > 1 else []
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores Ctrl-C, and hands that down: this process must not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def output(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=3600)  # a run that waits for ever, on a machine as busy as may be
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def finish(process: subprocess.Popen[str]) -> None:
    out, err = output(process)
    assert process.returncode == 0, out[-2000:] + err[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with `outside/`: tars (one sample broken), class folders, choices, and three models."""
    folder = tmp_path_factory.mktemp("kill")
    finish(run(folder, "made", RECIPES / "from_outside.yaml"))
    made, outside = folder / "made/runs/from_outside/artifacts", folder / "outside"
    outside.mkdir()
    for name, source in {"photos": "photos", "clip": "openai", "vision": "encoder", "generator": "stable"}.items():
        shutil.copytree((made / source).resolve(), outside / name)
    with tarfile.open(outside / "photos/00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    keys = [name.removesuffix(".jpg") for name in members if name.endswith(".jpg")]
    _class_folders(outside / "folders", members, keys)
    write_tar(outside / "marked.tar", [(key, {"jpg": members[f"{key}.jpg"], "json": HAS_RED}) for key in keys[:8]])
    statements, truths = ["a red circle", "a blue star"], [[0, -1], [-1, 0]] * 4
    lines = [
        {"images": [f"folders/{'ab'[index % 2]}/{key}.jpg"], "statements": statements, "truth": truth}
        for index, (key, truth) in enumerate(zip(keys, truths, strict=False))
    ]
    _annotated(outside / "annotated", members, keys[:6])
    _add_vae(outside / "generator")
    _detector(outside / "detector.pth")
    _segmenter(outside / "segmenter.pth")
    _segformer(outside / "segformer")
    (outside / "choices.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    _videos(outside / "videos")
    _break_a_sample(outside / "photos/00000.tar", keys[3])
    _crawl(outside)
    _asked(outside)
    return folder


def _asked(outside: Path) -> None:
    """A pair of questions about two pictures, and what two models replied elsewhere."""
    question = {"question": "what ?", "options": ["red", "blue"], "pair": 0}
    lines = [{"image": f"annotated/pictures/{n + 1}.jpg", "answer": n, **question} for n in (0, 1)]
    (outside / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for name, replies in (("before", "AA"), ("after", "AB")):
        (outside / "lmms" / name).mkdir(parents=True)
        rows = [
            {
                "doc_id": n,
                "doc_hash": str(n),
                "filtered_resps": [reply],
                "mmvp_pair_accuracy": {"pair_index": 0, "gt": "AB"[n]},
            }
            for n, reply in enumerate(replies)
        ]
        log = outside / "lmms" / name / "20260101_000000_samples_mmvp.jsonl"
        log.write_text("\n".join(map(json.dumps, rows)) + "\n")


def _videos(folder: Path) -> None:
    """Two classes of clips, and a file that is none."""
    grey = np.arange(60, 220, 20, dtype=np.uint8)[:, None, None, None]
    for name, order in (("brighter", 1), ("darker", -1)):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            frames = np.broadcast_to(grey[::order] + number, (8, 32, 32, 3))
            (folder / name / f"{number}.mp4").write_bytes(encode_video(np.ascontiguousarray(frames), 8))
    (folder / "darker/none.mp4").write_bytes(b"none")


def _segformer(folder: Path) -> None:
    """A small SegFormer in transformers' layout, with the first two of the scenes' four classes."""
    import transformers

    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, id2label={0: "circle", 1: "square"},
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def _segmenter(file: Path) -> None:
    """UperNet on a small encoder under the names of EVA-02's released files, for the four classes of the scenes."""
    from vfm_eva.dense.segment.model import build_upernet
    from vfm_eva.dense.segment.stages import UperNetSegmentation

    settings = UperNetSegmentation(layers=[0, 0, 1, 1], channels=8)
    model = build_upernet(settings, build_vision("eva02_pico_patch8_32", num_classes=0, seed=0), 4, frozen=False)
    encoder = model.encoder.visual.state_dict()
    weights = {f"backbone.{key}": value for key, value in encoder.items() if not key.startswith(("norm", "fc_norm"))}
    for key, value in model.head.state_dict().items():
        name = re.sub(r"^resample\.(\d)", lambda found: f"backbone.fpn{int(found[1]) + 1}", key)
        weights[name.replace("decode.", "decode_head.").replace("auxiliary.", "auxiliary_head.")] = value
    torch.save({"state_dict": weights}, file)


def _detector(file: Path) -> None:
    """A detector on a small encoder under the names of EVA-02's released files, for the four classes of the scenes."""
    from released_detector import official_name
    from vfm_eva.dense.detect.checkpoint import build_detector
    from vfm_eva.dense.detect.settings import DetectorSettings

    stages = yaml.safe_load((RECIPES / "every_stage.yaml").read_text())["stages"]
    (settings,) = [stage["detector"] for stage in stages if stage["kind"] == "eva.import_detector"]
    encoder = build_vision("eva02_pico_patch8_32", num_classes=0, seed=0)
    model = build_detector(encoder, 4, DetectorSettings.model_validate(settings))
    weights = {official_name(key): value for key, value in model.head.state_dict().items()}
    weights |= {f"backbone.net.{key}": value for key, value in encoder.state_dict().items() if "norm." not in key[:8]}
    torch.save({"model": weights}, file)


def _add_vae(folder: Path) -> None:
    """The generator now denoises latents, of which there are as many channels as of pixels."""
    import diffusers

    diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
    ).save_pretrained(folder / "vae")


def _crawl(folder: Path) -> None:
    """What a crawl says of two pages, and what came of a download."""
    for number in range(2):
        links = [{"path": "IMG@/src", "url": f"{number}.jpg", "alt": "a red circle"}]
        envelope = {
            "WARC-Header-Metadata": {"WARC-Target-URI": "https://example.org/"},
            "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": links}}},
        }
        said = json.dumps({"Envelope": envelope})
        head = f"WARC/1.0\r\nWARC-Type: metadata\r\nContent-Type: application/json\r\nContent-Length: {len(said)}"
        with (folder / "crawl.warc.wat").open("a", newline="") as file:
            file.write(f"{head}\r\n\r\n{said}\r\n\r\n")
    url, caption = ["https://example.org/0.jpg"], ["a red circle"]
    outcome = {"url": url, "caption": caption, "status": ["failed_to_download"], "error_message": ["timed out"]}
    pq.write_table(pa.table(outcome), folder / "downloads.parquet")


def _annotated(folder: Path, members: dict[str, bytes], keys: list[str]) -> None:
    """Pictures with two panoptic segments each, and what a model might have found in them."""
    for place in ("pictures", "segments", "maps"):
        (folder / place).mkdir(parents=True)
    images, annotations, found = [], [], []
    for number, key in enumerate(keys, start=1):
        (folder / f"pictures/{number}.jpg").write_bytes(members[f"{key}.jpg"])
        labels = np.zeros((32, 32), dtype=np.uint8)
        labels[4 : 20 + number, 6:22] = 1
        Image.fromarray(labels).save(folder / f"maps/{number}.png")
        Image.fromarray(np.stack([labels + 1, *[np.zeros_like(labels)] * 2], axis=-1)).save(
            folder / f"segments/{number}.png"
        )
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 32, "height": 32})
        segments = [{"id": one, "category_id": one} for one in (1, 2)]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        found.append({"image_id": number, "category_id": 2, "bbox": [6, 4, 16, 16], "score": number / 10})
    names = [("background", 0), ("shape", 1)]
    categories = [{"id": one, "name": name, "isthing": thing} for one, (name, thing) in enumerate(names, start=1)]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "segments.json").write_text(json.dumps(record))
    (folder / "found.json").write_text(json.dumps(found))


def _class_folders(folder: Path, members: dict[str, bytes], keys: list[str]) -> None:
    for index, key in enumerate(keys):
        place = folder / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{key}.jpg").write_bytes(members[f"{key}.jpg"])


def _break_a_sample(tar: Path, key: str) -> None:
    """Spoils an image in a tar, so that bad samples and their counts take part."""
    with tarfile.open(tar) as opened:
        start = opened.getmember(f"{key}.jpg").offset_data
    with tar.open("r+b") as file:
        file.seek(start)
        file.write(b"no picture")


def contents(store: Path) -> dict[str, Any]:
    """Every file of every artifact, byte for byte; all but times and speed."""
    files = sorted(path for path in store.glob("*-*/**/*") if path.is_file() and not path.match(PANELS_OF_TIMES))
    return {
        _name(path.relative_to(store)): _manifest(path) if path.name == "manifest.json" else path.read_bytes()
        for path in files
    }


def _name(path: Path) -> str:
    """Kept features are called by their model and, behind it, by the times of the pictures' files."""
    return str(path.with_name(path.name.rpartition("-")[0]) if path.parent.name == "features" else path)


def _manifest(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text())
    record["numbers"] = {name: value for name, value in record["numbers"].items() if not name.startswith(SPEED)}
    record["files"] = {name: facts for name, facts in record["files"].items() if not Path(name).match(PANELS_OF_TIMES)}
    return {key: value for key, value in record.items() if key not in TIMES}


def events(store: Path) -> list[bytes]:
    """What has happened on a store, which does not depend on how busy the machine is."""
    file = store / "runs/every_stage/events.jsonl"
    return file.read_bytes().splitlines() if file.exists() else []


def stage_at(store: Path) -> str:
    """The stage that the last event is of."""
    names = [event.partition(b'"stage": "')[2].partition(b'"')[0].decode() for event in events(store)]
    return next((name for name in reversed(names) if name), "")


def stop_at_random(folder: Path, processes: int, count: int, chance: random.Random) -> Iterator[str]:
    """Stops runs of a store by random signals at random moments: after a number of events, and a little later.

    Gives a store when a run on it ended before its signal; the next signals fall on a new one. The last is given as it
    is.
    """
    most, number = len(events(folder / f"unbroken-{processes}")) // 3, 0
    while count:
        store = folder / f"stopped-{processes}-{number}"
        # After one event at least: while Python starts, nobody handles a signal.
        wanted, delay = len(events(store)) + chance.randrange(1, most), chance.uniform(0, 0.5)
        process = run(folder, store.name, processes=processes)
        while process.poll() is None and len(events(store)) < wanted:
            time.sleep(0.02)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            how = chance.choice(list(ENDS))
            process.send_signal(how)
            out, err = output(process)
            print(f"{how.name} in {stage_at(store)}: exit code {process.returncode}")
            assert process.returncode in ENDS[how], out[-2000:] + err[-4000:]
            count -= 1
            if process.returncode:
                continue
        else:
            finish(process)
        yield store.name
        number += 1
    yield f"stopped-{processes}-{number}"


def finish_together(folder: Path, store: str, processes: int) -> None:
    """Two runs at once on one store: they wait for one another's stages, and both end well."""
    both = [run(folder, store, processes=processes) for _ in range(2)]
    for process in both:
        finish(process)


def test_every_kind_of_stage_is_in_the_recipe() -> None:
    listed = checked(call(*VFM, "stages", cwd=ROOT)).stdout
    kinds = {line.split()[0] for line in listed.splitlines() if line[1:2].strip()} - {"kind"}
    assert {"shapes.pool", "data.pairs", "clip.train", "eval.knn"} <= kinds
    used = {stage["kind"] for stage in yaml.safe_load((RECIPES / "every_stage.yaml").read_text())["stages"]}
    assert kinds == used | {"diva.predict", "diva.law"}  # evaluations, over several seeds


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=LONG)])
def test_runs_stopped_at_random_moments_and_finished_by_two_at_once_are_bit_identical(
    folder: Path, processes: int
) -> None:
    seed = int(os.environ.get("VFM_KILL_SEED", time.time()))
    print(f"VFM_KILL_SEED={seed}, {processes} processes")
    finish(run(folder, f"unbroken-{processes}", processes=processes))
    unbroken = contents(folder / f"unbroken-{processes}")
    for store in stop_at_random(folder, processes, NUM_KILLS, random.Random(seed)):
        finish_together(folder, store, processes)
        found = contents(folder / store)
        assert sorted(found) == sorted(unbroken)
        assert [name for name, content in unbroken.items() if found[name] != content] == []
        assert [path.name for path in (folder / store).iterdir() if path.suffix in {".part", ".work"}] == []
        assert (folder / store / "runs/every_stage/report.html").is_file()
        assert len(list((folder / store / "runs").glob("every_stage@*"))) == 1  # stopped or not, it is the same run
        shutil.rmtree(folder / store)


TWO_PROCESSES = """\
stages:
  - {kind: shapes.pool, name: pool, num_samples: 120, world: {image_size: 32}}
  - kind: clip.train
    name: clip
    model: ViT-Pico-8-32
    data: pool
    steps: 30
    global_batch_size: 32
    checkpoint: {every_steps: 3}
    runtime: {processes: 2}
"""


@LONG
def test_killed_parent_of_two_training_processes_leaves_no_orphans_and_the_next_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TWO_PROCESSES)
    finish(run(tmp_path, "unbroken", tmp_path / "r.yaml"))
    process = run(tmp_path, "killed", tmp_path / "r.yaml")
    while process.poll() is None and not list(tmp_path.glob("killed/.clip.train-*.work/step-*6")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finish(run(tmp_path, "killed", tmp_path / "r.yaml"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "unbroken")
    assert str(tmp_path) not in checked(call("ps", "-eo", "args", cwd=tmp_path)).stdout
