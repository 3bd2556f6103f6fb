"""Fine-tuning: timm's layer decay and mixing, the loaded weights, heads for the same and for other classes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

from eva_toy import context
from vfm.data import FILTERS, BadSample, Sample, SampleDraw
from vfm.data.synthetic.stages import ShapesClasses
from vfm.interfaces import load_panels, load_plugins, stage_types
from vfm.models import build_vision, class_names_of, load_vision, save_vision, set_class_names, vision_preprocess
from vfm.plugin import AllWeights, LabeledDataset, Preflight, UserError, VisionCheckpoint
from vfm_eva import EvaFinetune
from vfm_eva.finetune.classifier import Classifier, LabeledImages, encoder_tower, layer_of_encoder
from vfm_eva.finetune.finetune import build_classifier, load_encoder_weights
from vfm_eva.finetune.labeled_images import MakeLabeled, seeded_global_generators

WORLD = {"image_size": 32, "shapes": ["circle", "square"], "colours": ["red", "blue"]}
ENCODERS = ["eva02_pico_patch8_32", "vit_pico_patch8_32", "eva02_mini_patch14_112"]


def stage(**changes: Any) -> EvaFinetune:
    """Return a configuration that trains in a second."""
    settings = {
        "name": "tuned",
        "encoder": "encoder",
        "data": "train",
        "steps": 4,
        "global_batch_size": 8,
        "log_every": 1,
        "runtime": {"device": "cpu"},
    }
    return EvaFinetune.model_validate(settings | changes)


def encoder(folder: Path, name: str = ENCODERS[0], seed: int = 0, **arguments: Any) -> VisionCheckpoint:
    """Save an encoder without the zeros and ones of a new model."""
    model = build_vision(name, seed=seed, **arguments)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return save_vision(model, folder)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> LabeledDataset:
    """Make a dataset of shapes and colours: four classes."""
    made = ShapesClasses.model_validate({"name": "train", "world": WORLD, "num_samples": 64})
    return made.run(context(tmp_path_factory.mktemp("train")))


def run(folder: Path, settings: dict[str, Any], **inputs: Any) -> VisionCheckpoint:
    return stage(**settings).run(context(folder, **inputs))


def losses(folder: Path) -> list[float]:
    lines = (folder / "artifact" / "metrics.jsonl").read_text().splitlines()
    return [line["train/loss"] for line in map(json.loads, lines) if line["split"] == "train"]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("global_pool", ["avg", "token"])
def test_learning_rates_and_weight_decay_are_timms(name: str, global_pool: str) -> None:
    model = build_vision(name, num_classes=3, global_pool=global_pool)
    peer = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.7
    )
    expected = {id(p): (g["lr_scale"], g["weight_decay"]) for g in peer for p in g["params"]}
    found = {}
    for group in Classifier(model, trained=AllWeights(layer_decay=0.7)).parameter_groups():
        decay = 0.05 if group.weight_decay is None else group.weight_decay
        found |= {id(p): (group.lr_scale, decay) for p in group.params}
    for (
        parameter
    ) in model.norm.parameters():  # EVA's rule: not a block's, so the head's; timm has it with the last block
        assert found.pop(id(parameter)) == (1.0, 0.0)
        assert expected.pop(id(parameter)) == (0.7, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[i]: pytest.approx(v) for i, v in found.items()} == {names[i]: v for i, v in expected.items()}
    assert found[id(model.head.weight)] == (1.0, 0.05)
    assert found[id(model.patch_embed.proj.weight)][0] == pytest.approx(0.7 ** (len(model.blocks) + 1))


def test_a_new_head_is_small_and_the_norm_of_single_tokens_is_dropped(tmp_path: Path) -> None:
    checkpoint = encoder(tmp_path)
    before = load_vision(checkpoint)
    model = build_classifier(stage(), checkpoint, ["a", "b", "c"])
    report = load_encoder_weights(checkpoint, model)
    assert report.dropped.keys() == {"fc_norm.weight", "fc_norm.bias"}
    assert torch.equal(model.fc_norm.weight, torch.ones(64))
    assert torch.equal(model.blocks[1].attn.proj.weight, before.blocks[1].attn.proj.weight)
    assert model.head.weight.std() < 1e-4
    assert model.blocks[1].drop_path1.drop_prob == pytest.approx(0.1)
    token = build_classifier(stage(global_pool="token"), checkpoint, ["a", "b", "c"])
    assert not load_encoder_weights(checkpoint, token).dropped
    assert torch.equal(token.norm.weight, before.fc_norm.weight)


def test_loaded_weights_have_the_encoders_features(tmp_path: Path) -> None:
    """Check that features at the same size and pooling are the encoder's, to the bit."""
    checkpoint = encoder(tmp_path, global_pool="token")
    model = build_classifier(stage(global_pool="token", drop_path=0.0), checkpoint, ["a", "b"])
    load_encoder_weights(checkpoint, model)
    images = torch.randn(2, 3, 32, 32)
    peer = load_vision(checkpoint)
    assert torch.equal(model.eval().forward_features(images), peer.eval().forward_features(images))


def test_positions_are_resampled_as_in_timm(tmp_path: Path) -> None:
    checkpoint = encoder(tmp_path)
    model = build_classifier(stage(image_size=64), checkpoint, ["a", "b"])
    report = load_encoder_weights(checkpoint, model)
    assert "pos_embed" in report.resized
    assert torch.equal(model.pos_embed, load_vision(checkpoint, image_size=64).pos_embed)
    assert vision_preprocess(model).image_size == 64


def test_the_stage_learns_and_keeps_names_size_and_crop(tmp_path: Path, train: LabeledDataset) -> None:
    settings = {"steps": 40, "lr": 3e-3, "ema_decay": 0.9}
    settings |= {"augmentation": {"rand_augment": None, "crop_scale": [0.8, 1.0]}}
    settings |= {"crop_pct": 0.9, "trained": {"freeze_patch_embed": False}, "global_batch_size": 16}
    found = run(tmp_path / "out", settings, encoder=encoder(tmp_path / "encoder"), train=train)
    assert np.mean(losses(tmp_path / "out")[-5:]) < 0.8 * losses(tmp_path / "out")[0]
    model = load_vision(found)
    assert class_names_of(model) == train.class_names
    assert vision_preprocess(model).crop_pct == 0.9
    assert found.num_classes == 4
    assert "Maps of the patches" in {panel.title for panel in load_panels(tmp_path / "out/artifact")}


@pytest.mark.parametrize("frozen", [True, False])
def test_the_patch_embedding_is_frozen_only_if_set(tmp_path: Path, train: LabeledDataset, frozen: bool) -> None:
    checkpoint = encoder(tmp_path / "encoder")
    settings = {"trained": {"freeze_patch_embed": frozen}, "lr": 1e-2, "ema_decay": None}
    found = run(tmp_path / "out", settings, encoder=checkpoint, train=train)
    before, after = load_vision(checkpoint), load_vision(found)
    assert torch.equal(before.patch_embed.proj.weight, after.patch_embed.proj.weight) == frozen
    assert not torch.equal(before.cls_token, after.cls_token) or not torch.equal(before.pos_embed, after.pos_embed)


def test_a_second_fine_tuning_keeps_the_head_only_for_the_same_classes(tmp_path: Path, train: LabeledDataset) -> None:
    first = run(tmp_path / "first", {"lr": 1e-2, "ema_decay": None}, encoder=encoder(tmp_path / "e"), train=train)
    weights = load_vision(first)
    same = build_classifier(stage(), first, train.class_names)
    assert not load_encoder_weights(first, same).dropped
    assert torch.equal(same.head.weight, weights.head.weight)
    assert torch.equal(same.fc_norm.weight, weights.fc_norm.weight), "a classifier's norm is kept"
    other = build_classifier(stage(), first, ["w", "x", "y", "z"])
    assert load_encoder_weights(first, other).dropped.keys() == {"head.weight", "head.bias"}
    assert other.head.weight.std() < 1e-4


def test_mixing_is_timms_of_neighbours_and_restores_global_generators() -> None:
    model = build_vision(ENCODERS[1], num_classes=3, seed=0).eval()
    task = Classifier(model, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    task.before_step(5)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    loss, _ = task(LabeledImages(images, labels))
    assert (np.random.get_state()[1] == before).all()
    order = [0, 2, 3, 1]  # timm mixes the first with the last
    with seeded_global_generators(SampleDraw.of(0, 5, -1).seed):
        mix = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=3)
        pixels, targets = mix(task.preprocess.pixels(images)[order], labels[order])
    expected = -(targets * F.log_softmax(model(pixels), dim=-1)).sum(dim=-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_mixing_the_loss_is_smoothed_cross_entropy() -> None:
    model = build_vision(ENCODERS[1], num_classes=3, seed=0).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    task = Classifier(model, label_smoothing=0.3)
    loss, metrics = task(LabeledImages(images, labels))
    logits = model(task.preprocess.pixels(images))
    targets = 0.7 * F.one_hot(labels, 3) + 0.1
    assert loss.item() == pytest.approx(-(targets * logits.log_softmax(-1)).sum(-1).mean().item(), rel=1e-5)
    assert metrics["accuracy"].item() == (logits.argmax(-1) == labels).float().mean().item()


def test_augmentation_is_timms_and_drawn_from_the_samples_seed(tmp_path: Path, train: LabeledDataset) -> None:
    preprocess = vision_preprocess(build_vision(ENCODERS[0]))
    notation = "rand-m9-mstd0.5-inc1"
    plain, augmented = (MakeLabeled.of(preprocess, (0.5, 1.0), 0.5, kind) for kind in (None, notation))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    sample = Sample("a", "a", _png(pixels), label=2)
    found = augmented(sample, SampleDraw(11, 0, 0))
    random.seed(99)
    assert torch.equal(augmented(sample, SampleDraw(11, 0, 0)).images, found.images)
    assert any(not torch.equal(augmented(sample, SampleDraw(seed, 0, 0)).images, found.images) for seed in range(3))
    grey = tuple(round(255 * value) for value in preprocess.mean)
    settings = {"translate_const": 14, "img_mean": grey, "interpolation": FILTERS["bicubic"]}
    with seeded_global_generators(11):
        cropped = Image.fromarray(plain(sample, SampleDraw(11, 0, 0)).images.permute(1, 2, 0).numpy())
        peer = rand_augment_transform(notation, settings)(cropped)
    assert (np.asarray(peer) == found.images.permute(1, 2, 0).numpy()).all()
    assert found.labels.item() == 2
    with pytest.raises(BadSample, match="missing_label"):
        plain(Sample("a", "a", sample.image), SampleDraw(0, 0, 0))


def test_all_operations_accept_the_largest_magnitude(train: LabeledDataset) -> None:
    """Check all operations: timm's posterize with zero bits would raise Pillow's ValueError."""
    make = MakeLabeled.of(vision_preprocess(build_vision(ENCODERS[0])), (1.0, 1.0), 0.0, "rand-m10-n15-p1.0-inc1")
    sample = Sample("a", "a", _png(np.full((32, 32, 3), 200, np.uint8)), label=0)
    assert [make(sample, SampleDraw(seed, 0, 0)).images.shape for seed in range(20)] == [(3, 32, 32)] * 20


def _png(pixels: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mixing", [{}, {"augmentation": {"mixup": 0.8, "cutmix": 1.0, "rand_augment": "rand-m5-n1"}}])
def test_an_interrupted_training_resumes_to_the_bit(
    tmp_path: Path, train: LabeledDataset, mixing: dict[str, Any]
) -> None:
    inputs = {"encoder": encoder(tmp_path / "e"), "train": train}
    settings = {"steps": 6, "checkpoint": {"every_steps": 2}, "ema_decay": 0.9, "drop_path": 0.3, **mixing}
    whole = run(tmp_path / "whole", settings, **inputs)

    class Cut(Exception):  # noqa: N818
        pass

    def stop(event: Any) -> None:
        if event.type == "metrics" and event.data["step"] == 5:
            raise Cut

    with pytest.raises(Cut):
        stage(**settings).run(context(tmp_path / "cut", stop, **inputs))
    resumed = run(tmp_path / "cut", settings, **inputs)
    files = [(found.path / "model.safetensors").read_bytes() for found in (whole, resumed)]
    assert files[0] == files[1]


def test_evaluations_score_the_head_during_training(tmp_path: Path, train: LabeledDataset) -> None:
    kinds = stage_types(load_plugins())
    evaluation = {"tasks": [{"kind": "eval.classify", "data": "train"}], "every_steps": 2}
    settings = stage().model_dump() | {"evaluation": evaluation}
    evaluated = EvaFinetune.model_validate(settings, context=kinds)
    evaluated.run(context(tmp_path / "out", encoder=encoder(tmp_path / "e"), train=train))
    lines = [json.loads(line) for line in (tmp_path / "out/artifact/metrics.jsonl").read_text().splitlines()]
    assert {key for line in lines for key in line} >= {"val/acc1", "val/mean_per_class_recall"}


def preflight(config: EvaFinetune, checkpoint: VisionCheckpoint, data: LabeledDataset | None = None) -> None:
    config.preflight(Preflight({}, {"encoder": checkpoint.path} | ({"train": data.path} if data else {})))


def test_preflight_accepts_valid_settings_and_refuses_others(tmp_path: Path, train: LabeledDataset) -> None:
    checkpoint = encoder(tmp_path / "e")
    preflight(stage(image_size=48), checkpoint, train)
    with pytest.raises(UserError, match="image_size must be a multiple of the encoder's patch size 8, got 36"):
        preflight(stage(image_size=36), checkpoint)
    with pytest.raises(UserError, match=r"expected timm's notation.*got 'rund-m9'"):
        preflight(stage(augmentation={"rand_augment": "rund-m9"}), checkpoint)
    for name in ("resnet18", "repvit_m0_9"):  # the second takes no drop_path_rate
        other = save_vision(build_vision(name, num_classes=0), tmp_path / name)
        with pytest.raises(UserError, match=r"^\w+: \w+ has no patch tokens; expected a vision transformer$"):
            preflight(stage(), other)
    with pytest.raises(ValidationError, match="expected even micro-batches, got 3"):
        stage(augmentation={"mixup": 0.8}, micro_batch_size=3)
    with pytest.raises(ValidationError, match="expected even micro-batches, got 1"):
        stage(augmentation={"mixup": 0.8}, global_batch_size=8, runtime={"processes": 8})
    with pytest.raises(ValidationError, match="smaller value first"):
        stage(augmentation={"crop_scale": [1.0, 0.08]})
    with pytest.raises(ValidationError, match="greater than 0"):
        stage(augmentation={"crop_scale": [0.0, 1.0]})


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_tokens_before_the_blocks_have_the_rate_of_timm(name: str) -> None:
    model = build_vision(name, num_classes=3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales: dict[str, float] = {}
    for group in param_groups_layer_decay(model, layer_decay=0.7):
        scales |= {names[id(parameter)]: group["lr_scale"] for parameter in group["params"]}
    tower = encoder_tower(AllWeights(layer_decay=0.7), model, "blocks", layer_of_encoder)
    layers = tower.layers(model)
    ours = {name: 0.7 ** (len(layers) - 1 - number) for number, names in enumerate(layers) for name in names}
    for name, scale in scales.items():
        if not name.startswith("norm."):  # EVA's code counts it with the head, timm with the last block
            assert ours.get(name, 1.0) == pytest.approx(scale), name


@pytest.mark.parametrize("num_classes", [0, 2, 5])
def test_a_distilled_encoder_starts_a_classifier(num_classes: int, tmp_path: Path) -> None:
    model = build_vision("deit_tiny_distilled_patch16_224", num_classes=num_classes, depth=1, img_size=32)
    if num_classes:
        set_class_names(model, [str(number) for number in range(num_classes)])
    checkpoint = save_vision(model, tmp_path)
    classifier = build_classifier(stage(global_pool="token"), checkpoint, ["0", "1"])
    load_encoder_weights(checkpoint, classifier)
    assert torch.equal(classifier.dist_token, model.dist_token)
    equal = torch.equal(classifier.head_dist.weight, model.head_dist.weight) if num_classes == 2 else False
    assert equal == (num_classes == 2)
