"""MMVP-VLM with DIVA's image feature: the expected value of its authors' forward pass, for all models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eval_world import ColourModel, pairs, run_in, tiny_clip
from vfm.base import UserError
from vfm.data.choices.choices import load_choices
from vfm.data.samples.images import decode_image
from vfm.eval.choices.choice_logits import ClassAndPatches
from vfm.eval.choices.choices import score_mmvp_vlm
from vfm.models import ClipModel, load_clip


def by_hand(model: ClipModel, pictures: list) -> torch.Tensor:
    """Compute the feature from the class token and every patch after the last norm and the projection."""
    visual = model.module.visual
    caught: list[torch.Tensor] = []
    hook = visual.transformer.register_forward_hook(lambda *call: caught.append(call[2]))
    with torch.no_grad():
        visual(model.preprocess.inputs(pictures, model.device))
    hook.remove()
    tokens = visual.ln_post(caught[0]) @ visual.proj
    return F.normalize(tokens[:, 0] + tokens[:, 1:].mean(dim=1), dim=-1)


def test_the_feature_is_the_class_token_plus_the_mean_of_the_patches(tmp_path: Path) -> None:
    model = load_clip(tiny_clip(tmp_path / "clip", 1).path)
    pictures = [decode_image(image, "") for item in load_choices(pairs(tmp_path / "data")) for image in item.images]
    torch.testing.assert_close(ClassAndPatches(model).encode_images(pictures, 5), by_hand(model, pictures))


def test_all_models_are_scored_by_both_rules_and_the_official_scores_do_not_change(tmp_path: Path) -> None:
    data = pairs(tmp_path / "data", 12)
    models = {name: load_clip(tiny_clip(tmp_path / name, seed).path) for seed, name in enumerate(("one", "other"))}
    plain = score_mmvp_vlm(run_in(tmp_path / "plain").ctx, models, data, prompt="").results
    both = score_mmvp_vlm(run_in(tmp_path / "both").ctx, models, data, prompt="", diva_scoring=True).results
    for name in models:
        official, found = plain[name].scores, both[name].scores
        assert [v.metric for v in found] == [*(v.metric for v in official), "diva_pair_accuracy"]
        assert all((a.correct == b.correct).all() for a, b in zip(official, found, strict=False))
        assert (np.array(both[name].predictions["pairs"]["diva_correct"]) == found[-1].correct).all()


def test_models_without_patches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="right: diva_scoring needs the patch tokens of a CLIP model, got ColourModel"):
        score_mmvp_vlm(
            run_in(tmp_path / "out").ctx,
            {"right": ColourModel()},
            pairs(tmp_path / "data"),
            prompt="",
            diva_scoring=True,
        )
