"""`vfm distill`: a flat folder of pictures and two names become a recipe, an encoder and a probe."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from vfm.cli import app
from vfm.interfaces import Artifact, VisionCheckpoint
from vfm.models import build_vision, save_vision

TEACHER, STUDENT = "vit_pico_patch8_32", "eva02_pico_patch8_32"
PHOTOGRAPHS = Path(__file__).parents[4] / "shared/data/flickr8k-dev.tar"
SMALL = ["--steps", "2", "--batch-size", "8"]


def distill(*words: object) -> Result:
    return CliRunner().invoke(app, ["distill", *map(str, words)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write 200 pictures in one folder, labelled ones in two, and a teacher."""
    generator = np.random.default_rng(0)
    for number in range(200):
        places = [Path("pictures")]
        if number < 16:
            places.append(Path("labelled", ("train", "test")[number // 8], ("dark", "light")[number % 2]))
        pixels = generator.integers(0, 128, (40, 48, 3), np.uint8) + 127 * (number % 2)
        for place in places:
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / place / f"{number}.png")
    save_vision(build_vision(TEACHER, seed=0, num_classes=0), tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_flat_folder_becomes_an_encoder_and_a_probe(here: Path) -> None:
    words = ["pictures", "--teacher", "teacher", "--student", STUDENT, *SMALL]
    done = distill(*words, "--probe", "labelled/test", "--train", "labelled/train")
    assert done.exit_code == 0, done.output
    assert "lp_acc1" in done.output or "linear_probe" in done.output
    stages = {stage["name"]: stage for stage in yaml.safe_load((here / "distill.yaml").read_text())["stages"]}
    assert stages["student"]["target"] == {"projected": False}
    assert stages["student"]["mask"] == {"ratio": 0}
    assert stages["linear_probe"]["models"] == ["student", "untrained", "teacher"]
    (weights,) = (here / "store/runs").glob("distill@1/artifacts/student/masked_modelling.safetensors")
    assert isinstance(Artifact.load(weights.parent), VisionCheckpoint)
    longer = [*words, "--steps", "3"]  # another recipe under the same name
    assert distill(*longer).exit_code == 0
    assert sorted(run.name for run in (here / "store/runs").glob("distill@*")) == ["distill@1", "distill@2"]
    with (here / "distill.yaml").open("a") as file:
        file.write("# mine\n")
    refused = distill(*longer)
    assert refused.exit_code == 2
    assert "is not as a command wrote it" in refused.output
    assert (here / "distill.yaml").read_text().endswith("# mine\n")


def test_a_network_without_patches_is_taught_by_its_feature_map_and_its_pooled_feature(here: Path) -> None:
    probe = ["--probe", "labelled/test", "--train", "labelled/train", "--image-size", "32", *SMALL]
    done = distill("pictures", "--teacher", "teacher", "--student", "mobilenetv3_small_050", *probe)
    assert done.exit_code == 0, done.output
    stages = {stage["name"]: stage for stage in yaml.safe_load((here / "distill.yaml").read_text())["stages"]}
    taught = {"teacher": "teacher", "target": {"projected": False}, "class_weight": 1.0}
    assert stages["student"]["teachers"] == [taught]
    assert stages["untrained"]["image_size"] == 32
    (weights,) = (here / "store/runs").glob("distill@1/artifacts/student/model.safetensors")
    assert Artifact.load(weights.parent).image_size == 32  # type: ignore[attr-defined]
    words = ["pictures", "--teacher", "teacher", "--student", str(weights.parent), *SMALL, "--recipe", "again.yaml"]
    assert distill(*words).exit_code == 0
    again = {stage["name"]: stage for stage in yaml.safe_load((here / "again.yaml").read_text())["stages"]}
    assert again["student"]["teachers"] == [taught]


def test_a_student_with_weights_starts_from_them(here: Path) -> None:
    done = distill("pictures", "--teacher", "teacher", "--student", "start=teacher", "--dry-run", *SMALL)
    assert done.exit_code == 0, done.output
    assert not (here / "store").exists()
    stages = {stage["name"]: stage for stage in yaml.safe_load((here / "distill.yaml").read_text())["stages"]}
    assert stages["student"]["start"] == "start"
    assert "model" not in stages["student"]


def test_an_earlier_student_teaches_under_a_name_of_its_own(here: Path) -> None:
    (here / "made").mkdir()
    (here / "teacher").rename(here / "made/student")
    probe = ["--probe", "labelled/test", "--train", "labelled/train"]
    done = distill("pictures", "--teacher", "made/student", "--student", STUDENT, *probe, "--dry-run", *SMALL)
    assert done.exit_code == 0, done.output
    stages = {stage["name"]: stage for stage in yaml.safe_load((here / "distill.yaml").read_text())["stages"]}
    assert stages["knn"]["models"] == ["student", "untrained", "teacher"]
    assert stages["student"]["target"] == {"projected": False}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--student", STUDENT, "--probe", "labelled/test"], "give both --probe and --train"),
        (["--student", "eva02_pico_patch8_33"], "did you mean"),
    ],
)
def test_mistakes_are_one_line(here: Path, words: list[str], line: str) -> None:
    done = distill("pictures", "--teacher", "teacher", *words, *SMALL)
    assert done.exit_code == 2
    assert line in done.output.replace("\n", " ")
    assert "Traceback" not in done.output
    assert not (here / "distill.yaml").exists()  # else the corrected command would be refused


def test_a_small_learning_rate_is_the_schedules_end_too(here: Path) -> None:
    words = ["pictures", "--teacher", "teacher", "--student", STUDENT, "--lr", "1e-6", "--dry-run"]
    assert distill(*words).exit_code == 0
    stages = yaml.safe_load((here / "distill.yaml").read_text())["stages"]
    assert float(stages[-1]["schedule"]["min_lr"]) == 1e-6


def test_columns_with_unusual_names_are_recognised(here: Path) -> None:
    rows = [f"{number},pictures/{number}.png,ein Hund" for number in range(200)]
    (here / "table.csv").write_text("\n".join(["Nr,Bild,Beschreibung", *rows]))
    done = distill("table.csv", "--teacher", "teacher", "--student", STUDENT, "--dry-run", *SMALL)
    assert done.exit_code == 0, done.output
    images = yaml.safe_load((here / "distill.yaml").read_text())["stages"][0]
    assert images == {"kind": "data.images", "name": "images", "path": "table.csv", "image_key": "Bild"}


def test_the_folder_of_a_table_s_images_is_found(here: Path) -> None:
    (here / "table.csv").write_text("image,caption\n" + "".join(f"{number}.png,ein Hund\n" for number in range(200)))
    done = distill("table.csv", "--teacher", "teacher", "--student", STUDENT, "--dry-run", *SMALL)
    assert done.exit_code == 0, done.output
    images = yaml.safe_load((here / "distill.yaml").read_text())["stages"][0]
    assert images == {"kind": "data.images", "name": "images", "path": "table.csv", "image_root": "pictures"}


@pytest.mark.skipif(not PHOTOGRAPHS.is_file(), reason="needs the shared photographs")
def test_200_real_photographs_in_a_flat_folder_become_an_encoder_and_a_probe(here: Path) -> None:
    with tarfile.open(PHOTOGRAPHS) as tar:
        texts = {Path(member.name).stem: member for member in tar if member.name.endswith(".txt")}
        pictures = [member for member in tar if member.name.endswith(".jpg")]
        for number, member in enumerate(pictures[:232]):
            stem, image = Path(member.name).stem, tar.extractfile(member).read()
            folder = Path("photographs")
            if number >= 200:
                caption = tar.extractfile(texts[stem]).read().decode()
                folder = Path("seen", ("train", "test")[number % 2], "dog" if "dog" in caption else "other")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stem}.jpg").write_bytes(image)
    words = ["photographs", "--teacher", "teacher", "--student", STUDENT, *SMALL]
    done = distill(*words, "--probe", "seen/test", "--train", "seen/train")
    assert done.exit_code == 0, done.output
    assert {"lp_acc1", "knn_acc1"} <= set(done.output.split())
