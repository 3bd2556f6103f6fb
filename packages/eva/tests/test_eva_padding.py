"""`runtime.pad_widths`: the same training to rounding, the same files, and resuming with either setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eva_toy import context, run_in_processes, stage
from vfm.plugin import ClipCheckpoint, Event, Pool

# EVA-02 with 170 hidden channels of SwiGLU and patches of 588 values.
MODEL = {"architecture": "eva02_mini_patch14_112", "embed_dim": 64, "depth": 2, "num_heads": 2}
PADDED = "SwiGLU of 170 as 192 in 2 layers, patch embedding of 588 as 592 in 1 layer"
SETTINGS = {
    "model": MODEL,
    "micro_batch_size": 4,
    "ema_decay": 0.9,
    "student": {"drop_path": 0.2, "patch_embed_grad": 0.1},
    "optimizer": {"grad_clip_norm": 1.0},
    "checkpoint": {"every_steps": 2},
}


class Cut(Exception):  # noqa: N818
    pass


@pytest.fixture
def train(pool: Pool, teacher: ClipCheckpoint):
    """Return a function that trains in a folder, to the end or to a step, and returns the reported kernels."""

    def go(folder: Path, pad_widths: bool, until: int | None = None, **changes: Any) -> str:
        running = []

        def listen(event: Event) -> None:
            if event.type == "kernels":
                running.append(event.data["running"])
            if event.type == "metrics" and event.data["step"] == until:
                raise Cut

        config = stage(**(SETTINGS | changes), runtime={"device": "cpu", "pad_widths": pad_widths})
        try:
            config.run(context(folder, listen, pool=pool, teacher=teacher))
        except Cut:
            assert until is not None
        return running[-1]

    return go


def made(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "artifact" / "model.safetensors")


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        torch.testing.assert_close(ours[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "sgd"])
def test_padding_does_not_change_weights_and_checkpoints(tmp_path, train, optimizer):
    assert (
        train(tmp_path / "plain", False, optimizer={"type": optimizer, "grad_clip_norm": 1.0})
        == "the libraries' own forward"
    )
    assert (
        train(tmp_path / "padded", True, optimizer={"type": optimizer, "grad_clip_norm": 1.0})
        == f"the libraries' own forward; padded: {PADDED}"
    )
    assert_same(made(tmp_path / "padded"), made(tmp_path / "plain"))
    files = [file.relative_to(tmp_path / "plain") for file in (tmp_path / "plain" / "work").rglob("*.safetensors")]
    assert {file.name for file in files} == {"model.safetensors", "optimizer.safetensors", "ema.safetensors"}
    for file in files:
        assert_same(load_file(tmp_path / "padded" / file), load_file(tmp_path / "plain" / file))


def test_two_processes_train_as_one(tmp_path, train, pool, teacher):
    changes = {"steps": 3, "student": {"patch_embed_grad": 0.1}}  # two processes draw other paths than one
    train(tmp_path / "plain", False, **changes)
    settings = SETTINGS | changes | {"runtime": {"device": "cpu", "pad_widths": True}}
    two = run_in_processes(tmp_path / "two", settings, pool, teacher)
    assert_same(made(two), made(tmp_path / "plain"))


def test_an_interrupted_training_resumes_to_the_bit_and_also_with_the_other_setting(tmp_path, train):
    train(tmp_path / "whole", True)
    for first, then in [(True, True), (True, False), (False, True)]:
        folder = tmp_path / f"{first}, {then}"
        train(folder, first, until=5)
        train(folder, then)
        if first == then:
            assert all(torch.equal(value, made(tmp_path / "whole")[name]) for name, value in made(folder).items())
        assert_same(made(folder), made(tmp_path / "whole"))


def test_a_model_that_needs_no_padding_is_reported(tmp_path, train):
    fits = {"architecture": "eva02_pico_patch8_32"}
    assert train(tmp_path, True, model=fits) == "the libraries' own forward; padded: nothing, no width needs it"
