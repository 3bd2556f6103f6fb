"""Faults are injected into trainings, and what the log says of them is read; a training that learns hears nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vfm_clip.diagnosis
from clip_world import COLOURS, make_pool, plan, run_stage
from vfm import Context, Event
from vfm_clip.diagnosis import Diagnosis
from vfm_clip.spread import effective_rank, mutual_cosine, repeated, token_hash


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a few steps have their time of grace in proportion."""
    monkeypatch.setattr(vfm_clip.diagnosis, "GRACE", (1, 4))


def warnings(root: Path, captions: Any = None, **changes: Any) -> list[str]:
    """What is told while a training runs."""
    told: list[Event] = []
    settings = {"steps": 8, "global_batch_size": 16, "warmup_steps": 0, "log_every": 2, **changes}
    run_stage(plan(**settings), root, send=told.append, pool=make_pool(root / "pool", captions))
    return [event.data["message"] for event in told if event.type == "warning"]


def test_a_loss_that_rests_at_the_blind_guess_is_told_once_with_what_to_try(tmp_path: Path) -> None:
    flat = {"lr": 0.0, "logit_scale_init": 1.0, "lock_logit_scale": True}
    (line,) = [line for line in warnings(tmp_path, **flat) if "blind guess" in line]
    assert line.startswith("step 2: the loss, 2.")
    assert "that of a blind guess among 16 pairs (ln 16): nothing is learned. Try a longer warm-up" in line


def test_siglips_blind_guess_is_a_little_more(tmp_path: Path) -> None:
    flat = {"lr": 0.0, "loss": {"type": "siglip", "logit_bias_init": -2.7}, "logit_scale_init": 1.0}
    (line,) = [line for line in warnings(tmp_path, **flat, lock_logit_scale=True) if "blind guess" in line]
    assert "(ln 16 + 1)" in line


def logged(root: Path, *rows: dict[str, float], **changes: Any) -> list[str]:
    """What is told of these numbers, one row every tenth step."""
    told: list[Event] = []
    diagnosis = Diagnosis(Context("clip", root, root, {}, told.append), plan(warmup_steps=0, **changes))
    for number, row in enumerate(rows, start=1):
        values = {f"train/{name}": value for name, value in {"loss": 1.0, **row}.items()}
        diagnosis(Event("metrics", "clip", {"step": 10 * number, "values": values}))
    return [event.data["message"] for event in told if event.type == "warning"]


def test_a_temperature_that_falls_to_its_least_is_told_unless_it_is_locked(tmp_path: Path) -> None:
    (line,) = [line for line in warnings(tmp_path / "a", logit_scale_init=1.0, lr=0.0) if "temperature" in line]
    assert line.startswith("step 2: the inverse temperature has fallen to its least, 1")
    locked = warnings(tmp_path / "b", logit_scale_init=1.0, lr=0.0, lock_logit_scale=True)
    assert not [line for line in locked if "inverse temperature" in line]


def test_a_temperature_that_rises_to_its_limit_is_told_but_not_one_that_a_pretrained_model_brings(
    tmp_path: Path,
) -> None:
    rising = [{"logit_scale": 18.0}, {"logit_scale": 19.0}, {"logit_scale": 19.99}, {"logit_scale": 20.0}]
    settings = {"steps": 80, "logit_scale_max": 20.0}
    (line,) = logged(tmp_path, *rising, **settings)
    assert line.startswith("step 30 of 80: the inverse temperature is at its limit, 20. Long trainings end there")
    assert logged(tmp_path, *rising[2:], **settings) == []
    assert logged(tmp_path, *rising, **settings, lock_logit_scale=True) == []


def test_captions_that_stand_twice_in_a_batch_are_told_with_their_share(tmp_path: Path) -> None:
    captions = {
        f"{top} on {bottom}": {"en": [f"a picture with {top}"]}
        for top in COLOURS
        for bottom in COLOURS
        if top != bottom
    }
    (line,) = [line for line in warnings(tmp_path, captions) if "same caption" in line]
    share = float(line.split("%")[0].split(": ")[1])
    assert share > 50
    assert "curation.filter (duplicates of text)" in line


def test_samples_that_stand_twice_in_a_batch_are_told(tmp_path: Path) -> None:
    """Where a batch is nearly as large as the data, an epoch ends within it and the next begins."""
    (line,) = [line for line in warnings(tmp_path, steps=4, global_batch_size=40) if "twice" in line]
    assert "Is a file listed twice, or is global_batch_size (40) near the number of pairs?" in line


def test_features_that_are_all_alike_are_told(tmp_path: Path) -> None:
    """Without any warm-up and at a high rate features collapse at once."""
    lines = warnings(tmp_path, lr=0.3, weight_decay=0.0, steps=12)
    assert [line for line in lines if "the image features have collapsed" in line]
    assert [line for line in lines if "Try a lower lr" in line]


def test_the_numbers_of_a_training_that_learns_are_no_news(tmp_path: Path) -> None:
    """Those of `clip_flickr` as measured, every fiftieth step."""
    names = (
        "contrastive_loss", "logit_scale", "effective_rank/image", "effective_rank/text", "mutual_cosine/image",
        "mutual_cosine/text", "repeated/captions",
    )  # fmt: skip
    measured = (
        (5.336, 14.185, 2.264, 2.798, 0.861, 0.924, 0.002),
        (5.043, 14.068, 2.831, 3.111, 0.796, 0.789, 0.001),
        (4.833, 13.997, 3.622, 3.889, 0.721, 0.726, 0.002),
        (4.626, 14.017, 4.046, 4.349, 0.645, 0.662, 0.000),
        (4.453, 14.098, 4.748, 5.066, 0.574, 0.605, 0.000),
    )
    rows = [dict(zip(names, row, strict=True)) for row in measured]
    assert logged(tmp_path, *rows, steps=450, global_batch_size=256) == []


def test_what_was_told_before_a_cut_is_not_told_again(tmp_path: Path) -> None:
    told: list[Event] = []
    ctx = Context("clip", tmp_path, tmp_path, {}, told.append)
    event = Event("metrics", "clip", {"step": 6, "values": {"train/loss": 2.77, "train/contrastive_loss": 2.77}})
    stage = plan(steps=8, global_batch_size=16, warmup_steps=0)
    for _ in range(2):
        Diagnosis(ctx, stage)(event)
    assert [e.type for e in told].count("warning") == 2, "nothing was logged in between"
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 5, "split": "train", "train/loss": 2.77, "train/contrastive_loss": 2.77}\n'
    )
    Diagnosis(ctx, stage)(replace(event, data={**event.data, "step": 8}))
    assert [e.type for e in told].count("warning") == 2


def test_measures_against_their_definitions() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(9, 5, generator=draw), dim=-1)
    cosines = features @ features.T
    mean = (cosines.sum() - cosines.diagonal().sum()) / 72
    torch.testing.assert_close(mutual_cosine(features), mean)
    for part in (features, features[:3]):  # more samples than directions, and fewer
        spectrum = torch.linalg.eigvalsh(torch.cov(part.T.double(), correction=0))
        wanted = (spectrum.sum() ** 2 / (spectrum**2).sum()).float()
        torch.testing.assert_close(effective_rank(part), wanted, atol=1e-4, rtol=1e-4)
    assert effective_rank(features[:1].expand(4, 5)) == 0
    tokens = torch.tensor([[1, 2, 0], [2, 1, 0], [1, 2, 0], [5, 5, 5]])
    hashes = token_hash(tokens)
    assert (hashes[:, None] == hashes).sum() == 6
    assert repeated(hashes, hashes) == 0.5
    assert repeated(hashes[3:], torch.cat([hashes, hashes[3:]])) == 1
