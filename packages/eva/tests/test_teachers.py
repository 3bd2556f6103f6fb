"""Several teachers at once: their losses, the class token, PHI-S, stored targets, and what a training keeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn import functional as F

import eva_toy
from eva_toy import STUDENT, context, losses, random_inputs, run, stage
from vfm.models import (
    build_vision,
    cls_and_patch_tokens,
    load_clip,
    load_vision,
    save_vision,
    vision_preprocess,
)
from vfm.plugin import (
    ClipCheckpoint,
    Event,
    Pool,
    Preflight,
    SampleCache,
    UserError,
    VisionCheckpoint,
)
from vfm.storage.integrity import seal
from vfm_eva import EvaClip, EvaTargets
from vfm_eva.pretrain.held_out_stages import MaskedPatches
from vfm_eva.pretrain.objective import Objective, image_loss
from vfm_eva.pretrain.pretrain import build_task
from vfm_eva.pretrain.students.masking import masked
from vfm_eva.pretrain.task import EvaTask
from vfm_eva.targets.images import EvaInputs, TeacherInputs
from vfm_eva.targets.losses import squared_error
from vfm_eva.targets.phi_s import PhiS, equal_variances
from vfm_eva.targets.teacher import Teacher, load_teacher

DENSE: dict[str, Any] = {"teacher": "dense", "target": {"projected": False}}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> VisionCheckpoint:
    """Return a timm encoder of another width and image size, as a second teacher."""
    encoder = build_vision("eva02_pico_patch8_64", num_classes=0, seed=5, embed_dim=32, num_heads=2)
    generator = torch.Generator().manual_seed(6)
    for parameter in encoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return save_vision(encoder, tmp_path_factory.mktemp("dense"))


def several(*teachers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"teacher": None, "teachers": list(teachers), **changes}


def test_one_teacher_in_the_list_is_the_training_with_it_alone(tmp_path, pool, teacher):
    run(tmp_path / "alone", {"steps": 3}, pool=pool, teacher=teacher)
    run(tmp_path / "listed", several({"teacher": "teacher"}, steps=3), pool=pool, teacher=teacher)
    for file in ("model.safetensors", "masked_modelling.safetensors", "metrics.jsonl"):
        alone, listed = (tmp_path / name / "artifact" / file for name in ("alone", "listed"))
        if file.endswith("safetensors"):
            assert alone.read_bytes() == listed.read_bytes()
    assert losses(tmp_path / "alone") == losses(tmp_path / "listed")


def two_tasks(teacher: ClipCheckpoint, dense: VisionCheckpoint, **first: Any) -> tuple[EvaTask, Teacher, Teacher]:
    """Return a task of two teachers with random weights, and the teachers."""
    one = load_teacher(teacher, stage().target)
    other = Teacher(load_vision(dense), vision_preprocess(load_vision(dense)), projected=False)
    student = build_vision(STUDENT, num_classes=0, seed=0)
    task = EvaTask(
        student, [Objective(one, **first), Objective(other, weight=0.5, name="dense")], num_masked=eva_toy.NUM_MASKED
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return task.eval(), one, other


def inputs_of_two() -> EvaInputs:
    """Return a batch with larger images for the second teacher."""
    inputs = random_inputs()
    larger = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return EvaInputs(inputs.images, inputs.bool_mask, others=(TeacherInputs(larger),))


def test_the_loss_is_the_weighted_sum_computed_patch_by_patch(teacher, dense):
    task, one, other = two_tasks(teacher, dense, class_weight=2.0, weight=3.0, name="clip")
    inputs = inputs_of_two()
    loss, metrics = task(inputs)
    mask, student = inputs.bool_mask, task.student
    with torch.no_grad(), masked(student, task.mask_token, mask):
        tokens = student.fc_norm(student.forward_features(task.preprocess.pixels(inputs.images)))
    expected = []
    for model, head, images in ((one, task.objectives[0].head, inputs.images), (other, task.objectives[1].head, None)):
        seen = inputs.others[0].teacher_images if images is None else images
        target = model.features(seen, task.grid)[mask]
        expected.append(-F.cosine_similarity(head(tokens[:, 1:])[mask], target, dim=-1).mean())
    image, _ = cls_and_patch_tokens(one.model, one.preprocess.pixels(inputs.images))
    cosines = F.cosine_similarity(task.objectives[0].class_head(tokens[:, 0]), image, dim=-1)
    counts = mask.sum(dim=1)
    of_class = -(cosines * counts).sum() / counts.sum()
    torch.testing.assert_close(loss, 3 * (expected[0] + 2 * of_class) + 0.5 * expected[1], rtol=1e-4, atol=1e-5)
    assert metrics["class_loss_clip"].item() == pytest.approx(of_class.item(), abs=1e-5)
    assert metrics["loss_dense"].item() == pytest.approx(expected[1].item(), abs=1e-5)


def test_every_head_and_the_class_token_get_a_gradient(teacher, dense):
    task, _, _ = two_tasks(teacher, dense, class_weight=1.0)
    task.train()(inputs_of_two())[0].backward()
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)


def test_only_the_summary_loss_teaches_the_class_token(teacher):
    held = load_teacher(teacher, stage().target)
    for weight in (0.0, 1.0):
        task = EvaTask(build_vision(STUDENT, num_classes=0, seed=0), [Objective(held, class_weight=weight)])
        task.eval()
        task(random_inputs())[0].backward()
        (_, image) = held.patches_and_image(random_inputs(), task.grid)
        assert image.shape == (4, held.width)
        assert (task.objectives[0].class_head is not None) == (weight > 0)


@pytest.mark.parametrize("normalize", [False, True])
def test_image_and_patches_of_an_inner_layer_come_from_one_pass(teacher, normalize: bool) -> None:
    clip = load_clip(teacher)
    inner = Teacher(clip, clip.preprocess, layer=0, normalize=normalize)
    images = random_inputs().images
    calls: list[Any] = []
    handle = clip.module.visual.conv1.register_forward_hook(lambda *_: calls.append(None))
    patches, image = inner.patches_and_image(random_inputs(), (4, 4))
    handle.remove()
    assert len(calls) == 1
    torch.testing.assert_close(patches, inner.features(images, (4, 4)))
    torch.testing.assert_close(image, clip.module.encode_image(clip.preprocess.pixels(images)).detach())


@pytest.mark.parametrize("width", [1, 2, 7, 48])
def test_phi_s_gives_every_channel_variance_one_by_one_factor_and_a_rotation(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(-2, 1, width)
    features = torch.randn(4, 500, width, generator=generator) @ mixing + 5
    phi_s = PhiS.fit(features)
    found = phi_s(features).flatten(0, 1)
    torch.testing.assert_close(found.mean(0), torch.zeros(width), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.var(0, unbiased=False), torch.ones(width), atol=1e-3, rtol=0)
    torch.testing.assert_close(phi_s.rotation @ phi_s.rotation.T, torch.eye(width), atol=1e-5, rtol=0)
    # One factor for all distances, which whitening would not have.
    shape = torch.cdist(features[0, :9], features[0, 9:18])
    torch.testing.assert_close(torch.cdist(found[:9], found[9:18]) * phi_s.scale, shape, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(phi_s.inverse(phi_s(features)), features, rtol=1e-4, atol=1e-3)


def test_equal_variances_of_equal_variances_are_a_rotation() -> None:
    rotation = equal_variances(2 * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    with pytest.raises(UserError, match="equal everywhere"):
        PhiS.fit([torch.ones(5, 4)])


def test_squared_error_and_image_loss_count_masked_patches_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    counted = torch.tensor([[True, False, True], [True, False, False]])
    expected = (prediction[counted] - target[counted]).square().mean()
    torch.testing.assert_close(squared_error(prediction, target, counted), expected)
    cosines = F.cosine_similarity(prediction[:, 0], target[:, 0], dim=-1)
    torch.testing.assert_close(image_loss(prediction[:, 0], target[:, 0], counted), -(2 * cosines[0] + cosines[1]) / 3)


def test_a_head_of_standardised_targets_is_saved_as_one_of_the_teachers_features(tmp_path, teacher, dense):
    task, one, _ = two_tasks(teacher, dense)
    phi_s = PhiS.fit([one.features(inputs_of_two().images, task.grid)])
    other = EvaTask(
        build_vision(STUDENT, num_classes=0, seed=0), [Objective(one, phi_s=phi_s), Objective(one, weight=2)]
    )
    saved = other.masked_modelling()
    tokens = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    predicted = F.linear(tokens, saved["head.weight"], saved["head.bias"])
    torch.testing.assert_close(predicted, phi_s.inverse(other.objectives[0].head(tokens)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predicted, other.predictions(tokens), rtol=1e-4, atol=1e-4)
    before = other.objectives[0].head.weight.clone()
    assert other.load_masked_modelling(saved)
    torch.testing.assert_close(other.objectives[0].head.weight, before, rtol=1e-3, atol=1e-4)
    assert not any(key.startswith("standardised") for key in saved)


def test_objective_with_standardised_targets_runs_on_shapes_alone() -> None:
    prediction, target = (torch.zeros(2, 3, 4, device="meta") for _ in range(2))
    counted = torch.ones(2, 3, dtype=torch.bool, device="meta")
    phi_s = PhiS.identity(4).to("meta")
    objective = Objective(None, phi_s=phi_s)  # type: ignore[arg-type]
    compared = (prediction, objective.standardised(target), counted)
    assert objective.patch_loss(*compared).shape == objective.metrics(*compared)["constant_loss"].shape == ()


def test_two_teachers_are_trained_kept_and_evaluated(tmp_path, pool, teacher, dense):
    settings = several(
        {"teacher": "teacher", "class_weight": 0.5},
        {**DENSE, "loss": "phi_s", "statistics_images": 16, "weight": 0.5},
        steps=4,
    )
    made = run(tmp_path / "whole", settings, pool=pool, teacher=teacher, dense=dense)
    added = load_file(made.path / "masked_modelling.safetensors")
    assert added["other_heads.0.weight"].shape == (32, 64)
    assert added["class_heads.0.weight"].shape == (64, 64)
    assert load_vision(made).global_pool == "token"
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    evaluation = MaskedPatches.model_validate(
        {"name": "held_out", "data": "pool", "models": ["eva"], "teacher": "teacher"}
    )
    report = evaluation.run(context(tmp_path / "report", eva=made, teacher=teacher, pool=pool))
    assert report.metrics[0].name == "masked_cosine"


def test_an_interrupted_training_keeps_its_statistics(tmp_path, pool, teacher, dense):
    settings = several(
        {"teacher": "teacher"}, {**DENSE, "loss": "phi_s", "statistics_images": 8}, steps=4,
        checkpoint={"every_steps": 2},
    )  # fmt: skip
    inputs = {"pool": pool, "teacher": teacher, "dense": dense}
    whole = run(tmp_path / "whole", settings, **inputs)

    def stop(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(**settings).run(context(tmp_path / "cut", stop, **inputs))
    again = run(tmp_path / "cut", settings, **inputs)
    for file in ("model.safetensors", "masked_modelling.safetensors"):
        assert (again.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_a_training_with_standardised_targets_goes_on_with_its_heads(tmp_path, pool, teacher, dense):
    settings = several({**DENSE, "loss": "phi_s", "statistics_images": 8}, {"teacher": "teacher"}, steps=2)
    inputs = {"pool": pool, "teacher": teacher, "dense": dense}
    first = run(tmp_path / "first", settings, **inputs)
    whole = stage(**settings, lr=0.0, schedule={"min_lr": 0.0}).model_dump(exclude_unset=True)
    whole.pop("model")
    second = type(stage()).model_validate(whole | {"start": "start"})
    made = second.run(context(tmp_path / "second", **inputs, start=first))
    one, other = (load_file(folder.path / "masked_modelling.safetensors") for folder in (first, made))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4)


def test_metrics_have_the_same_names_for_all_seeds(teacher, dense):
    config = stage(**several({"teacher": "one/clip@3"}, {"teacher": "two/clip@3"}, {**DENSE, "teacher": "dense@3"}))
    models = [load_teacher(teacher, config.target)] * 2
    other = load_teacher(dense, config.taught_by[2].target)
    task = build_task(config, build_vision(STUDENT, num_classes=0, seed=0), *models, other)
    assert [objective.name for objective in task.objectives] == ["clip_0", "clip_1", "dense"]


def made_targets(folder: Path, pool: Pool, teacher: Any, **changes: Any) -> SampleCache:
    settings = {"name": "targets", "data": "pool", "teacher": "teacher", "grid": [4, 4], "dtype": "fp32", **changes}
    return EvaTargets.model_validate(settings).run(context(folder, pool=pool, teacher=teacher))


def test_stored_targets_of_two_teachers_train_as_the_teachers_do(tmp_path, teacher, dense):
    eight = eva_toy.make_pool(tmp_path / "eight", num_samples=8)  # one step per epoch
    seeds = {"seed": 5, "num_crops": 3}
    first = made_targets(tmp_path / "one", eight, teacher, **seeds)
    second = made_targets(tmp_path / "two", eight, dense, target={"projected": False}, **seeds)
    live = several({"teacher": "teacher"}, {**DENSE, "weight": 2}, steps=3, seed=5)
    run(tmp_path / "live", live, pool=eight, teacher=teacher, dense=dense)
    cached = several({"targets": "first"}, {"targets": "second", "weight": 2}, steps=3, seed=5)
    run(tmp_path / "cached", cached, pool=eight, first=first, second=second)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), abs=1e-5)
    other = made_targets(tmp_path / "other", eight, dense, target={"projected": False}, seed=6, num_crops=3)
    known = {"pool": eight.path, "first": first.path, "second": other.path}
    with pytest.raises(UserError, match=r"must have the same crops: .* has seed 6, expected 5"):
        stage(**cached).preflight(Preflight({}, known))
    makers = {
        name: EvaTargets.model_validate(
            {"name": name, "data": "pool", "teacher": "teacher", "grid": [4, 4], "num_crops": number}
        )
        for name, number in (("first", 1), ("second", 2))
    }
    with pytest.raises(UserError, match="set the num_crops of 'second' to that of 'first'"):
        stage(**cached).preflight(Preflight(makers, {}))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"teachers": [{"teacher": "teacher"}]}, "exactly one of teacher, targets and teachers"),
        (several({"teacher": "a"}, {"targets": "b"}), "expected a teacher or targets in all of them; 'b' are targets"),
        (several({"teacher": "a"}, {"teacher": "a"}), "'a' is listed twice"),
        (several({"teacher": "a"}, target={"layer": 0}), "target has no effect with teachers"),
        (several({"targets": "a"}, augmentation={"flip": 0}), "augmentation is fixed by 'a'"),
        (several({"targets": "a", "class_weight": 1}), "targets hold features of patches only"),
        (several({"targets": "a", "target": {"layer": 0}}), "target is fixed by 'a'"),
        (several({"teacher": "a", "statistics_images": 64}), "statistics_images has no effect with loss: cosine"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        stage(**changes)


def evaluation_with(teacher: str) -> MaskedPatches:
    return MaskedPatches.model_validate({"name": "held_out", "data": "pool", "teacher": teacher})


def test_preflight_refuses_what_fails_only_after_the_training(tmp_path, dense):
    known = {"dense": dense.path}
    with pytest.raises(UserError, match=r"^teacher 'dense': .*set projected: false"):
        stage(**several({"teacher": "dense"})).preflight(Preflight({}, known))
    held_out = evaluation_with("dense")
    with pytest.raises(UserError, match=r"^teacher 'dense': .*set projected: false"):
        held_out.preflight(Preflight({}, known))
    earlier = stage(name="first")  # an encoder that does not exist yet
    with pytest.raises(UserError, match=r"^teacher 'first': .*set projected: false"):
        evaluation_with("first").preflight(Preflight({"first": earlier}, {}))
    without = stage(model="vit_base_patch16_siglip_224", **several({"teacher": "teacher", "class_weight": 1.0}))
    with pytest.raises(UserError, match="has no class token to teach"):
        without.preflight(Preflight({}, {}))


def test_an_alarm_names_its_teacher(tmp_path, pool, teacher, dense):
    events: list[Event] = []
    settings = several({"teacher": "teacher"}, DENSE, steps=102, lr=0.0, global_batch_size=1, schedule={"min_lr": 0.0})
    config = stage(**settings, log_every=102)
    config.run(context(tmp_path, events.append, pool=pool, teacher=teacher, dense=dense))
    warnings = [event.data["message"] for event in events if event.type == "warning"]
    assert any(message.startswith("teacher dense, step 102: the loss, ") for message in warnings)


def test_a_taught_class_token_and_the_text_tower_are_a_clip_model(tmp_path, pool, teacher, dense):
    settings = several(DENSE, {"teacher": "teacher", "class_weight": 1.0}, steps=2)
    made = run(tmp_path / "eva", settings, pool=pool, teacher=teacher, dense=dense)
    config = EvaClip(name="joined", encoder="eva", clip="teacher", teacher_number=1)
    config.preflight(Preflight({}, {"eva": made.path}))
    joined = load_clip(config.run(context(tmp_path / "joined", eva=made, teacher=teacher)))
    student, head = load_vision(made).eval(), load_file(made.path / "masked_modelling.safetensors")
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = joined.preprocess.pixels(images)
    with torch.no_grad():
        expected = F.linear(student(pixels), head["class_heads.1.weight"], head["class_heads.1.bias"])
        torch.testing.assert_close(joined.module.encode_image(pixels), expected)
    original = load_clip(teacher)
    torch.testing.assert_close(joined.encode_texts(["a red circle"]), original.encode_texts(["a red circle"]))
    for number, stages in ((0, {}), (0, {"eva": stage(**settings)}), (2, {"eva": stage(**settings)})):
        known = {} if stages else {"eva": made.path}
        with pytest.raises(UserError, match=f"class token is not taught by teacher {number}"):
            config.model_copy(update={"teacher_number": number}).preflight(Preflight(stages, known))


def joined_with(**changes: Any) -> EvaClip:
    return EvaClip.model_validate({"name": "joined", "encoder": "eva", "clip": "teacher", **changes})


def test_a_clip_model_that_did_not_teach_the_student_is_refused(tmp_path, pool, teacher):
    taught = several({"teacher": "teacher", "class_weight": 1.0}, steps=1)
    with pytest.raises(UserError, match=r"^clip: expected 'teacher', which teaches the class token of 'eva'"):
        joined_with(clip="other").preflight(Preflight({"eva": stage(**taught)}, {}))
    made = run(tmp_path / "eva", taught, pool=pool, teacher=teacher)
    record = {"config": {"teachers": taught["teachers"]}, "inputs": {"teacher": "a"}, "files": {}}
    (made.path / "manifest.json").write_bytes(seal(record))
    known = {"eva": made.path, "other": teacher.path}
    with pytest.raises(UserError, match="clip: 'other' is not the model that taught the class token of 'eva'"):
        joined_with(clip="other").preflight(Preflight({}, known, {"other": "b"}))
    joined_with(clip="other").preflight(Preflight({}, known, {"other": "a"}))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"num_heads": 8}, "trained with num_heads 8, the tower eva02_pico_patch8_32 has 2"),
        ({"architecture": "vit_pico_patch8_32", "act_layer": "relu"}, "trained with activation ReLU"),
        ({"depth": 3}, r"the encoder has blocks\.2\."),
    ],
)
def test_a_student_that_open_clip_cannot_build_by_its_name_is_refused_before_the_training(
    teacher: ClipCheckpoint, arguments: dict[str, Any], line: str
) -> None:
    known = {"teacher": teacher.path}
    student = {"architecture": "eva02_pico_patch8_32", "depth": 2}  # two are its own
    for model, size in ((student, None), ("vit_pico_patch8_32", 48), ("deit_tiny_patch16_224", 64)):
        taught = stage(model=model, image_size=size, **several({"teacher": "teacher", "class_weight": 1.0}))
        joined_with().preflight(Preflight({"eva": taught}, known))
    wrong = stage(model={**student, **arguments}, **several({"teacher": "teacher", "class_weight": 1.0}))
    with pytest.raises(UserError, match=f"^eva: open_clip builds .*_pico_patch8_32 by its name, .*{line}"):
        joined_with().preflight(Preflight({"eva": wrong}, known))
