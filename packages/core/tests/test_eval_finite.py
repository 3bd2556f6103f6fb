"""Outputs of a model that are not finite are refused wherever they would become a number, a file or a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cli_world import run_here
from eval_world import NAMES, TINY_CLIP, ColourModel, labeled, pairs, png, pool, run_in
from vfm.base import UserError
from vfm.data import open_dataset
from vfm.eval import check_finite, encode_dataset, load_encoder
from vfm.eval.choices.stages import Choices, MmvpVlm
from vfm.eval.classify.stages import AttentiveProbe, Classify, FewShot, Knn, LinearProbe, ZeroShot
from vfm.eval.retrieval.stages import Retrieval
from vfm.interfaces import Artifact
from vfm.models import build_clip, build_vision, save_clip, save_vision, set_class_names
from vfm.plugin import ReadSettings


class Blind(ColourModel):
    """Sees NaN in every image that is mostly blue."""

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
        blue = torch.tensor([np.asarray(image).mean(axis=(0, 1)).argmax() == 2 for image in images])
        return super().encode_images(images, batch_size).masked_fill(blue[:, None], math.nan)


class Mute(ColourModel):
    """Returns NaN for every text about red."""

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        red = torch.tensor(["red" in text for text in texts])
        return super().encode_texts(texts, batch_size).masked_fill(red[:, None], math.nan)


class Scaled(ColourModel):
    """Has an infinite temperature."""

    def __post_init__(self) -> None:
        self.module.logit_scale = nn.Parameter(torch.tensor(1000.0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets; a CLIP model and a classifier, each with one infinite weight."""
    here = tmp_path_factory.mktemp("world")
    labeled(here / "labeled", 21)
    pool(here / "pool")
    pairs(here / "pairs")
    clip = build_clip(TINY_CLIP, seed=0)
    broken(clip.module)
    save_clip(clip, here / "clip")
    vision = build_vision("vit_pico_patch8_32", num_classes=7, seed=0)
    set_class_names(vision, NAMES)
    broken(vision)
    save_vision(vision, here / "classifier")
    (here / "blue.png").write_bytes(png("blue"))
    return here


@torch.no_grad()
def broken(module: nn.Module) -> None:
    first = next(
        param for name, param in module.named_parameters() if name.endswith("mlp.fc1.weight") or "c_fc" in name
    )
    first.view(-1)[0] = math.inf


ON_IMAGES = [
    ZeroShot(kind="eval.zero_shot", name="x", data="labeled", models=["m"]),
    Knn(kind="eval.knn", name="x", data="labeled", train="labeled", models=["m"]),
    LinearProbe(kind="eval.linear_probe", name="x", data="labeled", train="labeled", models=["m"]),
    FewShot(kind="eval.few_shot", name="x", data="labeled", train="labeled", models=["m"], shots=[1]),
    Retrieval(kind="eval.retrieval", name="x", data="pool", models=["m"]),
    MmvpVlm(kind="eval.mmvp_vlm", name="x", data="pairs", models=["m"]),
    Choices(kind="eval.choices", name="x", data="pairs", models=["m"]),
]


def refusal(world: Path, config, encoder, out: Path) -> str:
    inputs = {name: Artifact.load(world / name) for name in ("labeled", "pool", "pairs")}
    with pytest.raises(UserError) as raised:
        config.evaluate(run_in(out, **inputs).ctx, {"m": encoder})
    return str(raised.value)


@pytest.mark.parametrize("config", ON_IMAGES, ids=lambda config: config.kind)
def test_every_evaluation_refuses_image_features_with_nan(world, tmp_path, config):
    first = {"pairs": "pair1", "labeled": "0002", "pool": "0002"}[config.data]
    line = refusal(world, config, Blind(), tmp_path)
    assert line.startswith(f"m: expected finite outputs, got NaN or infinity for '{first}'")


@pytest.mark.parametrize("config", [ON_IMAGES[0], *ON_IMAGES[4:]], ids=lambda config: config.kind)
def test_every_evaluation_with_texts_refuses_text_features_with_nan(world, tmp_path, config):
    line = refusal(world, config, Mute(), tmp_path)
    assert line.startswith("m: expected finite outputs, got NaN or infinity for '")
    assert "red" in line


@pytest.mark.parametrize("config", ON_IMAGES[5:], ids=lambda config: config.kind)
def test_logits_of_an_infinite_temperature_are_refused(world, tmp_path, config):
    assert refusal(world, config, Scaled(), tmp_path).startswith("m: expected finite outputs")


@pytest.mark.parametrize(
    "config",
    [
        Classify(kind="eval.classify", name="x", data="labeled", models=["m"]),
        AttentiveProbe(kind="eval.attentive_probe", name="x", data="labeled", train="labeled", models=["m"]),
    ],
    ids=lambda config: config.kind,
)
def test_evaluations_of_vision_models_refuse_a_damaged_one(world, tmp_path, config):
    encoder = load_encoder(Artifact.load(world / "classifier"), torch.device("cpu"))
    assert "expected finite outputs, got NaN or infinity for '" in refusal(world, config, encoder, tmp_path)


def test_nothing_that_is_refused_is_cached(world, tmp_path):
    with pytest.raises(UserError, match="expected finite"):
        encode_dataset(
            run_in(tmp_path).ctx, open_dataset(Artifact.load(world / "labeled")), {"m": Blind()}, ReadSettings()
        )
    assert not list(world.rglob("features"))


@pytest.mark.parametrize("model", ["clip", "classifier"])
def test_commands_refuse_a_damaged_model_and_leave_no_file(world, tmp_path, model):
    image, data = world / "blue.png", world / "labeled"
    commands = [
        ("predict", world / model, image, *(("--classes", "red,blue") if model == "clip" else ())),
        ("embed", world / model, data, "--out", tmp_path / "e.parquet"),
        ("embed", world / model, data, "--out", tmp_path / "e.npy"),
        ("view", world / model, image, "--out", tmp_path / "view"),
    ]
    for words in commands:
        done = run_here(*words)
        assert done.code == 2, words
        (line,) = done.errors
        assert f"{world / model}: expected finite outputs, got NaN or infinity for '" in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_index_with_nan_is_refused_by_its_name(world, tmp_path):
    good = build_vision("vit_pico_patch8_32", seed=0)
    save_vision(good, tmp_path / "encoder")
    assert run_here("embed", tmp_path / "encoder", world / "labeled", "--out", tmp_path / "e.npy").code == 0
    vectors = np.load(tmp_path / "e.npy")
    vectors[3, 0] = math.nan
    np.save(tmp_path / "e.npy", vectors)
    (tmp_path / "e.npy.json").unlink()  # as a file that another program has made
    done = run_here("predict", tmp_path / "encoder", world / "blue.png", "--index", tmp_path / "e.npy")
    assert done.code == 2
    assert f"{tmp_path / 'e.npy'}: expected finite outputs, got NaN or infinity for '0003'" in done.err


def test_line_names_the_first_item_and_the_number_of_all():
    values = torch.ones(4, 2, 3)
    check_finite(values, "m", list("abcd"))
    values[1, 1, 1], values[3, 0, 0] = math.inf, math.nan
    with pytest.raises(UserError, match=r"m: expected finite .* for 'b' \(2 of 4 in its batch\)"):
        check_finite(values.numpy(), "m", list("abcd"))
    check_finite(torch.zeros(0, 3), "m", [])
    check_finite(torch.zeros(2, 0), "m", ["a", "b"])
    with pytest.raises(UserError, match=r"'x{200}\.\.\.'"):
        check_finite(torch.tensor([math.nan]), "m", ["x" * 300])
