"""The stage `eva.pretrain`: its preflight, that it learns and resumes, and its encoder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn import functional as F

from eva_toy import STUDENT, context, losses, make_teacher, run, stage
from vfm.data import ImageTransform, TrainingData, open_dataset
from vfm.models import (
    build_clip,
    build_vision,
    init_vision_tower,
    load_clip,
    load_vision,
    save_vision,
)
from vfm.plugin import (
    Artifact,
    Event,
    Pool,
    Preflight,
    UserError,
    VisionCheckpoint,
)
from vfm.train import fit
from vfm_eva import BlockMask, EvaPretrain
from vfm_eva.pretrain.building import build_student
from vfm_eva.pretrain.masks import MaskedData, Masks
from vfm_eva.pretrain.pretrain import build_task, teacher_in_bf16
from vfm_eva.targets.images import MakeViews
from vfm_eva.targets.teacher import Teacher, load_teacher


def preflight(config: EvaPretrain, teacher: Artifact | None = None) -> None:
    config.preflight(Preflight({}, {"teacher": teacher.path} if teacher else {}))


def encoder_teacher(folder: Path, name: str = "vit_pico_patch8_32", **arguments: Any) -> VisionCheckpoint:
    return save_vision(build_vision(name, seed=0, **arguments), folder)


def test_preflight_accepts_valid_settings(teacher):
    checkpointed = {"grad_checkpointing": True, "student": {"drop_path": 0.1}}
    for changes in [{}, {"mask": {"type": "random"}}, {"target": {"layer": 0}}, checkpointed]:
        preflight(stage(**changes), teacher)


def test_preflight_builds_a_giant_without_its_weights(teacher):
    preflight(stage(model="eva_giant_patch14_224"), teacher)  # a billion parameters would take 4 GB and half a minute


def test_preflight_skips_a_teacher_that_does_not_exist_yet():
    class NotOurs(EvaPretrain):
        """Stage of another package that makes a teacher."""

    config = stage(target={"projected": False})
    config.preflight(Preflight({"teacher": NotOurs(name="teacher", data="pool", teacher="other", steps=1)}, {}))
    with pytest.raises(UserError, match=r"mask\.ratio masks 0"):
        preflight(stage(mask={"ratio": 0.01}))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mask": {"ratio": 0.01}}, "mask.ratio masks 0 of the student's 4 x 4 patches"),
        ({"mask": {"ratio": 0.99}}, "mask.ratio masks 16 of the student's 4 x 4 patches"),
        ({"model": "eva02_pico_patch8_23"}, "did you mean"),
        ({"model": "resnet18"}, "ResNet has no patch tokens"),
        ({"model": {"architecture": STUDENT, "deph": 3}}, "deph"),
        ({"model": {"architecture": STUDENT, "patch_drop_rate": 0.5}}, "patch_drop_rate"),
        ({"image_size": 36}, "must be a multiple of the patch size 8, got 36"),
        ({"image_size": 4}, "4 pixels"),
        ({"model": "vit_pico_patch8_32", "image_size": 4}, "4 pixels"),
        ({"model": {"architecture": STUDENT, "img_size": [32, 48]}}, "img_size must be square, got 32 x 48 pixels"),
        ({"model": {"architecture": STUDENT, "in_chans": 1}}, "in_chans must be 3, the channels of the images; got 1"),
        ({"image_size": 8}, "masks need at least 2 x 2 patches, got 1 x 1 of 8 pixels"),
        ({"target": {"layer": 9}}, "layer 9 is not one of its 2 blocks"),
    ],
)
def test_mistakes_are_one_line_in_the_preflight(teacher, changes, line):
    with pytest.raises(UserError, match=line) as caught:
        preflight(stage(**changes), teacher)
    assert "\n" not in str(caught.value)


def test_an_encoder_as_teacher_needs_projected_false(tmp_path):
    encoder = encoder_teacher(tmp_path)
    with pytest.raises(UserError, match="set projected: false") as caught:
        preflight(stage(), encoder)
    assert "\n" not in str(caught.value)
    preflight(stage(target={"projected": False}), encoder)


def test_a_teacher_without_patches_is_refused(tmp_path):
    with pytest.raises(UserError, match="no patch tokens"):
        preflight(stage(target={"projected": False}), encoder_teacher(tmp_path, "resnet18", num_classes=0))


def test_a_teacher_of_another_type_is_refused_in_one_line(tmp_path, pool):
    with pytest.raises(
        UserError, match=r"teacher: expected a ClipCheckpoint or VisionCheckpoint, got a Pool"
    ) as caught:
        run(tmp_path, {}, pool=pool, teacher=pool)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [[0.5, 0.2], [0.0, 1.0], [0.5, 1.5]])
def test_invalid_crop_scales_are_refused(scale):
    with pytest.raises(ValidationError):
        stage(augmentation={"crop_scale": scale})


def test_the_plugin_is_loaded_without_torch():
    code = "import sys; from vfm.interfaces import import_stages; import_stages(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_field_has_a_description():
    own = set(EvaPretrain.model_fields) - {"kind"}
    inherited = set(EvaPretrain.__mro__[1].model_fields) - set(EvaPretrain.__annotations__)
    assert [name for name in own - inherited if not EvaPretrain.model_fields[name].description] == []


def step_data(pool: Pool, size: int, grid: tuple[int, int], num_masked: int, batch: int) -> MaskedData:
    make = MakeViews(ImageTransform(size, scale=(0.2, 1.0)))
    return MaskedData(
        TrainingData(open_dataset(pool), make, global_batch_size=batch), Masks(BlockMask(), grid, num_masked)
    )


def best_constant_loss(pool: Pool, teacher: Teacher, grid: tuple[int, int]) -> float:
    """Return the loss of the best constant prediction for each position of the grid."""
    (batch,) = next(
        step_data(pool, teacher.preprocess.image_size, grid, 1, batch=200).steps(0, 1, micro_batch_size=200)
    )
    features = F.normalize(teacher.features(batch.inputs.images, grid), dim=-1)
    return -features.mean(dim=0).norm(dim=-1).mean().item()


def test_a_small_training_beats_the_best_constant_prediction(tmp_path, pool, teacher):
    settings = {"steps": 60, "global_batch_size": 32, "lr": 5e-3, "schedule": {"warmup_steps": 5}}
    run(tmp_path, settings, pool=pool, teacher=teacher)
    curve = losses(tmp_path)
    constant = best_constant_loss(pool, load_teacher(teacher, stage().target), (4, 4))
    assert abs(curve[0]) < 0.2
    assert -0.65 < constant < -0.55
    assert sum(curve[-10:]) / 10 < constant - 0.05


def test_the_teacher_is_unchanged_to_the_bit(tmp_path, pool, teacher):
    before = {file.name: file.read_bytes() for file in teacher.path.iterdir()}
    weights = {name: value.clone() for name, value in load_clip(teacher).module.visual.state_dict().items()}
    config, ctx = stage(), context(tmp_path, pool=pool, teacher=teacher)
    held = load_teacher(teacher, config.target)
    task = build_task(config, build_student(config), held)
    fit(task, step_data(pool, 32, task.grid, task.num_masked, batch=8), config, ctx)
    assert all(torch.equal(value, weights[name]) for name, value in held.module.state_dict().items())
    assert {file.name: file.read_bytes() for file in teacher.path.iterdir()} == before
    saved = load_file(next((tmp_path / "work").glob("step-*")) / "model.safetensors")
    assert {name.split(".")[0] for name in saved} == {"student", "objectives", "mask_token"}


@pytest.mark.parametrize("cut", [2, 5])
def test_an_interrupted_run_ends_as_an_unbroken_one(tmp_path, pool, teacher, cut):
    settings = {"steps": 8, "checkpoint": {"every_steps": 3}, "student": {"drop_path": 0.2}, "ema_decay": 0.9}
    run(tmp_path / "whole", settings, pool=pool, teacher=teacher)

    def stop(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(**settings).run(context(tmp_path / "cut", stop, pool=pool, teacher=teacher))
    torch.manual_seed(5)  # another process, another state
    run(tmp_path / "cut", settings, pool=pool, teacher=teacher)
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "artifact").rglob("*.*")]
    assert {file.suffix for file in files} == {".json", ".jsonl", ".png", ".safetensors"}
    for file in files:
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.parametrize("student", [STUDENT, "vit_pico_patch8_32"])
def test_a_teacher_can_have_another_size_and_grid(tmp_path, pool, student):
    large = make_teacher(tmp_path / "teacher", "ViT-Pico-8-64")
    settings = {"model": student, "steps": 3}
    preflight(stage(**settings), large)
    run(tmp_path / "run", settings, pool=pool, teacher=large)
    assert len(losses(tmp_path / "run")) == 3


def test_the_teachers_precision_is_the_students_on_a_cpu_unless_it_is_set(tmp_path, pool, teacher):
    assert teacher_in_bf16(stage()) is None
    assert teacher_in_bf16(stage(teacher_precision="fp32")) is False
    found = {}
    for precision in ("auto", "fp32", "bf16"):
        run(tmp_path / precision, {"steps": 3, "teacher_precision": precision}, pool=pool, teacher=teacher)
        found[precision] = losses(tmp_path / precision)
    assert found["auto"] == found["fp32"] != found["bf16"]
    assert found["bf16"] == pytest.approx(found["fp32"], abs=5e-3)


def test_an_encoder_can_be_the_teacher(tmp_path, pool):
    encoder = encoder_teacher(tmp_path / "teacher")
    run(tmp_path / "run", {"target": {"projected": False}, "steps": 3}, pool=pool, teacher=encoder)
    assert len(losses(tmp_path / "run")) == 3


def test_timm_loads_the_encoder_and_it_initialises_a_clip_model(tmp_path, pool, teacher):
    made = run(tmp_path, {"student": {"drop_path": 0.1}}, pool=pool, teacher=teacher)
    assert (made.architecture, made.image_size, made.width, made.num_classes) == (STUDENT, 32, 64, 0)
    encoder = load_vision(VisionCheckpoint.load(made.path)).eval()
    timms = timm.create_model(f"local-dir:{made.path}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = encoder.forward_features(pixels)
    assert torch.equal(timms.forward_features(pixels), features)
    model = build_clip("EVA02-Pico-8-32", seed=1)
    report = init_vision_tower(made, model)
    assert not report.dropped
    assert all("head" in key or "attn.norm" in key for key in report.new)
    tokens = model.module.visual.trunk.eval().forward_features(pixels)
    torch.testing.assert_close(model.module.visual.trunk.fc_norm(tokens), encoder.fc_norm(features))
    trained = load_file(tmp_path / "artifact" / "model.safetensors")
    fresh = build_vision(STUDENT, num_classes=0, seed=0).state_dict()
    assert not torch.equal(trained["patch_embed.proj.weight"], fresh["patch_embed.proj.weight"])


def test_a_picture_that_cannot_be_drawn_is_a_warning_after_the_export(tmp_path, pool, teacher, monkeypatch):
    def fails(matrix, **arguments):
        raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    events: list[Event] = []
    made = stage(steps=1).run(context(tmp_path, events.append, pool=pool, teacher=teacher))
    assert all(value.isfinite().all() for value in load_vision(made).state_dict().values())
    (line,) = [event.data["message"] for event in events if "cannot be drawn" in event.data.get("message", "")]
    assert "failed to converge" in line


def test_weights_that_are_not_finite_are_not_exported(tmp_path, pool, teacher):
    """Check the end of a training whose last step is finite and overflows a weight."""
    settings = {"steps": 1, "lr": 3e38, "optimizer": {"weight_decay": 1e3}}
    with pytest.raises(UserError, match="NaN or infinity, the first is") as caught:
        run(tmp_path, settings, pool=pool, teacher=teacher)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "artifact" / "model.safetensors").exists()
