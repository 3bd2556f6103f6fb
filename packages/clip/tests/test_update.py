"""LoRA: at first the model itself, then a hand-written twin's steps; merged, resumed, in several processes."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from clip_world import EVA, VIT, Random, in_processes, make_pool, plan, run_stage, tiny_task, train
from vfm.cli.costs.estimate import notes
from vfm.flow.recipe.recipe import Recipe
from vfm.models import build_clip, build_vision, load_clip, save_clip, save_vision
from vfm.plugin import ClipCheckpoint, Event, Lora, Preflight, UserError
from vfm.train import prepare_towers
from vfm_clip import ClipTrain, Tower
from vfm_clip.estimate import clip_train_cost
from vfm_clip.task import ClipTask
from vfm_clip.towers import trained_towers

SMALL_TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
MASKED = {**VIT, "custom_text": True, "text_cfg": {**SMALL_TEXT, "embed_cls": True}}  # a mask of each text
POOLED = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2}}
RESNET = {**VIT, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}}
FROZEN = {"trained": {"type": "frozen"}}
SGD = {"type": "sgd", "weight_decay": 0.0}  # Adam enlarges rounding of a gradient near zero


def lora(**settings: Any) -> dict[str, Any]:
    """Return the settings of LoRA in both towers."""
    tower = {"trained": {"type": "lora", **settings}}
    return {"vision": tower, "text": tower}


def features(task: ClipTask, size: int = 4) -> Tensor:
    metrics = task.encode(Random(task.model.config, size).batch(0).inputs)[1]
    return torch.cat([metrics["image"], metrics["text"]]).detach()


@pytest.mark.parametrize(("config", "exact"), [(VIT, True), (MASKED, True), (POOLED, True), (EVA, False)])
def test_at_first_the_model_is_the_one_it_starts_from_and_only_changes_are_trained(
    config: dict[str, Any], exact: bool
) -> None:
    start, task = tiny_task(config), tiny_task(config, rank=2)
    expected, found = features(start.train()), features(task.train())
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if exact else 1e-6)  # EVA's bias is added separately
    trained = {name for name, weight in task.module.named_parameters() if weight.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"logit_scale"}
    task(Random(config, 4).batch(0).inputs)[0].backward()
    ends = [weight.grad for name, weight in task.module.named_parameters() if "lora_B" in name]
    assert len(ends) == 4 * (config["vision_cfg"].get("layers", 2) + config["text_cfg"]["layers"])
    assert all(grad is not None and grad.abs().max() > 0 for grad in ends)


def twin_steps(clip: Any, first: dict[str, Tensor], data: Random, steps: int, lr: float, scale: float) -> nn.Module:
    """Train factors of the matrices in `first` by plain torch; return the module with the changed matrices."""
    module, weights = clip.module, dict(clip.module.named_parameters())
    a = {name: value.clone().requires_grad_() for name, value in first.items()}
    b = {name: torch.zeros(len(weights[name]), len(a[name])).requires_grad_() for name in a}
    log_scale = weights["logit_scale"].detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([*a.values(), *b.values(), log_scale], lr=lr, momentum=0.9)

    def changed() -> dict[str, Tensor]:
        return {name: weights[name].detach() + scale * b[name] @ a[name] for name in a}

    for step in range(steps):
        inputs = data.batch(step).inputs
        images, texts, inverse = functional_call(
            module, {**changed(), "logit_scale": log_scale}, (clip.pixels(inputs.images), inputs.tokens)
        )
        logits, labels = inverse * images @ texts.T, torch.arange(len(images))
        optimizer.zero_grad()
        ((F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2).backward()
        optimizer.step()
        with torch.no_grad():
            log_scale.clamp_(0, math.log(100))
    with torch.no_grad():
        for name, value in {**changed(), "logit_scale": log_scale}.items():
            weights[name].copy_(value)
    return module


def test_the_merged_model_is_that_of_a_twin_in_plain_torch(tmp_path: Path) -> None:
    data, steps, rank, alpha, lr = Random(VIT, 12), 5, 3, 6, 0.1
    clip = build_clip(VIT, seed=0)
    plain = deepcopy(clip)
    tower = Tower(trained=Lora(rank=rank, alpha=alpha))
    towers = trained_towers(clip, tower, tower)
    merge = prepare_towers(towers, seed=7)
    own = {
        name.replace(".lora_A.default", "").replace(".attn.in_proj.", ".attn.in_proj_"): value.detach().clone()
        for name, value in clip.module.named_parameters()
        if "lora_A" in name
    }
    settings = {"steps": steps, "lr": lr, "schedule": {"type": "constant", "warmup_steps": 0}}
    task = ClipTask(clip, towers=towers)
    train(tmp_path, plan(**settings, optimizer=SGD, micro_batch_size=5), task, data)
    merge()
    twin = twin_steps(plain, own, data, steps, lr, alpha / rank).state_dict()
    start, found = build_clip(VIT, seed=0).module.state_dict(), clip.module.state_dict()
    assert found.keys() == twin.keys()
    assert {name for name in start if not torch.equal(start[name], found[name])} == {*own, "logit_scale"}
    moved = max((found[name] - start[name]).abs().max() for name in own)
    assert moved > 1e-2
    for name, value in twin.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


@pytest.fixture
def start(tmp_path: Path) -> ClipCheckpoint:
    return save_clip(build_clip(VIT, seed=5), tmp_path / "start")


def tuned(root: Path, start: ClipCheckpoint, **changes: Any) -> tuple[ClipCheckpoint, list[Event]]:
    pool, events = make_pool(root / "pool"), list[Event]()
    given = {"model": None, "init": "start", **lora(rank=4), **changes}
    made, _ = run_stage(plan(**given), root, send=changes.pop("send", events.append), pool=pool, start=start)
    return made, events


def test_at_learning_rate_0_the_exported_model_is_the_initial_one_to_the_bit(
    tmp_path: Path, start: ClipCheckpoint
) -> None:
    made, _ = tuned(tmp_path, start, steps=2, lr=0.0, micro_batch_size=4, ema_decay=0.9)
    file = "open_clip_model.safetensors"
    assert (made.path / file).read_bytes() == (start.path / file).read_bytes()


@pytest.mark.parametrize("locked", ["vision", "text"])
def test_a_locked_tower_gets_no_changes_and_open_clip_loads_the_merged_model(
    tmp_path: Path, start: ClipCheckpoint, locked: str
) -> None:
    made, _ = tuned(tmp_path, start, steps=2, lr=1e-2, grad_checkpointing=True, **{locked: FROZEN})
    before, after = (load_file(folder / "open_clip_model.safetensors") for folder in (start.path, made.path))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])} - {"logit_scale"}
    assert len(moved) == 4 * (1 if locked == "vision" else 2)
    assert {name.startswith("visual.") for name in moved} == {locked == "text"}
    peer = open_clip.create_model(f"local-dir:{made.path}").eval()
    ours = load_clip(made)
    tokens = ours.tokenize(["a picture of red on lime"])
    with torch.no_grad():
        torch.testing.assert_close(
            ours.encode_texts(["a picture of red on lime"]), peer.encode_text(tokens, normalize=True)
        )


def test_weights_that_a_tower_leaves_new_are_trained_themselves(tmp_path: Path) -> None:
    encoder = save_vision(build_vision("eva02_pico_patch8_32", num_classes=0, seed=9), tmp_path / "eva")
    text = save_clip(build_clip(EVA, seed=3), tmp_path / "text")
    stage = plan(model=EVA, init_vision="eva", init_text="words", **lora(), steps=1, lr=1e-2)
    pool = make_pool(tmp_path / "pool")
    made, _ = run_stage(stage, tmp_path, pool=pool, eva=encoder, words=text)
    after, begin = load_file(made.path / "open_clip_model.safetensors"), build_clip(EVA, seed=0).module.state_dict()
    old = load_file(encoder.path / "model.safetensors")
    assert not torch.equal(after["visual.trunk.head.weight"], begin["visual.trunk.head.weight"])
    assert not torch.equal(after["visual.trunk.blocks.0.attn.qkv.weight"], old["blocks.0.attn.qkv.weight"])
    assert torch.equal(after["visual.trunk.blocks.0.norm1.weight"], old["blocks.0.norm1.weight"])


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path: Path, start: ClipCheckpoint) -> None:
    settings: dict[str, Any] = {"model": None, "init": "start", **lora(rank=4), "steps": 7}
    stage = plan(**settings, micro_batch_size=8, ema_decay=0.9, checkpoint={"every_steps": 3})
    inputs = {"pool": make_pool(tmp_path / "pool"), "start": start}

    def cut(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, tmp_path / "cut", send=cut, **inputs)
    again, _ = run_stage(stage, tmp_path / "cut", **inputs)
    unbroken, _ = run_stage(stage, tmp_path / "unbroken", **inputs)
    for file in ("open_clip_model.safetensors", "metrics.jsonl"):
        assert (again.path / file).read_bytes() == (unbroken.path / file).read_bytes()


@pytest.mark.slow
def test_two_processes_change_the_weights_as_one_does(tmp_path: Path) -> None:
    settings = {"steps": 3, "lr": 0.1, "optimizer": SGD}
    jobs: list[dict[str, Any]] = [
        {
            "folder": parallel,
            "config": VIT,
            "rank": 2,
            "micro_batch_size": 3,
            "settings": {**settings, "runtime": {"device": "cpu", "parallel": parallel}},
        }
        for parallel in ("ddp", "fsdp")
    ]
    in_processes(2, tmp_path, jobs)
    task = tiny_task(VIT, rank=2)
    before = deepcopy(task.module.state_dict())
    train(tmp_path / "alone", plan(**settings), task)
    after = task.module.state_dict()
    assert any((after[name] - before[name]).abs().max() > 1e-3 for name in after if "lora_B" in name)
    for job in jobs:
        found = load_file(tmp_path / job["folder"] / "weights.safetensors")
        torch.testing.assert_close(found, dict(after), rtol=1e-4, atol=1e-6)


def test_it_learns_pairs_that_the_initial_model_does_not_know(tmp_path: Path, start: ClipCheckpoint) -> None:
    settings = {"steps": 80, "global_batch_size": 32, "lr": 2e-2, "schedule": {"warmup_steps": 10}, "log_every": 20}
    _, events = tuned(tmp_path, start, **lora(rank=8), **settings)
    losses = [event.data["values"]["train/loss"] for event in events if event.type == "metrics"]
    assert losses[-1] < math.log(32) / 2


def test_the_estimate_knows_what_is_trained() -> None:
    start = plan(model=VIT, **lora(rank=2), init=None, init_vision="v", init_text="t")
    cost = clip_train_cost(start, Preflight({}, {}))
    widths = 2 * (32 + 96) + 2 * (32 + 32) + 2 * 2 * (32 + 128)  # in_proj, out_proj and both layers of the MLP, rank 2
    assert cost.trained == 3 * widths + 1  # two blocks of images, one of texts, and the temperature
    whole = clip_train_cost(plan(model=VIT), Preflight({}, {}))
    assert cost.parameters == whole.parameters + 3 * widths
    assert cost.memory
    assert whole.memory
    assert cost.memory.optimizer < whole.memory.optimizer / 5
    shown = list(notes(Recipe("r", "", (start,)), {"clip": cost, "whole": whole}, 1e12, 0.5))
    assert "parameters that are trained: clip 0.00307M of 1.63M" in shown


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "vision.trained: lora would keep random weights: give init or init_vision"),
        ({"init_vision": "x"}, "text.trained: lora would keep random weights: give init or init_text"),
    ],
)
def test_random_weights_are_not_kept(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        ClipTrain(name="clip", data="pool", steps=1, **lora(), **changes)


def test_what_cannot_be_changed_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_clip(build_clip(RESNET, seed=0), tmp_path / "resnet")

    def line(**changes: Any) -> str:
        settings = {"model": None, "init": "start", **lora(), **changes}
        with pytest.raises(UserError) as caught:
            plan(**settings).preflight(Preflight({}, {"start": tmp_path / "resnet"}))
        return str(caught.value)

    assert line().endswith("ModifiedResNet has no patch tokens; expected a vision transformer")
    plan(model=None, init="start", **{**lora(), "vision": FROZEN}).preflight(
        Preflight({}, {"start": tmp_path / "resnet"})
    )
    monkeypatch.setattr("vfm.models.low_rank.find_spec", lambda name: None)
    assert line(vision=FROZEN).startswith("trained: {type: lora} needs peft: uv pip install -e 'packages/core[lora]'")


def test_a_state_of_all_weights_is_not_continued_by_changes_of_them(tmp_path: Path, start: ClipCheckpoint) -> None:
    inputs = {"pool": make_pool(tmp_path / "pool"), "start": start}
    settings: dict[str, Any] = {"model": None, "init": "start"}
    before, _ = run_stage(plan(**settings, checkpoint={"keep_state": True}), tmp_path / "before", **inputs)
    stage = plan(**settings, **lora(), steps=2, continue_from={"training": "before"})
    with pytest.raises(UserError, match="the state is of another model, or of another update of it: ") as caught:
        run_stage(stage, tmp_path / "after", **inputs, before=before)
    assert "\n" not in str(caught.value)
