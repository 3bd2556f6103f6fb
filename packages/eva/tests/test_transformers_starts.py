"""Encoders of transformers as teachers and starts, and what the preflight knows of encoders that do not exist yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

import eva_toy
from eva_toy import STUDENT, context
from vfm.cli import app
from vfm.data.synthetic.stages import ShapesClasses, ShapesScenes
from vfm.models.stages import ImportVision
from vfm.plugin import AnnotatedImages, LabeledDataset, Pool, Preflight, Stage, UserError, VisionCheckpoint
from vfm_eva import EvaFinetune, EvaPretrain, EvaTargets
from vfm_eva.dense.detect.stages import EvaDetect
from vfm_eva.dense.segment.stages import EvaSegment
from vfm_eva.video.stages import EvaVideo

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
MLP = {"intermediate_size": 48}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTModel": ("ViTConfig", MLP),
    "Dinov2Model": ("Dinov2Config", {"mlp_ratio": 2}),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**MLP, "num_register_tokens": 2}),
    "SiglipVisionModel": ("SiglipVisionConfig", MLP),
    "CLIPVisionModel": ("CLIPVisionConfig", MLP),
}
SHORT = {"steps": 2, "global_batch_size": 4, "log_every": 1, "runtime": {"device": "cpu"}}
DETECTOR = {
    "image_size": 32,
    "channels": 16,
    "masks": False,
    "proposals": {"num_convs": 1, "num_samples": 32, "before_nms": 60, "num_proposals": 20},
    "cascade": {"num_rois": 16, "num_convs": 1, "hidden": 16},
}
FEATURES = {"projected": False}


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny model with random weights in transformers' layout."""
    config, settings = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = getattr(transformers, request.param)(getattr(transformers, config)(**SHAPE, **settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> VisionCheckpoint:
    return ImportVision(name="encoder", source=str(source)).run(context(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return eva_toy.make_pool(tmp_path_factory.mktemp("pool"), 16)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> LabeledDataset:
    stage = ShapesClasses(name="classes", num_samples=16)
    return stage.run(context(tmp_path_factory.mktemp("classes")))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    stage = ShapesScenes(name="scenes", num_samples=8, max_objects=2)
    return stage.run(context(tmp_path_factory.mktemp("scenes")))


def student(**changes: Any) -> EvaPretrain:
    return EvaPretrain.model_validate(
        {"name": "eva", "data": "pool", "teacher": "encoder", "model": STUDENT, "target": FEATURES, **SHORT, **changes}
    )


def finetuned(**changes: Any) -> EvaFinetune:
    return EvaFinetune.model_validate({"name": "tuned", "encoder": "encoder", "data": "classes", **SHORT, **changes})


def detector(**changes: Any) -> EvaDetect:
    settings = {"name": "detect", "encoder": "encoder", "data": "scenes", "detector": DETECTOR, **SHORT, **changes}
    return EvaDetect.model_validate(settings)


def test_it_teaches_and_starts_trainings(
    encoder: VisionCheckpoint, pool: Pool, classes: LabeledDataset, scenes: AnnotatedImages, tmp_path: Path
) -> None:
    inputs = {"encoder": encoder, "pool": pool, "classes": classes, "scenes": scenes}
    known = Preflight({}, {name: artifact.path for name, artifact in inputs.items()})
    for stage in (student(), finetuned(), detector()):
        stage.preflight(known)
        assert stage.run(context(tmp_path / stage.name, **inputs)).path.is_dir()


def test_a_preflight_passes_before_the_import(source: Path) -> None:
    planned = Preflight({"encoder": ImportVision(name="encoder", source=str(source))}, {})
    for stage in (student(), finetuned(), detector()):
        stage.preflight(planned)


NO_PATCHES = ImportVision(name="encoder", source="convnext_atto", pretrained="none")
VIT = ImportVision(name="encoder", source="vit_tiny_patch16_224", pretrained="none")


@pytest.mark.parametrize(
    "stage",
    [
        student(),
        EvaTargets.model_validate({"name": "stored", "data": "pool", "teacher": "encoder", "grid": (4, 4)}),
        detector(),
        EvaSegment.model_validate({"name": "segment", "encoder": "encoder", "data": "scenes", **SHORT}),
        EvaVideo.model_validate({"name": "video", "encoder": "encoder", "data": "videos", **SHORT}),
    ],
    ids=lambda stage: stage.name,
)
def test_an_encoder_without_patches_is_refused_before_its_import(stage: Stage) -> None:
    with pytest.raises(UserError) as caught:
        stage.preflight(Preflight({"encoder": NO_PATCHES}, {}))
    assert "\n" not in str(caught.value)


def test_a_layer_that_a_teacher_lacks_is_refused_before_its_import() -> None:
    planned = Preflight({"encoder": VIT}, {})
    student(target={**FEATURES, "layer": 11}).preflight(planned)
    with pytest.raises(UserError, match=r"teacher 'encoder': .*layer 12 is not one of its 12 blocks"):
        student(target={**FEATURES, "layer": 12}).preflight(planned)


def test_plan_check_refuses_what_a_run_would_refuse(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "stages:\n"
        "  - {kind: shapes.pool, name: pool, num_samples: 8}\n"
        "  - {kind: models.vision, name: teacher, source: convnext_atto, pretrained: none}\n"
        "  - {kind: eva.pretrain, name: eva, data: pool, teacher: teacher, model: eva02_pico_patch8_32, steps: 2}\n"
    )
    command = ["plan", str(recipe), "--store", str(tmp_path / "store")]
    assert CliRunner().invoke(app, command).exit_code == 0
    refused = CliRunner().invoke(app, [*command, "--check"])
    assert refused.exit_code == 2
    assert "eva: teacher 'teacher': ConvNeXt: ConvNeXt has no patch tokens" in refused.stderr
