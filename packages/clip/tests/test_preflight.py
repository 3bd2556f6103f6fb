"""What cannot work is told before any training, in one line that says what would."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import pytest

from clip_world import EVA, VIT, make_pool
from vfm import Context, UserError, VisionCheckpoint
from vfm.interfaces import VisionPretraining
from vfm.models import build_clip, build_vision, save_clip, save_vision
from vfm.models.stages import ImportVision
from vfm.stage import Preflight, Stage
from vfm_clip import ClipTrain
from vfm_clip.preflight import models_with_tower


class Pretrain(VisionPretraining):
    """A pre-training as another package may bring one."""

    kind: Literal["toy.pretrain"] = "toy.pretrain"
    name: str = "eva"
    steps: int | None = 1
    data: str = "pool"  # type: ignore[assignment]
    model: str | dict[str, Any] = "eva02_nano_patch4_32"
    image_size: int | None = None

    def run(self, ctx: Context) -> VisionCheckpoint:
        raise AssertionError("a preflight runs nothing")


def stage(**changes: Any) -> ClipTrain:
    return ClipTrain(**{"name": "clip", "data": "pool", "steps": 1, "global_batch_size": 8, **changes})


def check(clip: ClipTrain, *stages: Stage, **artifacts: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.preflight(Preflight({each.name: each for each in stages}, artifacts))


def misfit(clip: ClipTrain, *stages: Stage, **artifacts: Path) -> str:
    with pytest.raises(UserError) as caught:
        check(clip, *stages, **artifacts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_encoder_that_is_not_trained_yet_is_refused_with_the_model_that_takes_it() -> None:
    line = misfit(stage(model="ViT-Nano-4-32", init_vision="eva"), Pretrain())
    assert line == (
        "model ViT-Nano-4-32 cannot take init_vision 'eva' (eva02_nano_patch4_32) as its vision tower; "
        "model: EVA02-Nano-4-32 can"
    )


@pytest.mark.parametrize(
    ("model", "encoder", "says"),
    [
        ("EVA02-Pico-8-32", "eva02_nano_patch8_64", "model: EVA02-Nano-8-64 can"),
        ("EVA02-Nano-4-32", {"architecture": "eva02_nano_patch4_32", "depth": 6}, "the encoder has blocks.4."),
        ("EVA02-Nano-4-32", "vit_nano_patch4_32", "its vision tower has not; do depth and block type agree?"),
        (VIT, "eva02_pico_patch8_32", "model: EVA02-Pico-8-32 can"),
        ("EVA02-B-16", "eva02_base_patch14_xl", None),
    ],
)
def test_other_misfits_say_what_fits_or_why_not(model: Any, encoder: Any, says: str | None) -> None:
    if says is None:  # a mistyped encoder is for its own stage to tell
        check(stage(model=model, init_vision="eva"), Pretrain(model=encoder))
    else:
        assert says in misfit(stage(model=model, init_vision="eva"), Pretrain(model=encoder))


@pytest.mark.parametrize(
    ("model", "encoder", "size"),
    [
        ("EVA02-Nano-4-32", "eva02_nano_patch4_32", None),
        ("EVA02-Nano-8-32", "eva02_nano_patch8_64", None),  # positions are resampled
        ("EVA02-Nano-8-64", "eva02_nano_patch8_64", 48),
        ("EVA02-Mini-16-128", "eva02_mini_patch14_112", None),  # the paper's 14 to 16, with new norms
        ("EVA02-L-14", "eva02_large_patch14_224", None),
        ("EVA02-E-14", "eva_giant_patch14_224", "misfit"),
    ],
)
def test_models_of_any_size_are_checked_without_their_memory(model: str, encoder: str, size: Any) -> None:
    pretrain = Pretrain(model=encoder, image_size=size if isinstance(size, int) else None)
    clip = stage(model=model, init_vision="eva")
    if size == "misfit":
        assert "EVA01-g-14" in misfit(clip, pretrain)
    else:
        check(clip, pretrain)


def test_an_encoder_on_disk_is_checked_by_its_weights(tmp_path: Path) -> None:
    save_vision(build_vision("eva02_pico_patch8_32", num_classes=3, seed=0), tmp_path)
    check(stage(model=EVA, init_vision="eva"), Pretrain(), eva=tmp_path)
    line = misfit(stage(model="EVA02-Nano-8-32", init_vision="eva"), eva=tmp_path)
    assert line.endswith("(eva02_pico_patch8_32) as its vision tower; model: EVA02-Pico-8-32 can")


def test_an_imported_encoder_is_checked_by_its_name_and_a_folder_is_left_for_later() -> None:
    clip = stage(model="ViT-Nano-4-32", init_vision="beit")
    imported = ImportVision(kind="models.vision", name="beit", source="eva02_base_patch14_224.mim_in22k")
    assert "ViT-Nano-4-32 cannot take init_vision 'beit'" in misfit(clip, imported)
    check(clip, imported.model_copy(update={"source": "local-dir:encoders/mine"}))
    check(clip, imported.model_copy(update={"source": "hf-hub:someone/something"}))


def test_a_start_from_a_checkpoint_is_checked_against_its_own_tower(tmp_path: Path) -> None:
    start = build_clip(VIT, seed=0)
    start.name = "mine"
    save_clip(start, tmp_path)
    check(stage(init="start"), start=tmp_path)
    line = misfit(stage(init="start", init_vision="eva"), Pretrain(), start=tmp_path)
    assert line.startswith("model mine cannot take init_vision 'eva'")
    check(stage(init="start", init_vision="eva"), Pretrain())  # what is not there yet cannot be looked at


def test_the_presets_and_open_clips_own_models_are_found_by_their_tower() -> None:
    assert models_with_tower("eva02_nano_patch4_32") == ["EVA02-Nano-4-32"]
    assert models_with_tower("timm/eva02_base_patch16_clip_224.merged2b") == ["EVA02-B-16"]
    assert models_with_tower("eva02_nano_patch5_35") == []


def test_more_samples_a_step_than_pairs_and_a_language_that_is_not_there_are_refused(tmp_path: Path) -> None:
    make_pool(tmp_path)
    assert "global_batch_size 57 is more than the 56 pairs of 'pool'" in misfit(
        stage(global_batch_size=57), pool=tmp_path
    )
    assert misfit(stage(language="fr"), pool=tmp_path) == "pool has no captions in 'fr'; known: en"
    check(stage(), pool=tmp_path)


def test_names_that_no_one_knows_and_models_of_more_than_two_towers_are_refused() -> None:
    assert "did you mean 'ViT-Nano-4-32'" in misfit(stage(model="ViT-Nano-4-23"))
    assert "coca_ViT-B-32 writes captions too" in misfit(stage(model="coca_ViT-B-32"))
    assert "not a multiple of its patch size" in misfit(stage(image_size=33))
