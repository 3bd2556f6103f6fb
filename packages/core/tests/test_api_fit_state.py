"""What `vfm.fit` leaves as it was: generators, frozen parts and their modes; and what it must not mix up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vfm
from fit_world import QUIET, Labelled, fitted, loss
from vfm.data import BadSample


def backbone_and_head(frozen: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    if frozen:
        backbone.requires_grad_(False).eval()
    return nn.Sequential(backbone, nn.Linear(8, 3))


def test_the_callers_generator_goes_on_where_it_was() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    torch.manual_seed(0)
    expected = [torch.rand(4), torch.rand(4)]
    torch.manual_seed(0)
    for draw in expected:  # such as the weights of the next model
        assert torch.equal(torch.rand(4), draw)
        vfm.fit(net, Labelled(), loss=loss, steps=1, global_batch_size=8, **QUIET)


def test_a_frozen_backbone_in_evaluation_mode_stays_in_it() -> None:
    model = backbone_and_head()
    before = {name: value.clone() for name, value in model[0].state_dict().items()}

    def check(net: nn.Module, batch: Any) -> Any:
        assert [part.training for part in (net[0], net[0][2], net[0][3], net[1])] == [False, False, False, True]
        return loss(net, batch)

    vfm.fit(model, Labelled(), loss=check, steps=3, global_batch_size=8, **QUIET)
    torch.testing.assert_close(dict(model[0].state_dict()), before, rtol=0, atol=0)


def test_a_part_that_is_trained_is_set_to_training_mode() -> None:
    model = backbone_and_head(frozen=False).eval()
    vfm.fit(model, Labelled(), loss=loss, steps=1, global_batch_size=8, **QUIET)
    assert model[0][2].num_batches_tracked == 1


def test_a_folder_of_a_training_with_other_frozen_parts_is_refused(tmp_path: Path) -> None:
    given: dict[str, Any] = {"loss": loss, "steps": 1, "global_batch_size": 8, "folder": tmp_path, **QUIET}
    vfm.fit(backbone_and_head(), Labelled(), **given)
    with pytest.raises(vfm.UserError, match=r"holds another training: frozen.model.0.1.weight was True, is None"):
        vfm.fit(backbone_and_head(frozen=False), Labelled(), **given)


def test_draws_of_the_loss_from_numpy_are_those_of_the_step(tmp_path: Path) -> None:
    def mixed(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Any:
        share = float(np.random.beta(0.8, 0.8))
        return loss(net, (share * batch[0] + (1 - share) * batch[0].flip(0), batch[1]))[0], {"share": share}

    calls = 0

    def interrupted(net: nn.Module, batch: Any) -> Any:
        nonlocal calls
        if (calls := calls + 1) == 7:
            raise KeyboardInterrupt
        return mixed(net, batch)

    whole = fitted(Labelled(), loss=mixed, steps=9, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        fitted(Labelled(), tmp_path, loss=interrupted, steps=9, log_every=1)
    np.random.seed(5)
    assert fitted(Labelled(), tmp_path, loss=mixed, steps=9, log_every=1).metrics == whole.metrics
    assert len({row["train/share"] for row in whole.metrics}) == 9


class Recomputed(nn.Module):
    """A model that counts its passes, and takes timm's call to recompute activations."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.passes, self.recomputes = nn.Linear(48, 3), 0, False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.recomputes = enable

    def logits(self, images: Tensor) -> Tensor:
        self.passes += 1
        return self.head(images.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(self.logits, images, use_reentrant=False) if self.recomputes else self.logits(images)


def test_activations_are_recomputed_where_the_model_can() -> None:
    nets = [Recomputed(), Recomputed()]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, recomputes in zip(nets, (False, True), strict=True):
        given: dict[str, Any] = {"steps": 2, "global_batch_size": 8, "grad_checkpointing": recomputes, **QUIET}
        vfm.fit(net, Labelled(), loss=loss, **given)
    assert [net.passes for net in nets] == [2, 4]
    assert torch.equal(nets[0].head.weight, nets[1].head.weight)


def test_a_timm_model_without_it_is_refused() -> None:
    net = timm.create_model("dla46x_c", num_classes=3)
    with pytest.raises(vfm.UserError, match="fit: grad_checkpointing: DLA: gradient checkpointing not supported"):
        vfm.fit(net, Labelled(), loss=loss, steps=1, grad_checkpointing=True, **QUIET)


def test_the_first_sample_may_be_bad() -> None:
    class Flawed(Labelled):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index < self.bad:
                raise BadSample("unreadable_image", f"{index}.jpg")
            return super().__getitem__(index)

        bad = 2

    done = fitted(Flawed(), steps=10, loading={"max_bad_fraction": 0.5})
    assert done.skipped == {"unreadable_image": 2}
    Flawed.bad = 40
    with pytest.raises(vfm.UserError, match=r"Flawed: no sample can be read; the last is 39.jpg: unreadable_image"):
        fitted(Flawed())


def test_numpy_numbers_are_metrics_and_names_of_the_log_are_refused() -> None:
    def scored(net: nn.Module, batch: Any) -> Any:
        return loss(net, batch)[0], {"f1": np.float32(0.5), "correct": np.int64(3)}

    assert fitted(Labelled(), steps=1, loss=scored).metrics[0]["train/f1"] == 0.5
    with pytest.raises(vfm.UserError, match="loss: metric 'grad_norm': the training logs its own; give another name"):
        fitted(Labelled(), steps=1, loss=lambda net, batch: (loss(net, batch)[0], {"grad_norm": 1.0}))


def test_numbers_of_numpy_have_the_type_of_pythons() -> None:
    rows = [(np.zeros(2, np.float32), np.float64(1.5), 1.5, np.int32(1)) for _ in range(4)]

    def check(net: nn.Module, batch: Any) -> Tensor:
        assert [part.dtype for part in batch] == [torch.float32, torch.float32, torch.float32, torch.int64]
        return net(batch[0]).mean()

    vfm.fit(nn.Linear(2, 1), rows, loss=check, steps=1, global_batch_size=2, **QUIET)
