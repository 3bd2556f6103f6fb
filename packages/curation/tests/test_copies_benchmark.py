"""The benchmark of copy detection runs, with a model too, and is skipped where there are no pictures."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vfm.data import write_tar
from vfm.models import build_clip, save_clip

FILE = Path(__file__).parents[1] / "benchmarks" / "copies.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("copies_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def image_file(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def test_tables_of_hashes_and_of_a_model(benchmark: ModuleType, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"{i:03d}", {"png": image_file(i), "txt": b"x"}) for i in range(25)])
    clip = save_clip(build_clip("ViT-Pico-8-32", seed=0), tmp_path / "clip")
    benchmark.main(["--quick", "--pictures", str(tmp_path / "a.tar"), "--clip", str(clip.path), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "copies.json").read_text())
    with_variants, without = (found["hashes"][kind] for kind in ("with variants", "without"))
    assert with_variants["pairs"] == 20 * 19 // 2
    assert len(with_variants["recall"]) == len(found["clip"]["recall"]) == 15
    assert with_variants["recall"]["mirrored"]["6"] == 1 > without["recall"]["mirrored"]["6"]
    assert found["clip"]["recall"]["grey"] <= 1
    assert (tmp_path / "copies.md").read_text().count("\n| ") > 30


def test_the_share_of_copies_in_the_cluster_of_their_original(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"{i:03d}", {"png": image_file(i), "txt": b"x"}) for i in range(40)])
    script = FILE.with_name("semantic_clusters.py")
    options = ["--pictures", tmp_path / "a.tar", "--clusters", "1", "5", "--out", tmp_path]
    subprocess.run([sys.executable, script, *options], check=True, capture_output=True)
    one, five = [line.split("|") for line in (tmp_path / "semantic_clusters.md").read_text().splitlines()[2:4]]
    assert {float(value) for value in one[2:-1]} == {100}
    assert 50 < float(five[-2]) <= float(five[2]) <= 100


def test_without_pictures_nothing_is_measured(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.main(["--pictures", str(tmp_path / "no.tar"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
