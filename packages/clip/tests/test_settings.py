"""Settings that contradict one another, or of which one would do nothing, are refused by the plan."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from vfm_clip import ClipTrain
from vfm_clip.tower_training import TowerTraining


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lock_image": True, "lock_text": True, "init": "x"}, "leave nothing to train"),
        ({"lock_image": True}, "lock_image would keep random weights: give init or init_vision"),
        ({"lock_text": True, "init_vision": "x"}, "lock_text would keep random weights: give init or init_text"),
        ({"lock_image_unlocked_groups": 2}, "unlocks a part of what lock_image locks"),
        ({"lock_text_unlocked_layers": 2}, "unlocks a part of what lock_text locks"),
        (
            {"lock_image": True, "init": "x", "drop_path": 0.1},
            "lock_image keeps .* as it is: drop_path would do nothing",
        ),
        ({"lock_image": True, "init": "x", "image_layer_decay": 0.9}, "image_layer_decay would do nothing"),
        ({"lock_text": True, "init": "x", "text_lr": 1e-5}, "lock_text keeps .* as it is: text_lr would do nothing"),
        ({"init": "x", "model": "ViT-Nano-4-32"}, "leave model out"),
        ({"unmasked_steps": 1}, "unmasked_steps says when patch_dropout is over: give both"),
        ({"unmasked_steps": 2, "patch_dropout": 0.5}, "unmasked_steps 2 are more than the 1 of the training"),
        ({"lr": 0, "image_lr": 1e-4}, "follow the schedule of lr, which must be above 0"),
        ({"logit_scale_init": 200}, "logit_scale_init 200 is above its max, 100"),
        ({"crop_scale": (1.0, 0.5)}, "crop_scale"),
        ({"crop_ratio": (0, 1)}, "crop_ratio"),
        ({"crop_ratio": (1, 1), "crop_scale": None}, "crop_scale: null asks for none: leave crop_ratio out"),
        ({"loss_chunk_size": 0}, "loss_chunk_size"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClipTrain(**{"name": "clip", "data": "pool", "steps": 1, **changes})


def test_noise_in_a_locked_tower_is_for_what_of_it_is_trained() -> None:
    lock = {"name": "clip", "data": "pool", "steps": 1, "lock_image": True, "patch_dropout": 0.5}
    for changes in ({"init": "x", "lock_image_unlocked_groups": 2}, {"init_vision": "x"}):
        assert ClipTrain(**lock, **changes).noise == {"patch_dropout": 0.5}
    assert ClipTrain(**{**lock, "patch_dropout": 0}, init="x").noise == {"patch_dropout": 0}


def test_every_own_setting_says_what_it_is() -> None:
    own = ClipTrain.__annotations__.keys() | TowerTraining.__annotations__.keys()
    for name in own & ClipTrain.model_fields.keys() - {"kind"}:
        assert ClipTrain.model_fields[name].description, name
    assert ClipTrain.model_fields["kind"].default == ClipTrain.kind_name() == "clip.train"
