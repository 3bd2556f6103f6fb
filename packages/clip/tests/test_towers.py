"""Locks, rates and noise of the towers: open_clip's groups, timm's layer decay; locked weights are unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.optim import param_groups_layer_decay

from clip_world import EVA, VIT, Random, gradients, make_pool, plan, run_stage, tiny_task, train
from vfm.models import ClipModel, build_clip, save_clip, tower_layers
from vfm.plugin import AllWeights, ClipCheckpoint, Event, FrozenWeights, LambConfig, LastBlocks, Trained, UserError
from vfm.train import build_optimizer, prepare_towers
from vfm_clip import Tower, VisionTowerTraining
from vfm_clip.towers import patch_dropouts, trained_towers

PROJECTED: dict[str, Any] = {
    **EVA,
    "vision_cfg": {**EVA["vision_cfg"], "timm_model_name": "vit_pico_patch8_32", "timm_proj": "linear"},
}
MODELS = {"open_clip": VIT, "timm": EVA, "timm_with_projection": PROJECTED}


def trained(clip: ClipModel, vision: Trained = AllWeights(), text: Trained = AllWeights()) -> None:  # noqa: B008
    prepare_towers(trained_towers(clip, Tower(trained=vision), Tower(trained=text)))


def blocks(unlocked: int, num_after: int = 1) -> Trained:
    """Return the choice that trains the groups that a lock leaves free, `num_after` of them after the blocks."""
    return LastBlocks(blocks=unlocked - num_after) if unlocked else FrozenWeights()


def learning(module: torch.nn.Module) -> set[str]:
    return {name for name, weight in module.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("unlocked", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_lock_leaves_the_same_weights_free_as_open_clips(name: str, unlocked: int) -> None:
    ours, theirs = (build_clip(MODELS[name], seed=0) for _ in range(2))
    # timm's own groups count a projection after the encoder with its last block
    trained(ours, vision=blocks(unlocked, num_after=name != "timm_with_projection"))
    theirs.module.lock_image_tower(unlocked_groups=unlocked)
    expected = learning(theirs.module)
    if name == "timm_with_projection" and not unlocked:  # open_clip locks only the encoder
        expected -= {"visual.head.proj.weight"}
    assert learning(ours.module) == expected
    assert "text_projection" in {key.removeprefix("text.") for key in expected}


@pytest.mark.parametrize("unlocked", [0, 1, 2])
@pytest.mark.parametrize("config", [VIT, EVA], ids=["together", "apart"])
def test_a_text_towers_lock_is_open_clips(config: dict[str, Any], unlocked: int) -> None:
    ours, theirs = (build_clip(config, seed=0) for _ in range(2))
    trained(ours, text=blocks(unlocked))
    theirs.module.lock_text_tower(unlocked_layers=unlocked)
    assert learning(ours.module) == learning(theirs.module)


def test_every_weight_is_in_one_layer_and_too_many_blocks_are_refused() -> None:
    for config in MODELS.values():
        clip = build_clip(config, seed=0)
        names = [name for tower in ("image", "text") for layer in tower_layers(clip.module, tower) for name in layer]
        assert sorted([*names, "logit_scale"]) == sorted(dict(clip.module.named_parameters()))
    with pytest.raises(UserError, match=r"trained\.blocks: expected 0 to 2, the blocks of CLIP; got 3"):
        trained(build_clip(VIT), vision=LastBlocks(blocks=3))


@pytest.mark.parametrize(("tower", "config"), [("image", VIT), ("image", EVA), ("text", EVA)])
def test_a_partly_locked_tower_changes_only_in_its_free_groups(
    tmp_path: Path, tower: str, config: dict[str, Any]
) -> None:
    start = build_clip(config, seed=5)
    save_clip(start, tmp_path / "start")
    before = {key: value.clone() for key, value in start.module.state_dict().items()}
    group = {"vision" if tower == "image" else "text": {"trained": {"type": "last_blocks", "blocks": 1}}}
    settings = {"steps": 2, "ema_decay": 0.5, "lr": 0.01, "optimizer": {"weight_decay": 0.5}}
    stage = plan(model=None, init="start", **group, **settings)
    checkpoint, _ = run_stage(
        stage, tmp_path, pool=make_pool(tmp_path / "pool"), start=ClipCheckpoint.load(tmp_path / "start")
    )
    after = load_file(checkpoint.path / "open_clip_model.safetensors")
    groups = tower_layers(start.module, tower)
    same = [all(torch.equal(before[name], after[name]) for name in group) for group in groups]
    assert same == [True] * (len(groups) - 2) + [False] * 2


@pytest.mark.parametrize("decay", [0.75, 1.0])
def test_layer_decay_of_a_timm_encoder_is_timms(decay: float) -> None:
    task = tiny_task(EVA, vision=Tower(trained=AllWeights(lr_scale=0.4, layer_decay=decay)))
    trunk = task.module.visual.trunk
    peer = param_groups_layer_decay(trunk, 0.2, trunk.no_weight_decay(), layer_decay=decay)
    expected = {id(p): (0.4 * g["lr_scale"], g["weight_decay"] > 0) for g in peer for p in g["params"]}
    ours = {id(p): (g.lr_scale, g.weight_decay is None) for g in task.parameter_groups() for p in g.params}
    for key, (scale, decayed) in expected.items():
        assert ours[key] == (pytest.approx(scale), decayed)


def test_towers_have_rates_of_their_own_with_evas_decay_and_the_temperature_has_the_trainings() -> None:
    """Check EVA's rule: layer i of L blocks has decay ** (L + 1 - i); layer 0 is what precedes the blocks."""
    vision = Tower(trained=AllWeights(lr_scale=0.4, layer_decay=0.5, weight_decay=0.3))
    task = tiny_task(EVA, vision=vision, text=Tower(trained=AllWeights(lr_scale=0.04, layer_decay=0.25)))
    optimizer = build_optimizer(task, LambConfig(weight_decay=0.1), 1e-3)
    names = {id(weight): name for name, weight in task.module.named_parameters()}
    found = {
        names[id(weight)]: (1e-3 * group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    for name, (lr, decay) in {
        "logit_scale": (1e-3, 0.0),
        "visual.trunk.pos_embed": (4e-4 * 0.5**3, 0.0),
        "visual.trunk.patch_embed.proj.weight": (4e-4 * 0.5**3, 0.3),
        "visual.trunk.blocks.0.mlp.fc2.weight": (4e-4 * 0.5**2, 0.3),
        "visual.trunk.blocks.1.norm1.weight": (4e-4 * 0.5, 0.0),
        "visual.trunk.head.weight": (4e-4, 0.3),
        "visual.trunk.head.bias": (4e-4, 0.0),
        "text.token_embedding.weight": (4e-5 * 0.25**2, 0.1),
        "text.positional_embedding": (4e-5 * 0.25**2, 0.0),
        "text.transformer.resblocks.0.mlp.c_fc.weight": (4e-5 * 0.25, 0.1),
        "text.text_projection": (4e-5, 0.1),
    }.items():
        assert found[name] == (pytest.approx(lr), pytest.approx(decay)), name
    assert found.keys() == dict(task.module.named_parameters()).keys()


def test_the_last_steps_see_all_patches_also_when_resumed(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    settings = {"steps": 7, "micro_batch_size": 6, "optimizer": {"type": "lamb"}, "checkpoint": {"every_steps": 3}}
    vision = VisionTowerTraining(patch_dropout=0.5, drop_path=0.3, unmasked_steps=3)
    stage = plan(model=EVA, vision=vision, **settings)

    def cut(at: int) -> Any:
        def stop(event: Event) -> None:
            if event.type == "metrics" and event.data["step"] == at:
                raise KeyboardInterrupt

        return stop

    unbroken, _ = run_stage(stage, tmp_path / "unbroken", pool=pool)
    for at in (4, 7):  # the next run starts before the unmasked steps, and among them
        with pytest.raises(KeyboardInterrupt):
            run_stage(stage, tmp_path / f"cut{at}", send=cut(at), pool=pool)
        again, _ = run_stage(stage, tmp_path / f"cut{at}", pool=pool)
        for file in ("open_clip_model.safetensors", "metrics.jsonl"):
            assert (again.path / file).read_bytes() == (unbroken.path / file).read_bytes()
    masked, _ = run_stage(
        stage.model_copy(update={"vision": vision.model_copy(update={"unmasked_steps": 0})}),
        tmp_path / "masked",
        pool=pool,
    )
    rows, other = ((each.path / "metrics.jsonl").read_text().splitlines() for each in (unbroken, masked))
    assert [a == b for a, b in zip(rows, other, strict=True)] == [True] * 4 + [False] * 3


def test_patches_are_dropped_up_to_the_unmasked_steps_and_never_in_evaluation(tmp_path: Path) -> None:
    seen = []

    class Watched(type(tiny_task(VIT))):  # type: ignore[misc]
        def forward(self, inputs: Any) -> Any:
            seen.append([layer.prob for layer in patch_dropouts(self.module)])
            return super().forward(inputs)

    clip = build_clip(VIT, seed=0, noise={"patch_dropout": 0.5})
    train(tmp_path, plan(steps=4), Watched(clip, unmasked_from=3))
    assert seen == [[0.5]] * 3 + [[0.0]]
    clip = build_clip(VIT, seed=0, noise={"patch_dropout": 0.5})
    visual: Any = clip.module.visual
    lengths: list[int] = []
    visual.transformer.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    images = torch.randn(2, 3, 16, 16)
    visual.train()(images)
    visual.eval()(images)
    assert lengths == [1 + 8, 1 + 16]


@pytest.mark.parametrize("config", [VIT, EVA], ids=["open_clip", "timm"])
def test_free_groups_of_locked_towers_have_equal_gradients_with_checkpointed_activations(
    config: dict[str, Any],
) -> None:
    found = []
    for saving in (False, True):
        task = tiny_task(config)
        trained(task.model, vision=LastBlocks(blocks=1), text=LastBlocks(blocks=1))
        task.module.set_grad_checkpointing(saving)
        task.train()(Random(config, 6).batch(0).inputs)[0].backward()
        found.append(gradients(task))
    assert found[0].keys() == found[1].keys() == learning(task.module)
    assert all(grad.any() for name, grad in found[1].items() if not name.endswith("attn.in_proj_bias"))
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad)
