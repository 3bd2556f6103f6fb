"""Files of weights of other trainers: the architecture is found, and the word for commands loads the same tensors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch

from cli_world import run_here
from peer_models import MODELS, whole_module
from vfm.base import UserError
from vfm.flow.requests.inputs import model_input
from vfm.models import import_clip, import_vision
from vfm.models.interchange.descriptions import describe_folder, describe_weights
from vfm.models.interchange.timm_names import timm_architecture
from vfm.models.weights import load_state_dict

ARCHITECTURES = {
    "timm: checkpoint-0.pth.tar": "resnet10t",
    "timm: model_best.pth.tar": "resnet10t",
    "timm: safetensors": "vit_tiny_patch16_224",
    "torch: state dict, DistributedDataParallel": "resnet18",
    "torch: state dict": "convnext_atto",
    "Lightning: last.ckpt": "resnet18",
    "open_clip: epoch_1.pt": "ViT-Pico-8-32",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_word_of_a_file_loads_its_tensors(name: str, tmp_path: Path) -> None:
    file = MODELS[name](tmp_path)
    description = describe_weights(str(file))
    assert description.problems == []
    assert description.model == f"{ARCHITECTURES[name]},{file}"
    stage = model_input(description.model).stage
    assert stage
    load = import_clip if stage["kind"] == "models.clip" else import_vision
    model = load(stage["source"], stage["pretrained"])
    loaded = getattr(model, "module", model).state_dict()
    saved = load_state_dict(file)
    assert set(saved) == set(loaded)
    assert all(torch.equal(value, saved[key]) for key, value in loaded.items())


def test_facts_of_a_trainer_are_shown(tmp_path: Path) -> None:
    file = MODELS["timm: checkpoint-0.pth.tar"](tmp_path)
    done = run_here("doctor", file)
    assert "architecture: resnet10t of timm, as the file says" in done.out
    assert "epoch: 0" in done.out
    assert f"next: vfm eval resnet10t,{file} --data digits" in done.out


@pytest.mark.parametrize("name", ["open_clip: folder for the hub", "timm: save_for_hf", "transformers: CLIPModel"])
def test_folders_of_models_are_their_own_word(name: str, tmp_path: Path) -> None:
    folder = MODELS[name](tmp_path)
    description = describe_folder(str(folder))
    assert description
    assert (description.model, description.problems) == (str(folder), [])


def test_what_is_no_model_is_a_line(tmp_path: Path) -> None:
    assert "holds objects other than tensors" in describe_weights(str(whole_module(tmp_path))).problems[0]
    torch.save({"a": torch.zeros(2, 3)}, tmp_path / "other.pt")
    assert describe_weights(str(tmp_path / "other.pt")).problems == [
        "no architecture of timm has these shapes; give its name: NAME,FILE"
    ]
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    assert "not readable as a checkpoint" in describe_weights(str(tmp_path / "cut.safetensors")).problems[0]


def test_another_width_of_the_same_layers_is_not_taken_for_it() -> None:
    tensors = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=11).state_dict()
    assert timm_architecture(tensors) != "vit_tiny_patch16_224"


def test_no_weights_are_random_ones_of_a_seed_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.file_download", None)
    first, second = (import_vision("resnet10t", "none").state_dict() for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    clip = import_clip("ViT-Pico-8-32", "none").module
    assert float(clip.visual.conv1.weight.detach().std()) > 0
    with pytest.raises(UserError, match="'resnet10x' is not an architecture of timm"):
        import_vision("resnet10x", "none")
