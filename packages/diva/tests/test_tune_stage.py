"""`diva.tune` with every part as a recipe gives it: presets, the adapter's first stage, and what preflight refuses."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from diva_families import add_text_encoder, family_clip, family_generator
from diva_toy import make_clip, run, same, tune_plan, weights
from test_stages import known, refusal
from test_tune import batch_for, make_task, train
from vfm.artifacts import ClipCheckpoint, GeneratorCheckpoint, Pool
from vfm.models.clip import load_clip
from vfm.panels import LinesPanel, load_panels
from vfm_diva.presets import PRESETS
from vfm_diva.tune_stage import DivaTune

LINEAR = {"type": "linear"}


def test_the_papers_preset_says_what_its_code_does_and_a_recipe_says_more() -> None:
    plan = tune_plan(preset="diva-paper", steps=4600, lr=1e-4, global_batch_size=640)
    assert (plan.optimizer, plan.lr, plan.momentum, plan.schedule) == ("sgd", 1e-4, 0.9, "cosine")
    assert (plan.num_steps, plan.global_batch_size, plan.num_timesteps, plan.warmup_steps) == (4600, 640, 2, 23)
    assert (plan.prompt, plan.combine, plan.adapter.type) == ("a photo of a .", "add", "linear")
    assert (plan.timesteps.type, plan.update.type, plan.anchor.type) == ("uniform", "tower", "none")
    assert round(plan.condition.share * 256) + 1 == 77
    assert tune_plan(preset="diva-paper", anchor={"type": "cosine"}).anchor.type == "cosine"
    given = {"name": "diva", "clip": "clip", "data": "pool", "generator": "prior", "preset": "diva-paper"}
    assert DivaTune.model_validate(given).num_steps == 4600
    assert DivaTune.model_validate({**given, "samples_seen": 6400}).num_steps == 10
    assert PRESETS["recommended"] == {}
    assert tune_plan(preset="recommended") == tune_plan()


def test_the_papers_preset_runs(pool: Pool, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    clip, sd = family_clip("openai", tmp_path / "clip"), family_generator("sd", tmp_path / "sd")
    add_text_encoder(sd.path, "StableDiffusionPipeline")
    plan = tune_plan(preset="diva-paper", steps=2, warmup_steps=1)
    plan.preflight(known(clip=clip, prior=sd, pool=pool))
    tuned = run(plan, tmp_path / "tuned", clip=clip, prior=sd, pool=pool)
    before, after = (weights(load_clip(model).module) for model in (clip, tuned))
    assert {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"visual"}


@pytest.mark.parametrize("joint", [True, False])
def test_the_adapter_is_trained_first_with_clip_frozen(
    joint: bool, clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    adapter = {"type": "mlp", "first_steps": 3, "joint": joint, "lr_scale": 0.1}
    task = make_task(clip, stable_diffusion, "cosine" if joint else "l2_sp", adapter=adapter)
    batch, start = batch_for(task, pool), weights(task)
    with task.adapter_alone():
        train(task, batch, tmp_path / "first", steps=3)
    first = weights(task)
    moved = {name for name in start if not torch.equal(start[name], first[name])}
    assert moved
    assert all(name.startswith("conditioner.adapter.") for name in moved)
    train(task, batch, tmp_path / "second", steps=3)
    second = weights(task)
    adapters = [name for name in first if name.startswith("conditioner.adapter.")]
    assert any(not torch.equal(first[name], second[name]) for name in adapters) == joint
    assert not torch.equal(first["visual.proj"], second["visual.proj"])
    scales = {group.lr_scale for group in task.parameter_groups()}
    assert scales == ({1.0, 0.1} if joint else {1.0})


def test_a_run_with_two_stages_leaves_both_curves_and_goes_on_after_a_crash(
    clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    plan = tune_plan(adapter={"type": "linear", "first_steps": 2}, update={"type": "lora", "rank": 2}, steps=3)
    inputs = {"clip": clip, "prior": stable_diffusion, "pool": pool}
    tuned = run(plan, tmp_path / "whole", **inputs)
    for folder, steps in ((tuned.path / "adapter", 2), (tuned.path, 3)):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == steps
    assert any(isinstance(panel, LinesPanel) for panel in load_panels(tuned.path))
    shutil.rmtree(tuned.path)  # as if the crash had come after the last step
    again = run(plan, tmp_path / "whole", **inputs)
    other = run(plan, tmp_path / "other", **inputs)
    assert same(weights(load_clip(again).module), weights(load_clip(other).module))


@pytest.mark.parametrize("update", [{"type": "last_blocks", "blocks": 1}, {"type": "lora", "rank": 2}])
def test_checkpointing_and_bf16_suit_every_update(
    update: dict[str, Any], clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    plan = tune_plan(adapter=LINEAR, update=update, precision="amp_bf16", grad_checkpointing=True, steps=2)
    tuned = run(plan, tmp_path, clip=clip, prior=stable_diffusion, pool=pool)
    before, after = (weights(load_clip(model).module) for model in (clip, tuned))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("resblocks.1." in name for name in moved)
    assert all(value.isfinite().all() for value in after.values())


def test_a_model_without_patches_is_told_by_its_embedding(
    stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    resnet = make_clip(tmp_path / "resnet", layers=[1, 1, 1, 1], width=8, image_size=32, patch_size=None)
    task = make_task(resnet, stable_diffusion, "cosine", adapter=LINEAR)
    before = weights(task)
    train(task, batch_for(task, pool), tmp_path / "work", steps=2)
    assert not torch.equal(before["visual.conv1.weight"], weights(task)["visual.conv1.weight"])


def test_parts_that_do_not_fit_are_said_before_anything_runs(
    clip: ClipCheckpoint, stable_diffusion: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    sd = stable_diffusion
    resnet = make_clip(tmp_path / "resnet", layers=[1, 1, 1, 1], width=8, image_size=32, patch_size=None)
    for part in (
        {"condition": {"type": "cls"}},
        {"update": {"type": "lora"}},
        {"condition": {"type": "pooled_patches"}},
    ):
        assert "no patch tokens" in refusal(tune_plan(adapter=LINEAR, **part), clip=resnet, prior=sd)
    many = tune_plan(adapter=LINEAR, update={"type": "last_blocks", "blocks": 3})
    assert "the last 3 blocks are asked for; custom has 2" in refusal(many, clip=clip, prior=sd)
    assert "no model_index.json here" in refusal(tune_plan(adapter=LINEAR, combine="add"), clip=clip, prior=sd)
    other_scale = family_generator("sdxl", tmp_path / "sdxl", scale=0.18215)
    words = refusal(tune_plan(adapter=LINEAR), clip=clip, prior=other_scale)
    assert "scaling_factor 0.18215 is that of Stable Diffusion; the denoiser is of SDXL's kind (0.13025)" in words
    unclip = family_generator("unclip", tmp_path / "unclip")
    words = refusal(tune_plan(), clip=clip, prior=unclip)
    assert "embeddings of width 64; custom makes 32: set adapter.type: linear" in words
    wide = family_clip("openai", tmp_path / "wide")
    assert "set condition.type: embedding" in refusal(tune_plan(condition={"type": "cls"}), clip=wide, prior=unclip)
    assert "so it cannot encode the prompt" in refusal(tune_plan(), clip=wide, prior=unclip)


def test_a_data_set_of_which_nothing_can_be_read_is_refused(pool: Pool, tmp_path: Path) -> None:
    tune_plan().preflight(known(pool=pool))
    shutil.copytree(pool.path, tmp_path / "broken")
    for file in (tmp_path / "broken").glob("**/*.tar"):
        with tarfile.open(file) as tar:
            pictures = [member for member in tar if not member.name.endswith((".txt", ".json"))]
        content = bytearray(file.read_bytes())
        for picture in pictures:
            content[picture.offset_data : picture.offset_data + picture.size] = bytes(picture.size)
        file.write_bytes(bytes(content))
    assert "none of the first 8 pictures can be read" in refusal(tune_plan(), pool=Pool.load(tmp_path / "broken"))
