"""Faults are injected into trainings, and their warnings compared; a training that learns raises none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vfm_clip.diagnosis
from clip_world import COLOURS, make_pool, plan, run_stage
from vfm.plugin import Context, Event
from vfm_clip.feature_metrics import effective_rank, mutual_cosine, pair_similarity, repeated, token_hash
from vfm_clip.train import _diagnosis


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the grace period for trainings of a few steps."""
    monkeypatch.setattr(vfm_clip.diagnosis, "GRACE", (1, 4))


def warnings(root: Path, captions: Any = None, **changes: Any) -> list[str]:
    """Return the warnings of a training."""
    events: list[Event] = []
    settings = {"steps": 8, "global_batch_size": 16, "schedule": {"warmup_steps": 0}, "log_every": 2, **changes}
    run_stage(plan(**settings), root, send=events.append, pool=make_pool(root / "pool", captions))
    return [event.data["message"] for event in events if event.type == "warning"]


def test_a_loss_at_chance_level_is_reported_once_with_what_to_try(tmp_path: Path) -> None:
    flat = {"lr": 0.0, "logit_scale": {"init": 1.0, "lock": True}}
    (line,) = [line for line in warnings(tmp_path, **flat) if "chance level" in line]
    assert line.startswith("step 2: the loss, 2.")
    assert "is at chance level for 16 pairs (ln 16): nothing is learned. Try a longer warm-up" in line


def test_the_chance_level_of_siglip_is_higher(tmp_path: Path) -> None:
    flat = {"lr": 0.0, "loss": {"type": "siglip", "logit_bias_init": -2.7}}
    (line,) = [
        line for line in warnings(tmp_path, **flat, logit_scale={"init": 1.0, "lock": True}) if "chance level" in line
    ]
    assert "(ln 16 + 1)" in line


def logged(root: Path, *rows: dict[str, float], **changes: Any) -> list[str]:
    """Return the warnings about these metrics, one row every tenth step."""
    events: list[Event] = []
    ctx = Context("clip", root, root, {}, events.append)
    diagnosis = _diagnosis(plan(schedule={"warmup_steps": 0}, **changes), ctx)
    for number, row in enumerate(rows, start=1):
        values = {f"train/{name}": value for name, value in {"loss": 1.0, **row}.items()}
        diagnosis(Event("metrics", "clip", {"step": 10 * number, "values": values}))
    return [event.data["message"] for event in events if event.type == "warning"]


def test_a_temperature_at_its_minimum_is_reported_unless_it_is_locked(tmp_path: Path) -> None:
    (line,) = [line for line in warnings(tmp_path / "a", logit_scale={"init": 1.0}, lr=0.0) if "temperature" in line]
    assert line.startswith("step 2: the inverse temperature has fallen to its minimum, 1")
    locked = warnings(tmp_path / "b", logit_scale={"init": 1.0, "lock": True}, lr=0.0)
    assert not [line for line in locked if "inverse temperature" in line]


def test_a_temperature_that_rises_to_its_limit_is_reported_but_not_one_that_starts_there(
    tmp_path: Path,
) -> None:
    rising = [{"logit_scale": 18.0}, {"logit_scale": 19.0}, {"logit_scale": 19.99}, {"logit_scale": 20.0}]
    settings = {"steps": 80, "logit_scale": {"max": 20.0}}
    (line,) = logged(tmp_path, *rising, **settings)
    assert line.startswith("step 30 of 80: the inverse temperature is at its limit, 20. Long trainings end there")
    assert logged(tmp_path, *rising[2:], **settings) == []
    assert logged(tmp_path, *rising, steps=80, logit_scale={"max": 20.0, "lock": True}) == []


def test_repeated_captions_of_a_batch_are_reported_with_their_fraction(tmp_path: Path) -> None:
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


def test_repeated_samples_of_a_batch_are_reported(tmp_path: Path) -> None:
    """Check a batch nearly as large as the data: an epoch ends and the next begins within it."""
    (line,) = [line for line in warnings(tmp_path, steps=4, global_batch_size=40) if "twice" in line]
    assert "Is a file listed twice, or is global_batch_size (40) near the number of pairs?" in line


def test_collapsed_features_are_reported(tmp_path: Path) -> None:
    """Check a training without a warm-up and with a high lr, whose features collapse at once."""
    lines = warnings(tmp_path, lr=0.3, optimizer={"weight_decay": 0.0}, steps=12)
    assert [line for line in lines if "the image features have collapsed" in line]
    assert [line for line in lines if "Try a lower lr" in line]


def test_a_training_that_learns_raises_no_warning(tmp_path: Path) -> None:
    """Check the measured metrics of `clip_flickr`, every fiftieth step."""
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


def test_warnings_from_before_an_interruption_are_not_repeated(tmp_path: Path) -> None:
    events: list[Event] = []
    ctx = Context("clip", tmp_path, tmp_path, {}, events.append)
    event = Event("metrics", "clip", {"step": 6, "values": {"train/loss": 2.77, "train/contrastive_loss": 2.77}})
    stage = plan(steps=8, global_batch_size=16, schedule={"warmup_steps": 0})
    for _ in range(2):
        _diagnosis(stage, ctx)(event)
    assert [e.type for e in events].count("warning") == 2, "nothing was logged in between"
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 5, "split": "train", "train/loss": 2.77, "train/contrastive_loss": 2.77}\n'
    )
    _diagnosis(stage, ctx)(replace(event, data={**event.data, "step": 8}))
    assert [e.type for e in events].count("warning") == 2


def test_metrics_equal_their_definitions() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(9, 5, generator=draw), dim=-1)
    cosines = features @ features.T
    mean = (cosines.sum() - cosines.diagonal().sum()) / 72
    torch.testing.assert_close(mutual_cosine(features), mean)
    for part in (features, features[:3]):  # more samples than directions, and fewer
        spectrum = torch.linalg.eigvalsh(torch.cov(part.T.double(), correction=0))
        expected = (spectrum.sum() ** 2 / (spectrum**2).sum()).float()
        torch.testing.assert_close(effective_rank(part), expected, atol=1e-4, rtol=1e-4)
    assert effective_rank(features[:1].expand(4, 5)) == 0
    tokens = torch.tensor([[1, 2, 0], [2, 1, 0], [1, 2, 0], [5, 5, 5]])
    hashes = token_hash(tokens)
    assert (hashes[:, None] == hashes).sum() == 6
    assert repeated(hashes, hashes) == 0.5
    assert repeated(hashes[3:], torch.cat([hashes, hashes[3:]])) == 1


@pytest.mark.parametrize("num", [1, 7])
def test_the_similarity_of_pairs_is_that_of_the_whole_matrix(num: int) -> None:
    draw = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(num, 5, generator=draw), dim=-1) for _ in range(2))
    cosines = image @ text.T
    found = pair_similarity(image, text)
    wrong = [cosines[i, j] for i in range(num) for j in range(num) if i != j]
    torch.testing.assert_close(found["train/similarity/right_pairs"], cosines.diagonal().mean())
    expected = torch.stack(wrong).mean() if wrong else torch.zeros(())
    torch.testing.assert_close(found["train/similarity/wrong_pairs"], expected, rtol=1e-5, atol=1e-6)
