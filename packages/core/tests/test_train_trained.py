"""What is trained of a tower: frozen weights, last blocks, LoRA, rates by layer, and a choice that a plugin adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn

import only_norms
from vfm.models import first_blocks, named_layers
from vfm.plugin import AllWeights, FrozenWeights, LastBlocks, Lora, Trained, UserError
from vfm.train import Metrics, Task, TrainedTower, prepare_towers


class Tower(nn.Module):
    """A stem, three blocks and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(4, 4)
        self.embed_norm = nn.LayerNorm(4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(3))
        self.projection = nn.Linear(4, 2)


def layers(module: nn.Module) -> list[list[str]]:
    stem, *others = named_layers([name for name, _ in module.named_parameters() if "embed" not in name], "")
    return [[name for name, _ in module.named_parameters() if "embed" in name], stem, *others]


class Regression(Task[torch.Tensor]):
    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.tower, self.head = Tower(), nn.Linear(2, 1)
        self.towers = [TrainedTower(trained, self.tower, layers, first_blocks)]
        self.merge = prepare_towers(self.towers)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        value = self.tower.embed_norm(self.tower.patch_embed(inputs))
        for block in self.tower.blocks:
            value = block(value)
        return self.head(self.tower.projection(value)).mean(), {}


def trained_parts(task: nn.Module) -> set[str]:
    return {name.rpartition(".")[0] for name, weight in task.named_parameters() if weight.requires_grad}


BLOCKS = [f"tower.blocks.{number}.0" for number in range(3)]


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ({}, {"tower.patch_embed", "tower.embed_norm", *BLOCKS, "tower.projection"}),
        ({"freeze_patch_embed": True}, {"tower.embed_norm", *BLOCKS, "tower.projection"}),
        ({"type": "last_blocks", "blocks": 1}, {BLOCKS[2], "tower.projection"}),
        ({"type": "last_blocks", "blocks": 0}, {"tower.projection"}),
        ({"type": "frozen"}, set()),
        ({"type": "only_norms"}, {"tower.embed_norm"}),
    ],
)
def test_what_is_not_named_is_frozen_and_stays_in_evaluation_mode(
    trained: dict[str, object], expected: set[str]
) -> None:
    class Settings(BaseModel):
        trained: Trained

    task = Regression(Settings.model_validate({"trained": {"type": "all", **trained}}).trained)
    assert isinstance(task.towers[0].trained, only_norms.OnlyNorms) == (trained.get("type") == "only_norms")
    assert trained_parts(task) == {*expected, "head"}
    assert [block.training for block in task.train().tower.blocks] == [name in expected for name in BLOCKS]
    assert not any(block.training for block in task.eval().tower.blocks)


def test_rates_fall_from_layer_to_layer_and_the_head_has_the_full_rate() -> None:
    task = Regression(AllWeights(lr_scale=0.5, layer_decay=0.1, weight_decay=0.3))
    names = {id(weight): name for name, weight in task.named_parameters()}
    groups: dict[str, Any] = {
        names[id(p)]: (group.lr_scale, group.weight_decay) for group in task.parameter_groups() for p in group.params
    }
    assert groups["tower.projection.weight"] == (0.5, 0.3)
    assert groups["tower.blocks.2.0.weight"] == (pytest.approx(0.05), 0.3)
    assert groups["tower.patch_embed.weight"] == (pytest.approx(5e-5), 0.3)
    assert groups["tower.embed_norm.weight"] == (pytest.approx(5e-5), 0.0)
    assert [group.weight_decay == 0.0 for group in task.parameter_groups()] == [False] * 6 + [True] * 6
    assert groups["head.weight"] == (1.0, None)


def test_lora_is_drawn_from_the_seed_trains_only_its_changes_and_is_merged() -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    task = Regression(Lora(rank=2))
    before = {name: weight.clone() for name, weight in Tower().state_dict().items()}
    assert {name.split(".lora_")[0] for name in trained_parts(task)} == {*BLOCKS, "head"}
    task.tower.load_state_dict(before, strict=False)
    for name, weight in task.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(weight)
    task.eval()
    inputs = torch.randn(3, 4)
    expected = task(inputs)[0]
    task.merge()
    torch.testing.assert_close(task(inputs)[0], expected)
    assert task.tower.state_dict().keys() == before.keys()
    first, again = (Regression(Lora(rank=2)).tower.blocks[1][0].lora_A.default.weight for _ in range(2))
    assert torch.equal(first, again)


def test_impossible_choices_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^trained\.blocks: expected 0 to 3, the blocks of Tower; got 4$"):
        Regression(LastBlocks(blocks=4))
    bare = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
    nothing = TrainedTower(
        AllWeights(freeze_patch_embed=True), bare, lambda module: [["blocks.0.weight"]], first_blocks
    )
    with pytest.raises(UserError, match="freeze_patch_embed: ModuleDict has no patch embedding; leave it out"):
        prepare_towers([nothing])
    assert FrozenWeights.keeps_weights
