"""The stage from a pool to a checkpoint: it learns, keeps locked weights, resumes exactly, shows its samples."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clip_world import COLOURS, EVA, VIT, halves, make_pool, plan, run_stage, tiny_task, train
from vfm.data import open_dataset
from vfm.eval import retrieval_ranks
from vfm.eval.retrieval.stages import Retrieval
from vfm.interfaces import load_panels
from vfm.models import build_clip, build_vision, load_clip, save_clip, save_vision
from vfm.plugin import ClipCheckpoint, Context, Event, FrozenWeights, UserError, VisionCheckpoint
from vfm_clip import Tower
from vfm_clip.data import training_data
from vfm_clip.train import initial_model

RESNET: dict[str, Any] = {
    **VIT,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "open_clip_model.safetensors")


def parts(state: dict[str, torch.Tensor], vision: bool) -> dict[str, torch.Tensor]:
    """Return the weights of a tower; the temperature belongs to neither."""
    return {k: v for k, v in state.items() if k.startswith("visual.") == vision and not k.startswith("logit_")}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_toy_run_learns_to_find_its_own_pairs(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    stage = plan(
        steps=80, global_batch_size=32, micro_batch_size=16, schedule={"warmup_steps": 20}, lr=3e-3, log_every=20
    )
    checkpoint, _ = run_stage(stage, tmp_path, pool=pool)
    model = load_clip(checkpoint)
    pairs = [(top, bottom) for top in COLOURS for bottom in COLOURS if top != bottom]
    pictures = [Image.open(io.BytesIO(halves(*pair))) for pair in pairs]
    texts = model.encode_texts([f"a picture of {top} on {bottom}" for top, bottom in pairs])
    ranks = retrieval_ranks(model.encode_images(pictures), texts, torch.arange(len(pairs)))
    for found in (ranks.text_retrieval, ranks.image_retrieval):
        assert (found < 1).mean() > 0.5  # chance: 1 of 56
    rows = [json.loads(line) for line in (checkpoint.path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/loss"] < math.log(32) / 2


def test_samples_without_captions_in_the_language_are_skipped_and_counted(tmp_path: Path) -> None:
    captions = {
        f"{top} on black": {"en": [f"all {top}"], "de": ["ein Bild", f"ganz {top}"]}
        for top in COLOURS
        if top != "black"
    }
    captions["red on black"] = {"de": ["ein Bild", "ganz red"]}
    pool = make_pool(tmp_path / "pool", captions)
    settings = {"steps": 2, "global_batch_size": 7, "loading": {"max_bad_fraction": 0.5}}
    events: list[Event] = []
    _, english = run_stage(plan(**settings), tmp_path / "en", send=events.append, pool=pool)
    bad = [event.data for event in events if event.type == "bad_sample"]
    assert english.bad == {"missing_caption": 1}  # although every epoch meets it
    assert [item["where"].endswith("red_on_black") for item in bad] == [True]
    checkpoint, german = run_stage(plan(**settings, language="de"), tmp_path / "de", pool=pool)
    assert not german.bad
    (seen,) = (panel for panel in load_panels(checkpoint.path) if panel.title == "First training samples")
    assert {picture.caption for picture in seen.pictures} <= {"ein Bild", *(f"ganz {top}" for top in COLOURS)}
    with pytest.raises(UserError, match="pool has no captions in 'fr'; known: de, en"):
        run_stage(plan(**settings, language="fr"), tmp_path / "fr", pool=pool)
    with pytest.raises(UserError, match="global_batch_size must be at most 7, the pairs of 'pool'; got 8"):
        run_stage(plan(**{**settings, "global_batch_size": 8}), tmp_path / "many", pool=pool)


@pytest.mark.parametrize(
    ("locked", "config"), [("image", VIT), ("image", EVA), ("image", RESNET), ("text", VIT), ("text", EVA)]
)
def test_a_locked_tower_is_unchanged_to_the_bit_and_the_other_is_trained(
    tmp_path: Path, locked: str, config: dict[str, Any]
) -> None:
    start = build_clip(config, seed=5)
    save_clip(start, tmp_path / "start")
    before = {key: value.clone() for key, value in start.module.state_dict().items()}
    task = tiny_task(config)
    pool = make_pool(tmp_path / "pool")
    stage = plan(
        model=None,
        init="start",
        steps=2,
        micro_batch_size=4,
        **{"vision" if locked == "image" else "text": {"trained": {"type": "frozen"}}},
    )
    checkpoint, _ = run_stage(stage, tmp_path, pool=pool, start=ClipCheckpoint.load(tmp_path / "start"))
    after = weights(checkpoint.path)
    assert same(parts(before, vision=True), parts(after, vision=True)) == (locked == "image")
    assert same(parts(before, vision=False), parts(after, vision=False)) == (locked == "text")
    assert not torch.equal(before["logit_scale"], after["logit_scale"])
    task = tiny_task(VIT, **{"vision" if locked == "image" else "text": Tower(trained=FrozenWeights())})
    assert task.train().module.visual.training == (locked == "text")


def test_an_initialised_tower_has_the_encoders_features_and_locked_only_its_projection_is_trained(
    tmp_path: Path,
) -> None:
    encoder = build_vision("eva02_pico_patch8_32", num_classes=0, seed=9).eval()
    vision = save_vision(encoder, tmp_path / "eva")
    frozen = {"trained": {"type": "frozen"}}
    stage = plan(model=EVA, init_vision="eva", vision=frozen, steps=3, lr=0.01, schedule={"warmup_steps": 0})
    pool = make_pool(tmp_path / "pool")
    images = torch.randn(4, 3, 32, 32)
    events: list[Event] = []
    start, *_ = initial_model(
        stage, Context("clip", tmp_path / "part", tmp_path / "work", {"eva": vision.path}, events.append)
    )
    start.module.eval()
    with torch.no_grad():
        seen = encoder.fc_norm(
            encoder.forward_features(images)
        )  # its norm follows the pooling, the tower's precedes it
        torch.testing.assert_close(start.module.visual.trunk.forward_features(images), seen)
    assert "vision tower from 'eva'" in events[0].data["message"]

    checkpoint, _ = run_stage(stage, tmp_path, pool=pool, eva=VisionCheckpoint.load(vision.path))
    before, after = start.module.state_dict(), weights(checkpoint.path)
    changed = {key for key in after if key.startswith("visual.") and not torch.equal(before[key], after[key])}
    assert changed == {"visual.trunk.head.weight", "visual.trunk.head.bias"}
    assert any(panel.title == "Transferred weights" for panel in load_panels(checkpoint.path))


def test_the_temperature_is_initialised_clamped_and_locked(tmp_path: Path) -> None:
    for name, changes, expected in [
        ("limit", {"logit_scale": {"init": 19.9, "max": 20}, "lr": 0.05}, 20.0),
        ("locked", {"logit_scale": {"init": 50, "lock": True}, "lr": 0.05}, 50.0),
        ("own", {"lr": 0.0}, 1 / 0.07),
    ]:
        stage = plan(**changes, steps=6, schedule={"warmup_steps": 0})
        pool = make_pool(tmp_path / name / "pool")
        checkpoint, _ = run_stage(stage, tmp_path / name, pool=pool)
        rows = [json.loads(line) for line in (checkpoint.path / "metrics.jsonl").read_text().splitlines()]
        assert weights(checkpoint.path)["logit_scale"].exp().item() <= expected * (1 + 1e-6)
        assert max(row["train/logit_scale"] for row in rows) == pytest.approx(expected, rel=0.02)
        assert (rows[0]["train/logit_scale"] == rows[-1]["train/logit_scale"]) == (name != "limit")


def test_the_inverse_temperature_is_at_least_one(tmp_path: Path) -> None:
    task = tiny_task(VIT)
    with torch.no_grad():
        task.log_scale.fill_(-3.0)
    task.after_step()
    assert task.log_scale.item() == 0.0


def test_info_nce_does_not_train_siglips_bias(tmp_path: Path) -> None:
    task = tiny_task({**VIT, "init_logit_bias": -10.0})
    train(tmp_path, plan(steps=2, micro_batch_size=4), task)
    assert task.module.logit_bias.item() == -10.0


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    stage = plan(
        model={**EVA, "vision_cfg": {**EVA["vision_cfg"], "timm_drop_path": 0.3, "patch_dropout": 0.25}},
        steps=7,
        global_batch_size=16,
        micro_batch_size=8,
        ema_decay=0.9,
        checkpoint={"every_steps": 3},
    )

    def cut(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, tmp_path / "cut", send=cut, pool=pool)
    events: list[Event] = []
    again, _ = run_stage(stage, tmp_path / "cut", send=events.append, pool=pool)
    unbroken, _ = run_stage(stage, tmp_path / "unbroken", pool=pool)
    assert [event.data["step"] for event in events if event.type == "metrics"] == [4, 5, 6, 7]
    for file in ("open_clip_model.safetensors", "metrics.jsonl", "open_clip_config.json"):
        assert (again.path / file).read_bytes() == (unbroken.path / file).read_bytes()


def test_the_report_shows_the_first_samples_before_the_curves(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    stage = plan(steps=3, global_batch_size=20, seed=4)
    checkpoint, _ = run_stage(stage, tmp_path, pool=pool)
    panels = load_panels(checkpoint.path)
    assert [panel.title for panel in panels][:2] == ["First training samples", "Training loss"]
    (cosines,) = [panel for panel in panels if panel.title == "Mutual cosine"]
    assert [series.name for series in cosines.series] == ["image", "text"]
    assert len(panels[0].pictures) == 16
    data, _ = training_data(stage, [pool], load_clip(checkpoint), {"en": 1.0})
    (first,) = next(data.steps(0, 1))
    source = open_dataset(pool)
    captions = dict(zip(source.keys, (source[i].texts["en"][0] for i in range(len(source))), strict=True))
    for picture, key, pixels in zip(panels[0].pictures, first.keys, first.inputs.images, strict=False):
        assert picture.caption == captions[key]
        with Image.open(checkpoint.path / picture.file) as shown:
            seen = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(16, 16, 3).permute(2, 0, 1)
        assert (seen.float() - pixels.float()).abs().mean() < 12  # JPEG


def test_evaluations_after_the_last_step_equal_those_of_the_checkpoint(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    evaluation = Retrieval(name="retrieval", data="pool", recall_k=[1, 5])
    stage = plan(steps=6, global_batch_size=32, ema_decay=0.5, evaluation={"tasks": [evaluation], "every_steps": 4})
    checkpoint, _ = run_stage(stage, tmp_path, pool=pool)
    rows = [json.loads(line) for line in (checkpoint.path / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if row["split"] == "val"]
    assert [row["step"] for row in evaluated] == [4, 6]
    folder = tmp_path / "report"
    folder.mkdir()
    inputs = {"pool": pool.path, "model": checkpoint.path}
    alone = Retrieval(name="retrieval", data="pool", recall_k=[1, 5], models=["model"])
    report = alone.run(Context("retrieval", folder, folder, inputs))
    assert {f"val/{metric.name}": metric.value for metric in report.metrics} == {
        key: value for key, value in evaluated[-1].items() if key.startswith("val/")
    }
