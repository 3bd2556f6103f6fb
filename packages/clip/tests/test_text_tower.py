"""Initialisation from another model's text tower, and a second training at another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clip_world import EVA, SIDE, TEXT, VIT, make_pool, plan, run_stage
from vfm.models import ClipModel, build_clip, load_clip, save_clip
from vfm.models.stages import ImportClip
from vfm.plugin import ClipCheckpoint, Context, Event, Preflight, UserError
from vfm_clip import ClipTrain
from vfm_clip.train import initial_model

TEXTS = ["a red square", "two blue circles"]


def donor(folder: Path, config: dict[str, Any] = VIT, **changes: Any) -> ClipCheckpoint:
    return save_clip(build_clip({**config, **changes}, seed=7), folder)


def started(stage: ClipTrain, root: Path, **inputs: ClipCheckpoint) -> tuple[ClipModel, list[str]]:
    """Return the model before its first step, and the messages."""
    events: list[Event] = []
    (root / "part").mkdir(exist_ok=True)
    folders = {name: each.path for name, each in inputs.items()}
    clip, *_ = initial_model(stage, Context("clip", root / "part", root / "work", folders, events.append))
    clip.module.eval()
    return clip, [event.data["message"] for event in events if "message" in event.data]


def test_an_initialised_text_tower_has_the_features_of_its_own_model(tmp_path: Path) -> None:
    checkpoint = donor(tmp_path)  # its text tower's names have no prefix, those of the new model have `text.`
    clip, messages = started(plan(model=EVA, init_text="donor"), tmp_path, donor=checkpoint)
    torch.testing.assert_close(clip.encode_texts(TEXTS), load_clip(checkpoint).encode_texts(TEXTS))
    assert any(line == "text tower from 'donor': 17 taken, 0 renamed, 0 resized, 0 new, 0 dropped" for line in messages)
    untouched = build_clip(EVA, seed=0).module.visual.state_dict()
    assert all(torch.equal(value, untouched[key]) for key, value in clip.module.visual.state_dict().items())


@pytest.mark.parametrize("config", [VIT, EVA], ids=["together", "apart"])
def test_another_joint_width_leaves_the_projection_new_and_locked_only_it_is_trained(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    checkpoint = donor(tmp_path / "donor", embed_dim=20)
    frozen = {"trained": {"type": "frozen"}}
    stage = plan(model=config, init_text="donor", text=frozen, steps=2, lr=0.01, schedule={"warmup_steps": 0})
    start, _ = started(stage, tmp_path, donor=checkpoint)
    trained, _ = run_stage(stage, tmp_path, pool=make_pool(tmp_path / "pool"), donor=checkpoint)
    before, after = start.module.state_dict(), load_clip(trained).module.state_dict()
    changed = {key for key in after if not key.startswith("visual.") and not torch.equal(before[key], after[key])}
    assert {key.removeprefix("text.") for key in changed} == {"text_projection", "logit_scale"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 4}, "text_cfg.heads is 4 there, 2 here"),  # no shape differs
        ({"pool_type": "last"}, "text_cfg.pool_type is 'last' there, 'argmax' here"),
        ({"context_length": 16}, "text_cfg.context_length is 16 there, 8 here"),
        ({"hf_tokenizer_name": "facebook/xlm-v-base"}, "hf_tokenizer_name is 'facebook/xlm-v-base' there, None here"),
    ],
)
def test_a_text_tower_of_another_architecture_is_refused_in_the_preflight(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other = {**VIT, "text_cfg": {**TEXT, **change}}
    coming = ImportClip(name="donor", source=other, pretrained="weights.pt")
    stage = ClipTrain(name="clip", data="pool", steps=1, model=EVA, init_text="donor")
    with pytest.raises(UserError, match=message):
        stage.preflight(Preflight({"donor": coming}, {}))
    if "hf_tokenizer_name" not in change:
        checkpoint = donor(tmp_path, other)
        for case in (
            lambda: stage.preflight(Preflight({}, {"donor": tmp_path})),
            lambda: started(stage, tmp_path, donor=checkpoint),
        ):
            with pytest.raises(UserError, match=message):
                case()
    stage.preflight(Preflight({"donor": coming.model_copy(update={"source": "hf-hub:someone/something"})}, {}))


def test_a_model_gets_the_activation_that_its_text_tower_was_trained_with(tmp_path: Path) -> None:
    quick = donor(tmp_path / "quick", quick_gelu=True)
    clip, messages = started(plan(model=EVA, init_text="donor"), tmp_path, donor=quick)
    torch.testing.assert_close(clip.encode_texts(TEXTS), load_clip(quick).encode_texts(TEXTS))
    assert any("'donor' was trained with QuickGELU: the model is built with it" in line for line in messages)
    assert load_clip(save_clip(clip, tmp_path / "saved")).config["quick_gelu"] is True
    gelu = donor(tmp_path / "gelu")
    plain, messages = started(plan(model={**EVA, "quick_gelu": True}, init_text="donor"), tmp_path, donor=gelu)
    torch.testing.assert_close(plain.encode_texts(TEXTS), load_clip(gelu).encode_texts(TEXTS))
    assert any("was trained with GELU" in line for line in messages)
    with pytest.raises(UserError, match="it was trained with QuickGELU, the model has GELU"):
        started(plan(model=None, init="start", init_text="donor"), tmp_path, donor=quick, start=gelu)


@pytest.mark.parametrize("config", [VIT, EVA], ids=["open_clip", "timm"])
def test_a_second_training_can_have_a_larger_image_size(tmp_path: Path, config: dict[str, Any]) -> None:
    own = config["vision_cfg"]["image_size"]
    small = donor(tmp_path / "small", config)
    stage = plan(model=None, init="small", image_size=2 * own, steps=1, global_batch_size=8)
    _, messages = started(stage, tmp_path, small=small)
    assert f"'small': image size {2 * own} in place of {own}; positions are resampled" in messages
    large, _ = run_stage(stage, tmp_path, pool=make_pool(tmp_path / "pool"), small=small)
    assert large.image_size == 2 * own == load_clip(large).preprocess.image_size
    bad = ClipTrain(name="clip", data="pool", steps=1, init="small", image_size=2 * SIDE + 1)
    with pytest.raises(UserError, match="not a multiple of its patch size"):
        bad.preflight(Preflight({}, {"small": small.path}))


def test_too_many_trained_blocks_are_refused_in_the_preflight(tmp_path: Path) -> None:
    small = donor(tmp_path)
    many = {"trained": {"type": "last_blocks", "blocks": 9}}
    stage = ClipTrain(name="c", data="p", steps=1, init="small", vision=many)
    with pytest.raises(UserError, match=r"trained\.blocks: expected 0 to 2, the blocks of CLIP; got 9"):
        stage.preflight(Preflight({}, {"small": small.path}))
