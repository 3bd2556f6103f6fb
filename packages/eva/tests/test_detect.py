"""Detection end to end: draws, training, resuming, checkpoints, predictions, released layouts, bad input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from timm.data.constants import IMAGENET_DEFAULT_MEAN

from eva_toy import context
from released_detector import official_name
from vfm.data import RepeatedEpochs, SampleDraw
from vfm.data.annotated import AnnotatedSource, ObjectArrays
from vfm.data.synthetic.stages import ShapesScenes
from vfm.eval.dense.stages import Detection
from vfm.models import build_vision, load_vision, save_state_dict, save_vision, vision_preprocess
from vfm.plugin import (
    AllWeights,
    AnnotatedImages,
    DenseCheckpoint,
    Event,
    Preflight,
    UserError,
    VisionCheckpoint,
)
from vfm_eva.dense.detect.checkpoint import build_detector, read_detector
from vfm_eva.dense.detect.eva_layout import head_name
from vfm_eva.dense.detect.federated import draw_order, federated_mask
from vfm_eva.dense.detect.objects import TargetObjects
from vfm_eva.dense.detect.predict import load_detector, mean_inside, paste
from vfm_eva.dense.detect.released import load_released
from vfm_eva.dense.detect.samples import MakeDetection
from vfm_eva.dense.detect.settings import DetectorSettings
from vfm_eva.dense.detect.stages import DetectAugmentation, EvaDetect, ImportDetector
from vfm_eva.dense.detect.task import DetectTask
from vfm_eva.dense.detect.train import repeat_factors

ENCODER = "eva02_pico_patch8_32"
WORLD = {"image_size": 32, "shapes": ["circle", "square", "star"], "colours": ["red", "blue"]}
SMALL: dict[str, Any] = {
    "image_size": 32,
    "channels": 16,
    "proposals": {"num_convs": 1, "num_samples": 32, "before_nms": 60, "num_proposals": 20},
    "cascade": {"num_rois": 16, "num_convs": 1, "hidden": 16, "mask_convs": 1},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    stage = ShapesScenes(
        kind="shapes.scenes", name="scenes", num_samples=24, world=WORLD, vocabulary=120, max_objects=3,
        scale=(0.15, 0.3), zipf=1.0,
    )  # fmt: skip
    return stage.run(context(tmp_path_factory.mktemp("scenes")))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> VisionCheckpoint:
    return save_vision(build_vision(ENCODER, num_classes=0, seed=0), tmp_path_factory.mktemp("encoder"))


def stage(**changes: Any) -> EvaDetect:
    settings: dict[str, Any] = {
        "name": "detect",
        "encoder": "encoder",
        "data": "scenes",
        "steps": 4,
        "global_batch_size": 4,
        "lr": 1e-3,
        "log_every": 1,
        "runtime": {"device": "cpu"},
        "detector": SMALL,
    }
    return EvaDetect.model_validate({key: value for key, value in {**settings, **changes}.items() if value is not None})


def with_cascade(**changes: Any) -> dict[str, Any]:
    return {**SMALL, "cascade": {**SMALL["cascade"], **changes}}


def test_federated_negatives_are_draws_without_replacement_by_weight():
    weights = np.array([1.0, 4.0, 0.0, 9.0, 2.0])
    orders = torch.stack([draw_order(weights, 5, step) for step in range(4000)])
    assert torch.equal(orders[7], draw_order(weights, 5, 7))
    assert (orders[:, -1] == 2).all()  # a class without images is never drawn before another one
    firsts = np.bincount(orders[:, 0].numpy(), minlength=5) / len(orders)
    np.testing.assert_allclose(firsts, weights / weights.sum(), atol=0.03)
    torch.manual_seed(0)
    drawn = torch.stack([torch.multinomial(torch.tensor(weights), 2) for _ in range(4000)])
    for label in range(5):
        ours, theirs = ((one[:, :2] == label).any(dim=1).float().mean() for one in (orders, drawn))
        assert abs(ours - theirs) < 0.04


def test_federated_loss_keeps_all_classes_of_the_batch_and_fills_up():
    order = torch.tensor([3, 1, 0, 2, 4])
    kept = federated_mask(torch.tensor([0, 0, 5]), order, 5, minimum=4)  # 5 is the background and counts
    assert kept.tolist() == [True, True, False, True, False]
    many = federated_mask(torch.tensor([0, 1, 2, 4]), order, 5, minimum=2)
    assert many.tolist() == [True, True, True, False, True]


def objects(pairs: list[tuple[int, int]]) -> ObjectArrays:
    image, labels = (np.array(one, dtype=np.int64) for one in zip(*pairs, strict=True))
    none, count = np.zeros(len(pairs), dtype=bool), len(pairs)
    return ObjectArrays(image, labels, np.zeros((count, 4)), [None] * count, np.zeros(count), none, none)


def test_repeat_factors_are_those_of_the_formula():
    # Class 0 is in all four images, class 1 in one of them, class 2 in none.
    pairs = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 1)]
    factors = repeat_factors(objects(pairs), 5, 3, threshold=0.9)
    common, rare = np.sqrt(0.9 / 0.8), np.sqrt(0.9 / 0.2)
    np.testing.assert_allclose(factors, [common, common, common, rare, 1.0])


def test_epochs_repeat_images_and_can_be_entered_anywhere(scenes):
    source = AnnotatedSource(scenes).source
    factors = np.ones(len(source))
    factors[3], factors[5] = 2.5, 3.0
    order = lambda: source.order(seed=1, shuffle_shards=2)  # noqa: E731
    source.epochs = RepeatedEpochs(source.shard_sizes, factors, seed=1)
    whole = order().of_epochs(0, 300)
    assert order().of_epochs(117, 203) == whole[117:203]
    assert {number for epoch, number in whole if epoch == 0} == set(range(len(source)))
    counts = [np.bincount([n for epoch, n in whole if epoch == one], minlength=len(source)) for one in range(10)]
    assert all(one[5] == 3 and one[3] in (2, 3) for one in counts)
    assert {int(one[3]) for one in counts} == {2, 3}


def test_training_is_exact_when_it_resumes(tmp_path, scenes, encoder):
    """Repeat factors, jitter, federated negatives and sampled boxes are all drawn again as they were."""
    settings: dict[str, Any] = {
        "repeat_threshold": 0.5, "checkpoint": {"every_steps": 2}, "drop_path": 0.2,
        "detector": with_cascade(loss="federated", num_federated=4, prior=0.1),
    }  # fmt: skip
    whole = stage(**settings).run(context(tmp_path / "whole", scenes=scenes, encoder=encoder))

    class StoppedError(Exception):
        pass

    def stop(event: Event) -> None:
        if event.data.get("step") == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        stage(**settings).run(context(tmp_path / "cut", stop, scenes=scenes, encoder=encoder))
    resumed = stage(**settings).run(context(tmp_path / "cut", scenes=scenes, encoder=encoder))
    assert (whole.path / "head.safetensors").read_bytes() == (resumed.path / "head.safetensors").read_bytes()
    assert (whole.path / "encoder/model.safetensors").read_bytes() == (
        resumed.path / "encoder/model.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, scenes, encoder) -> DenseCheckpoint:
    folder = tmp_path_factory.mktemp("trained")
    return stage(
        detector={
            **SMALL,
            "selection": {"score": 0.0, "max_detections": 20},
            "windows": {"window": 2, "global_blocks": [1]},
        }
    ).run(context(folder, scenes=scenes, encoder=encoder))


def test_checkpoint_holds_the_encoder_in_timms_layout_and_is_evaluated(tmp_path, trained, scenes, encoder):
    assert trained.tasks == ["boxes", "masks"]
    assert len(list((trained.path / "pictures").glob("seen-*.jpg"))) == 4
    assert VisionCheckpoint.load(trained.path / "encoder").architecture == encoder.architecture
    before, after = load_vision(encoder).state_dict(), load_vision(trained.path / "encoder").state_dict()
    assert before.keys() == after.keys()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert any(key.startswith("blocks.0.") for key in moved)
    assert not any(key.startswith(("norm.", "fc_norm.", "cls_token")) for key in moved)  # no detector reads them
    ruler = Detection.model_validate({"name": "ruler", "models": ["detect"], "data": "scenes", "num_resamples": 100})
    report = ruler.run(context(tmp_path, detect=trained, scenes=scenes))
    names = {metric.name for metric in report.metrics}
    assert {"box_ap", "mask_ap"} <= names
    results = json.loads((tmp_path / "artifact/predictions/detect.json").read_text())
    assert results
    assert "maskness" in results[0]


def test_predictions_lie_in_the_image_and_do_not_depend_on_the_batch(trained):
    predictor = load_detector(trained, torch.device("cpu"))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((50, 20), (32, 64))]
    both = predictor.detect(images)
    for image, found in zip(images, both, strict=True):
        (alone,) = predictor.detect([image])
        assert len(found.labels)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
        assert found.masks.shape[1:] == (image.height, image.width)
        assert found.boxes.min() >= 0
        assert (found.boxes[:, 2] <= image.width).all()
        assert (found.boxes[:, 3] <= image.height).all()
        assert ((found.maskness >= 0) & (found.maskness <= 1)).all()


def test_masks_are_pasted_at_pixel_centres():
    mask = torch.zeros(1, 4, 4)
    mask[0, :, :2] = 1.0
    pasted = paste(mask, np.array([[2.0, 1.0, 10.0, 5.0]]), 8, 12)
    expected = np.zeros((1, 8, 12), dtype=bool)
    expected[0, 1:5, 2:6] = True
    assert np.array_equal(pasted, expected)
    assert mean_inside(torch.tensor([[[0.9, 0.7], [0.2, 0.5]]])).tolist() == pytest.approx([0.8])


def test_detector_starts_from_another_one_with_other_classes(tmp_path, trained, scenes):
    names = [f"other {name}" for name in scenes.class_names]
    other = AnnotatedImages.create(tmp_path / "other", **{**scenes.model_dump(), "class_names": names})
    for file in scenes.path.iterdir():
        if file.name not in ("artifact.json", "panels") and file.is_file():
            (other.path / file.name).write_bytes(file.read_bytes())
    config = stage(encoder=None, start="start", data="other", lr=0.0, steps=1)
    made = config.run(context(tmp_path / "run", start=trained, other=other))
    before, after = read_detector(trained).head.state_dict(), read_detector(made).head.state_dict()
    new = {key for key in before if not torch.equal(before[key], after[key])}
    assert new
    assert all(".scores." in key or "mask_head.masks" in key for key in new)


def test_samples_are_pure_and_what_no_map_depends_on_is_not_trained(scenes, encoder):
    model = build_detector(load_vision(encoder), len(scenes.class_names), DetectorSettings.model_validate(SMALL))
    task = DetectTask(model, scenes.class_names)
    source = AnnotatedSource(scenes)
    make = MakeDetection(source, 32, DetectAugmentation(), with_masks=True, fill=(9, 9, 9))
    one = make(source.source[0], SampleDraw.of(0, 0, 0))
    again = make(source.source[0], SampleDraw.of(0, 0, 0))
    assert torch.equal(one.images, again.images)
    assert one.sizes.tolist() == [32, 32] or (one.images[:, -1, -1] == 9).all()
    assert one.masks is not None
    assert one.masks.parts[0].shape[1:] == (32, 32)
    frozen = {name for name, one in task.model.encoder.visual.named_parameters() if not one.requires_grad}
    assert frozen
    assert all(name.startswith(("norm.", "fc_norm.", "cls_token", "head.")) for name in frozen)


@pytest.mark.parametrize("trained", ["frozen", "last_blocks", "lora"])
def test_parts_of_the_encoder_are_trained_beside_the_heads(trained, scenes, encoder, tmp_path):
    if trained == "lora":
        pytest.importorskip("peft")
    settings = {"type": trained, **({"blocks": 1} if trained == "last_blocks" else {})}
    made = stage(steps=2, trained=settings).run(context(tmp_path, encoder=encoder, scenes=scenes))
    start, end = (load_vision(model).state_dict() for model in (encoder, made.path / made.encoder))
    changed = {name.rpartition("blocks.")[2][0] for name, value in start.items() if not value.equal(end[name])}
    assert changed == {"frozen": set(), "last_blocks": {"1"}, "lora": {"0", "1"}}[trained]


def test_boxes_have_32_bits_in_half_precision(scenes, encoder):
    model = build_detector(load_vision(encoder), len(scenes.class_names), DetectorSettings.model_validate(SMALL))
    dtypes: list[torch.dtype] = []
    anchors = model.head.proposals.anchor_generator
    anchors.register_forward_hook(lambda module, given, found: dtypes.extend(one.dtype for one in found))
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    truth = TargetObjects(
        torch.tensor([0]), torch.tensor([[3.0, 4.0, 20.0, 25.0]]), torch.ones(1, 32, 32, dtype=torch.bool)
    )
    losses = {}
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses[half] = model.train().losses(pixels, [truth], [(32, 32)])
    assert set(dtypes) == {torch.float32}
    for name, loss in losses[True].items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, losses[False][name], rtol=0.1, atol=0.02)


def released(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a detector's weights in the names of EVA-02's detection files, by the layers of detectron2."""
    names = {"fc1_g.": "w1.", "fc1_x.": "w2.", "mlp.fc2.": "mlp.w3.", "mlp.norm.": "mlp.ffn_ln."}
    found: dict[str, torch.Tensor] = {}
    for key, value in model.encoder.visual.state_dict().items():
        if key.startswith(("cls_token", "norm.", "fc_norm.", "head.")):
            continue
        name = key
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        name = name.replace("q_proj.bias", "q_bias").replace("v_proj.bias", "v_bias")
        found[f"backbone.net.{name}"] = value
    found["backbone.net.rope_win.freqs_cos"] = torch.zeros(4, 4)
    found |= {official_name(key): value for key, value in model.head.state_dict().items()}
    found |= {"pixel_mean": torch.zeros(3, 1, 1), "roi_heads.box_predictor.0.fed_loss_cls_weights": torch.ones(2)}
    return found


# Keys of the released files of detectron2's pyramid and proposals; those of the heads are compared in
# test_detect_detectron2.
KNOWN = [
    "backbone.simfp_2.0.bias",
    "backbone.simfp_2.1.weight",
    "backbone.simfp_2.3.weight",
    "backbone.simfp_2.4.weight",
    "backbone.simfp_2.4.norm.bias",
    "backbone.simfp_2.5.weight",
    "backbone.simfp_2.5.norm.weight",
    "backbone.simfp_3.0.weight",
    "backbone.simfp_3.1.norm.weight",
    "backbone.simfp_3.2.norm.bias",
    "backbone.simfp_4.0.weight",
    "backbone.simfp_4.0.norm.bias",
    "backbone.simfp_4.1.norm.weight",
    "backbone.simfp_5.1.weight",
    "backbone.simfp_5.2.norm.weight",
    "proposal_generator.rpn_head.conv.conv0.weight",
    "proposal_generator.rpn_head.conv.conv1.bias",
    "proposal_generator.rpn_head.objectness_logits.weight",
    "proposal_generator.rpn_head.anchor_deltas.bias",
]

LAYOUT = {**SMALL, "proposals": {"num_convs": 2}, "cascade": {"num_convs": 4, "hidden": 16, "mask_convs": 4}}
SUB_NORM = {"architecture": ENCODER, "scale_mlp": True, "qkv_fused": False}


def test_released_layout_is_read_with_every_key_accounted_for(tmp_path, scenes):
    settings = DetectorSettings.model_validate(LAYOUT)
    count = len(scenes.class_names)
    ours = build_detector(build_vision(SUB_NORM, num_classes=0, seed=1), count, settings, seed=1)
    theirs = released(ours)
    other = build_detector(build_vision(SUB_NORM, num_classes=0, seed=2), count, settings, seed=2)
    assert set(KNOWN) <= set(theirs)
    assert all(head_name(official_name(key)) == key for key in ours.head.state_dict())
    report = load_released(theirs, other, "file")
    handled = {*report.taken, *report.renamed, *report.resized, *report.dropped}
    assert {key.removeprefix("backbone.net.") for key in theirs} == handled
    for key, value in ours.head.state_dict().items():
        assert torch.equal(value, other.head.state_dict()[key]), key
    for key, value in ours.encoder.visual.state_dict().items():
        if not key.startswith(("cls_token", "norm.", "fc_norm.", "head.")):
            assert torch.equal(value, other.encoder.visual.state_dict()[key]), key
    file = tmp_path / "released.safetensors"
    save_state_dict(theirs, file)
    config = ImportDetector.model_validate(
        {"name": "import", "path": str(file), "model": SUB_NORM, "data": "scenes", "detector": LAYOUT}
    )
    made = config.run(context(tmp_path / "run", scenes=scenes))
    read = read_detector(made)
    assert torch.equal(read.head.cascade.stages[2].fc.weight, ours.head.cascade.stages[2].fc.weight)
    assert vision_preprocess(read.encoder.visual).mean == IMAGENET_DEFAULT_MEAN  # timm's EVA-02 has CLIP's


def test_eva_01s_layout_is_read_with_its_relative_positions(tmp_path, scenes):
    plain = {"architecture": ENCODER, "swiglu_mlp": False, "use_rot_pos_emb": False}
    layout = {**LAYOUT, "windows": {"window": 2, "global_blocks": [1], "relative": True}}
    settings = DetectorSettings.model_validate(layout)
    ours = build_detector(build_vision(plain, num_classes=0, seed=1), len(scenes.class_names), settings, seed=1)
    for parameter in ours.head.relative.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    left_out = ("cls_token", "norm.", "fc_norm.", "head.")
    weights = {key: value for key, value in ours.encoder.visual.state_dict().items() if not key.startswith(left_out)}
    theirs = {f"backbone.net.{key}": value for key, value in weights.items()}
    theirs |= {official_name(key): value for key, value in ours.head.state_dict().items()}
    width = ours.head.relative[0].rows.shape[1]
    assert theirs["backbone.net.blocks.0.attn.rel_pos_h"].shape == (2 * 2 - 1, width)  # a window
    assert theirs["backbone.net.blocks.1.attn.rel_pos_w"].shape == (2 * 4 - 1, width)  # the whole map
    assert all(head_name(official_name(key)) == key for key in ours.head.state_dict())
    other = build_detector(build_vision(plain, num_classes=0, seed=3), len(scenes.class_names), settings, seed=3)
    report = load_released(theirs, other, "file")
    assert {key.removeprefix("backbone.net.") if ".rel_pos" not in key else key for key in theirs} == {
        *report.taken, *report.renamed, *report.resized, *report.dropped
    }  # fmt: skip
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, expected in zip(other.eval()._maps(pixels), ours.eval()._maps(pixels), strict=True):
            torch.testing.assert_close(one, expected)
    save_state_dict(theirs, tmp_path / "eva_01.safetensors")
    config = ImportDetector.model_validate(
        {
            "name": "import",
            "path": str(tmp_path / "eva_01.safetensors"),
            "model": plain,
            "data": "scenes",
            "detector": layout,
        }
    )
    made = read_detector(config.run(context(tmp_path / "run", scenes=scenes)))
    assert torch.equal(made.head.relative[1].columns, ours.head.relative[1].columns)
    windows = {**layout["windows"], "relative_size": 32, "relative_resizing": "beit"}
    larger = ImportDetector.model_validate(
        {**config.model_dump(), "detector": {**layout, "image_size": 64, "windows": windows}}
    )
    resized = read_detector(larger.run(context(tmp_path / "larger", scenes=scenes)))
    assert torch.equal(resized.head.relative[1].columns, ours.head.relative[1].columns)
    assert resized.head.relative[1].resizing == "beit"
    assert len(resized.detect(torch.zeros(1, 3, 64, 64), [(64, 64)])) == 1
    lacking = {key: value for key, value in theirs.items() if ".rel_pos" not in key}
    with pytest.raises(UserError, match=r"it has no relative positions, .*relative: false"):
        load_released(lacking, other, "file")


def test_wrong_sizes_of_relative_positions_are_one_line():
    with pytest.raises(ValidationError, match="relative_size has no effect with relative: false"):
        DetectorSettings.model_validate({"windows": {"relative_size": 32}})
    with pytest.raises(ValidationError, match="relative_resizing: beit has no effect without relative_size"):
        DetectorSettings.model_validate({"windows": {"relative": True, "relative_resizing": "beit"}})
    settings = {"image_size": 32, "windows": {"relative": True, "relative_size": 20}}
    with pytest.raises(UserError, match=r"relative_size: expected a multiple of 8 pixels .* got 20"):
        build_detector(build_vision(ENCODER, num_classes=0), 2, DetectorSettings.model_validate(settings))


def test_relative_positions_are_trained_with_the_rate_of_their_block(tmp_path, scenes, encoder):
    settings = {**SMALL, "windows": {"window": 2, "global_blocks": [1], "relative": True}}
    made = read_detector(stage(detector=settings, steps=2).run(context(tmp_path, scenes=scenes, encoder=encoder)))
    assert all(parameter.abs().max() > 0 for parameter in made.head.relative.parameters())
    task = DetectTask(made, scenes.class_names, trained=AllWeights(layer_decay=0.5))
    rates = {id(one): group.lr_scale for group in task.parameter_groups() for one in group.params}
    for number, relative in enumerate(made.head.relative):
        assert rates[id(relative.rows)] == rates[id(made.encoder.visual.blocks[number].mlp.fc2.weight)]


def test_wrong_released_files_are_one_line(scenes):
    settings = DetectorSettings.model_validate(LAYOUT)
    model = build_detector(build_vision(SUB_NORM, num_classes=0, seed=1), len(scenes.class_names), settings)
    good = released(model)
    with pytest.raises(UserError, match=r"it has relative positions, .*set detector.windows.relative: true"):
        load_released({**good, "backbone.net.blocks.0.attn.rel_pos_h": torch.zeros(3)}, model, "file")
    with pytest.raises(UserError, match=r"the file has roi_heads\.extra"):
        load_released({**good, "roi_heads.extra": torch.zeros(3)}, model, "file")
    missing = {key: value for key, value in good.items() if "box_predictor.2.cls_score" not in key}
    with pytest.raises(UserError, match=r"stages\.2\.scores"):
        load_released(missing, model, "file")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"detector": {**SMALL, "image_size": 40}}, "image_size: expected a multiple of 16"),
        ({"detector": {**SMALL, "windows": {"window": 3}}}, r"image_size: expected a multiple of 48 .*windows of 3"),
        ({"detector": {**SMALL, "windows": {"window": 2, "global_blocks": [9]}}}, "global_blocks: .* 9"),
    ],
)
def test_settings_that_do_not_fit_the_encoder_are_one_line_before_the_run(scenes, encoder, changes, line):
    known = Preflight({}, {"scenes": scenes.path, "encoder": encoder.path})
    with pytest.raises(UserError, match=line):
        stage(**changes).preflight(known)


def test_patches_of_14_pixels_are_refused_with_a_hint(tmp_path, scenes):
    model = build_vision(
        {"architecture": ENCODER, "patch_size": 14, "img_size": 28, "ref_feat_shape": (2, 2)}, num_classes=0, seed=0
    )
    encoder = save_vision(model, tmp_path / "encoder")
    known = Preflight({}, {"scenes": scenes.path, "encoder": encoder.path})
    with pytest.raises(UserError, match=r"8, 16 or 32 pixels, got 14.*patch_size: 16"):
        stage(detector={**SMALL, "image_size": 28}).preflight(known)
    resized = stage(patch_size=16, steps=1)
    resized.preflight(known)
    made = resized.run(context(tmp_path / "run", scenes=scenes, encoder=encoder))
    assert load_vision(made.path / "encoder").patch_embed.patch_size == (16, 16)


def test_an_encoder_without_patch_tokens_is_refused(tmp_path, scenes):
    encoder = save_vision(build_vision("resnet10t", num_classes=0), tmp_path / "encoder")
    with pytest.raises(UserError, match="no patch tokens"):
        stage().preflight(Preflight({}, {"scenes": scenes.path, "encoder": encoder.path}))


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"labels": ["boxes"]}, "needs masks, the dataset has boxes; set detector.masks: false"),
        ({"labels": ["semantic"]}, "needs boxes"),
        ({"has_images": False}, "images: false"),
        ({"num_objects": 0}, "expected annotated objects"),
    ],
)
def test_data_that_do_not_fit_are_one_line_before_the_run(tmp_path, scenes, encoder, facts, line):
    data = AnnotatedImages.create(tmp_path / "data", **{**scenes.model_dump(), **facts})
    known = Preflight({}, {"scenes": data.path, "encoder": encoder.path})
    with pytest.raises(UserError, match=line):
        stage().preflight(known)


def test_contradicting_settings_are_refused():
    for changes, line in (
        ({"start": "other"}, "exactly one of encoder and start"),
        ({"detector": with_cascade(prior=0.01)}, "prior has no effect"),
        ({"augmentation": {"scale": [2.0, 0.1]}}, "smallest <= largest"),
    ):
        with pytest.raises(ValidationError, match=line):
            stage(**changes)
