"""The estimates of memory are those of the trainings which then run; Stable Diffusion has its published size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import mllm_toy
from diva_toy import prior_config, tune_config
from vfm.models import load_clip
from vfm.plugin import (
    ClipCheckpoint,
    Context,
    Cost,
    Event,
    GeneratorCheckpoint,
    Pool,
    Preflight,
    QuestionDataset,
    Training,
    UserError,
)
from vfm.train import LiveBytes
from vfm_diva.mllm.estimate import mllm_train_cost
from vfm_diva.prior.estimate import diva_prior_cost
from vfm_diva.tune.estimate import diva_tune_cost, stable_diffusion


def measured(config: Training, folder: Path, inputs: Mapping[str, Path]) -> int:
    """Run the training; return the peak of live bytes in its second step (the first counts operations, too)."""
    counter, peaks = LiveBytes(), [0]

    def listen(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 1:
            counter.peak = counter.now
        if event.type == "metrics" and event.data["step"] == 2:  # before a checkpoint is written
            peaks.append(counter.peak)

    (folder / "part").mkdir(parents=True)
    with counter:
        config.run(Context(config.name, folder / "part", folder / "work", inputs, listen))
    return peaks[-1]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 8, "precision": "amp_bf16"}], ids=["plain", "bf16"])
def test_memory_is_within_15_percent_of_what_a_tuning_takes(
    settings: dict[str, Any], tmp_path: Path, pool: Pool, clip: ClipCheckpoint, prior: GeneratorCheckpoint
) -> None:
    config = tune_config(global_batch_size=48, steps=3, log_every=1, **settings)
    folders = {"pool": pool.path, "clip": clip.path, "prior": prior.path}
    cost = diva_tune_cost(config, Preflight({}, folders))
    assert cost.memory
    peak = measured(config, tmp_path, folders)
    weights = load_clip(clip).module.named_parameters()  # the text tower is never moved to the device
    text = sum(weight.nbytes for name, weight in weights if not name.startswith("visual."))
    assert cost.memory.total == pytest.approx(peak - text, rel=0.15)


@pytest.mark.slow
def test_the_first_training_of_an_adapter_is_counted(
    clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint
) -> None:
    def cost(first_steps: int, **settings: Any) -> Cost:
        config = tune_config(adapter={"type": "linear", "first_steps": first_steps}, **settings)
        return diva_tune_cost(config, Preflight({}, {"clip": clip.path, "prior": stable_diffusion.path}))

    none, some, twice = (cost(steps) for steps in (0, 4, 8))
    assert none.flops
    assert some.flops
    assert 0.3 * none.flops < some.flops - none.flops < none.flops  # as many steps, without the tower's gradient
    assert twice.flops == 2 * some.flops - none.flops
    assert none.memory == some.memory


@pytest.mark.slow
@pytest.mark.parametrize("source", ["image", "both"])
def test_memory_is_within_15_percent_of_what_a_prior_takes(
    source: str, tmp_path: Path, pool: Pool, clip: ClipCheckpoint
) -> None:
    config = prior_config(condition={"source": source}, global_batch_size=48, steps=3, log_every=1)
    folders = {"pool": pool.path, "clip": clip.path}
    cost = diva_prior_cost(config, Preflight({}, folders))
    assert cost.memory
    assert cost.memory.total == pytest.approx(measured(config, tmp_path, folders), rel=0.15)


@pytest.mark.parametrize("trains", ["frozen", "all"])
def test_memory_is_within_15_percent_of_what_a_multimodal_training_takes(
    trains: str, tmp_path: Path, clip: ClipCheckpoint
) -> None:
    asked = mllm_toy.make_questions(tmp_path / "asked")
    config = mllm_toy.train_config(trained={"type": trains}, global_batch_size=32, steps=3, log_every=1)
    folders = {"asked": asked.path, "clip": clip.path}
    cost = mllm_train_cost(config, Preflight({}, folders))
    assert cost.memory
    assert cost.memory.total == pytest.approx(measured(config, tmp_path / "run", folders), rel=0.15)
    second = mllm_toy.train_config(init="mllm", trained={"type": trains}, global_batch_size=32, steps=3)
    follows = mllm_train_cost(second, Preflight({"mllm": config}, folders))
    made = mllm_train_cost(second, Preflight({}, {**folders, "mllm": tmp_path / "run/part"}))
    assert follows.memory == made.memory == cost.memory


def test_what_is_not_known_of_a_multimodal_training_is_assumed_or_named(clip: ClipCheckpoint) -> None:
    config, folders = mllm_toy.train_config(), {"clip": clip.path}
    cost = mllm_train_cost(config, Preflight({}, folders))
    assert cost.memory
    assert cost.unknown == ("the questions asked, for which 32 of 1000 words are assumed",)
    assert mllm_train_cost(config, Preflight({}, {})).unknown == ("the model clip",)
    assert mllm_train_cost(mllm_toy.train_config(init="first"), Preflight({}, {})).unknown == ("the model first",)
    hub = mllm_toy.train_config(language_model={"type": "pretrained", "source": "org/name"})
    assert mllm_train_cost(hub, Preflight({}, folders)).unknown == ("the language model org/name",)


def test_a_multimodal_training_without_questions_is_refused(tmp_path: Path, clip: ClipCheckpoint) -> None:
    (tmp_path / "asked").mkdir()
    asked = QuestionDataset.create(tmp_path / "asked", num_questions=0, num_images=0)
    with pytest.raises(UserError, match=r"^asked: the dataset has no questions to train on$"):
        mllm_train_cost(mllm_toy.train_config(), Preflight({}, {"clip": clip.path, "asked": asked.path}))


def test_stable_diffusion_has_its_published_size() -> None:
    network = stable_diffusion().denoiser.network
    assert sum(parameter.numel() for parameter in network.parameters()) == 865_910_724
