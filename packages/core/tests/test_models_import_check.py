"""Imports are compared with transformers: a zoo of tiny models, and models that were changed after their import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vfm.base import UserError
from vfm.interfaces import Context, Event
from vfm.models import import_clip, import_vision
from vfm.models.interchange import hub_folders
from vfm.models.oracle.check import TOLERANCES, Origin, check_import
from vfm.models.stages import ImportClip, ImportVision

pytest.importorskip("transformers")
import_zoo = pytest.importorskip("import_zoo")
import_zoo_files = pytest.importorskip("import_zoo_files")


@pytest.fixture(scope="module", autouse=True)
def siglip_encoder() -> Iterator[None]:
    with import_zoo.tiny_siglip():
        yield


@pytest.mark.parametrize("number", range(len(import_zoo.ZOO)))
def test_no_model_of_the_zoo_is_wrong_in_silence(number: int, tmp_path: Path) -> None:
    configuration = import_zoo.ZOO[number]
    word, differences = import_zoo.outcome(configuration, tmp_path)
    assert word != "wrong", differences
    assert "\n" not in word
    assert differences or "config.json: " in word or str(tmp_path) in word


@pytest.mark.parametrize("entry", import_zoo_files.ZOO, ids=lambda entry: f"{entry.family} {entry.name}")
def test_no_file_or_folder_of_the_zoo_is_wrong_in_silence(entry: Any, tmp_path: Path) -> None:
    word, differences = import_zoo_files.outcome(entry, tmp_path)
    if entry.name.startswith(("nearest", "lanczos")):
        assert word.startswith("refused: ")
        assert "resized pixels differ from timm's by" in word
    else:
        assert word == "equal"
        assert differences["features"] <= 1e-6


def with_other_weights(model: Any) -> None:
    next(model.parameters()).data.mul_(1.5)


@pytest.mark.parametrize(
    ("family", "message"), [("timm file", "tokens differ from timm's by"), ("open_clip file", "features differ from")]
)
def test_a_file_whose_model_was_changed_after_the_import_is_an_error(family: str, message: str, tmp_path: Path) -> None:
    entry = next(entry for entry in import_zoo_files.ZOO if entry.family == family)
    settings = entry.write(entry.name, tmp_path)
    model: Any = import_vision(**settings) if family == "timm file" else import_clip(**settings)
    with_other_weights(getattr(model, "module", model))
    origin = Origin(family.removesuffix(" file"), settings["source"], settings["pretrained"])
    with pytest.raises(UserError, match=message):
        check_import(Context("m", tmp_path, tmp_path, {}), model, origin)


def test_the_folder_of_a_hub_encoder_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_zoo.Configuration("ViT", {}).save(tmp_path / "source")
    downloads: list[str] = []

    def from_folder(repo: str, file: str, **arguments: Any) -> str:
        downloads.append(file)
        if not (tmp_path / "source" / file).is_file():
            raise FileNotFoundError(file)
        return str(tmp_path / "source" / file)

    monkeypatch.setattr(hub_folders, "hf_hub_download", from_folder)
    ImportVision(name="model", source="hf-hub:org/vit").run(Context("model", tmp_path, tmp_path, {}))
    assert downloads.count("config.json") == 1


def saved(family: str, folder: Path) -> Path:
    """Save the first model of a family that has an image processor."""
    configurations = [entry for entry in import_zoo.ZOO if entry.family == family and entry.processor]
    configurations[0].save(folder)
    return folder


class Halved(nn.Module):
    """A GELU with half of its values, as a wrong activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x) / 2


def with_other_activation(model: Any) -> None:
    model.module.transformer.resblocks[0].mlp.gelu = Halved()


def with_other_mean(model: Any) -> None:
    model.preprocess = model.preprocess.model_copy(update={"mean": (0.5, 0.5, 0.5)})


def with_padding(model: Any) -> None:
    model.preprocess = model.preprocess.model_copy(update={"resize_mode": "squash"})


@pytest.mark.parametrize(
    ("change", "name"),
    [(with_other_activation, "text_features"), (with_other_mean, "pixels"), (with_padding, "resized_pixels")],
)
def test_a_change_after_the_import_is_an_error(change: Any, name: str, tmp_path: Path) -> None:
    model, origin = import_clip(str(saved("CLIP", tmp_path / "clip"))), Origin("transformers", str(tmp_path / "clip"))
    before = origin.differences(model)
    change(model)
    after = origin.differences(model)
    assert [key for key in after if after[key] > TOLERANCES[key]] == [name]
    assert all(value <= TOLERANCES[key] for key, value in before.items())
    context = Context("clip", tmp_path, tmp_path, {})
    with pytest.raises(UserError, match=rf"{name.replace('_', ' ')} differ from transformers' by") as caught:
        check_import(context, model, origin)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_another_epsilon_is_an_error(tmp_path: Path) -> None:
    model: Any = import_vision(str(saved("DINOv2", tmp_path)))
    model.blocks[1].norm1.eps = 1.0
    assert Origin("transformers", str(tmp_path)).differences(model)["tokens"] > TOLERANCES["tokens"]


@pytest.mark.parametrize(("kind", "family"), [(ImportClip, "CLIP"), (ImportVision, "ViT")])
def test_the_differences_reach_the_manifest_unless_switched_off(kind: Any, family: str, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    text = {} if family == "CLIP" else None  # with the vocabulary of CLIP's tokenizer
    import_zoo.Configuration(family, {}, text).save(tmp_path / "source")
    for compare in (True, False):
        events: list[Event] = []
        folder = tmp_path / str(compare)
        kind(name="model", source=source, compare=compare).run(Context("model", folder, folder, {}, events.append))
        values = [event.data["values"] for event in events if event.type == "metrics"]
        assert len(values) == compare
        assert all(value <= 1e-3 for value in (values or [{}])[0].values())
