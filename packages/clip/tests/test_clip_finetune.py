"""`vfm finetune`: a CLIP model and a folder of pairs become a recipe, a tuned model, and the scores of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from vfm.cli import app
from vfm.interfaces import PairDataset, Report
from vfm.models import build_clip, build_vision, load_clip, save_clip, save_vision

SMALL = ["--steps", "2", "--batch-size", "4", "--lr", "1e-3"]


def finetune(*words: str) -> Result:
    return CliRunner().invoke(app, ["finetune", *words])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write sixteen pictures with captions, the same in class folders, a CLIP model and an encoder."""
    generator = np.random.default_rng(0)
    for number in range(16):
        name = ("dark", "light")[number % 2]
        pixels = generator.integers(0, 128, (40, 48, 3), np.uint8) + 127 * (number % 2)
        for folder in (Path("pairs"), Path("classes") / name):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{number}.png")
        (tmp_path / f"pairs/{number}.txt").write_text(f"a {name} picture, number {number}")
    save_clip(build_clip("ViT-Pico-8-32", seed=0), tmp_path / "model")
    save_vision(build_vision("vit_pico_patch8_32", seed=0), tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stages_of(file: Path) -> dict[str, dict[str, object]]:
    return {stage["name"]: stage for stage in yaml.safe_load(file.read_text())["stages"]}


def test_pairs_become_a_tuned_model_and_one_half_way_with_their_scores(here: Path) -> None:
    done = finetune("model", "pairs", "--val", "pairs", "--general", "classes", *SMALL)
    assert done.exit_code == 0, done.output
    made = here / "store/runs/finetune/artifacts"
    folders = here / "model", made / "tuned", made / "wise"
    states = [load_clip(folder).module.state_dict() for folder in folders]
    (key,) = [key for key in states[0] if key.endswith("visual.conv1.weight")]
    start, tuned, wise = (state[key] for state in states)
    assert not torch.equal(start, tuned)
    torch.testing.assert_close(wise, (start + tuned) / 2)
    for name in ("own", "kept"):
        assert stages_of(here / "finetune.yaml")[name]["models"] == ["model", "tuned", "wise"]
        assert {metric.model for metric in Report.load(made / name).metrics} == {"model", "tuned", "wise"}
    assert finetune("model", "pairs", *SMALL).exit_code == 0, "other options are another run of the name"
    assert "own" not in stages_of(here / "finetune.yaml")
    assert {run.name for run in (here / "store/runs").glob("finetune*")} == {"finetune", "finetune@1", "finetune@2"}


def test_without_other_data_nothing_is_evaluated_and_the_vision_tower_can_be_locked(here: Path) -> None:
    done = finetune("model", "pairs", "--lock", "--dry-run", "--recipe", "mine.yaml")
    assert done.exit_code == 0, done.output
    stages = stages_of(here / "mine.yaml")
    assert list(stages) == ["pool", "tuned", "wise"]
    assert stages["tuned"]["vision"] == {"trained": {"type": "frozen"}}
    assert not (here / "store").exists()


def test_an_earlier_result_is_tuned_again_under_a_name_of_its_own(here: Path) -> None:
    (here / "made").mkdir()
    (here / "model").rename(here / "made/wise")
    done = finetune("made/wise", "pairs", "--val", "pairs", "--dry-run", "--set", "tuned.seed=3", *SMALL)
    assert done.exit_code == 0, done.output
    assert "run it: vfm run finetune.yaml --set tuned.seed=3\n" in done.output
    stages = stages_of(here / "finetune.yaml")
    assert (stages["start"]["source"], stages["tuned"]["init"]) == ("made/wise", "start")
    assert stages["own"]["models"] == ["start", "tuned", "wise"]


def test_a_saved_dataset_in_this_folder_is_not_imported_again(here: Path) -> None:
    PairDataset.create(here / "val", num_samples=16)
    done = finetune("model", "pairs", "--val", "val", "--dry-run", *SMALL)
    assert done.exit_code == 0, done.output
    stages = stages_of(here / "finetune.yaml")
    assert "val" not in stages
    assert stages["own"]["data"] == "val"


def test_low_rank_changes_are_trained_and_merged(here: Path) -> None:
    done = finetune("model", "pairs", "--lora", "--rank", "2", "--lock", *SMALL)
    assert done.exit_code == 0, done.output
    assert stages_of(here / "finetune.yaml")["tuned"]["text"] == {"trained": {"type": "lora", "rank": 2}}
    start, tuned = (
        load_clip(f).module.state_dict() for f in (here / "model", here / "store/runs/finetune/artifacts/tuned")
    )
    moved = {name for name in start if not torch.equal(start[name], tuned[name])}
    assert moved
    assert not [name for name in moved if "resblocks" not in name and name != "logit_scale"]
    assert not [name for name in moved if name.startswith("visual.")]
    assert finetune("model", "pairs", "--lora", "--dry-run", "--recipe", "default.yaml").exit_code == 0
    assert stages_of(here / "default.yaml")["tuned"]["lr"] == 1e-4
    assert stages_of(here / "default.yaml")["tuned"]["vision"] == {"trained": {"type": "lora", "rank": 16}}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model", "pairs", "--rank", "4"], "rank 4 is the rank of lora: give both"),
        (["encoder", "pairs"], "encoder: expected a CLIP model, got an encoder without texts"),
        (["model", "nowhere"], "nowhere: no such file or folder"),
        (["model", "pairs", "--set", "tuned.stepz=3", "--dry-run"], "tuned.stepz: unknown key; did you mean 'steps'?"),
    ],
)
def test_mistakes_are_one_line(here: Path, words: list[str], line: str) -> None:
    done = finetune(*words, *SMALL)
    assert done.exit_code == 2
    assert line in done.output.replace("\n", " ")
    assert not (here / "finetune.yaml").exists()  # else the corrected command would be refused


def test_options_of_the_data_reach_both_sets_of_pairs(here: Path) -> None:
    (here / "train.csv").write_text(f"filepath\ttitle\n{here}/pairs/0.png\ta dark picture\n")
    data = ("train.csv", "--val", "train.csv", "--data-option", "image_root=/")
    done = finetune("model", *data, "--recipe", "options.yaml", "--dry-run")
    assert done.exit_code == 0, done.output
    pairs = [stage for stage in stages_of(here / "options.yaml").values() if stage["kind"] == "data.pairs"]
    assert [stage["image_root"] for stage in pairs] == ["/", "/"]
