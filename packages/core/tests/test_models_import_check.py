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
from vfm.models.interchange.import_check import TOLERANCES, check_import, differences_to_transformers
from vfm.models.stages import ImportClip, ImportVision

pytest.importorskip("transformers")
import_zoo = pytest.importorskip("import_zoo")


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
    model = import_clip(str(saved("CLIP", tmp_path / "clip")))
    before = differences_to_transformers(model, tmp_path / "clip")
    change(model)
    after = differences_to_transformers(model, tmp_path / "clip")
    assert [key for key in after if after[key] > TOLERANCES[key]] == [name]
    assert all(value <= TOLERANCES[key] for key, value in before.items())
    context = Context("clip", tmp_path, tmp_path, {})
    with pytest.raises(UserError, match=rf"{name.replace('_', ' ')} differ from transformers' by") as caught:
        check_import(context, model, tmp_path / "clip")
    assert "\n" not in str(caught.value)


def test_an_encoder_of_another_epsilon_is_an_error(tmp_path: Path) -> None:
    model: Any = import_vision(str(saved("DINOv2", tmp_path)))
    model.blocks[1].norm1.eps = 1.0
    assert differences_to_transformers(model, tmp_path)["tokens"] > TOLERANCES["tokens"]


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
