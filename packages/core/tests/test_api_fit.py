"""`vfm.fit` on a user's model, loss and data: equal to a loop by hand, resumed exactly, wrong inputs in a line."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import vfm
from fit_world import QUIET, Classify, Inputs, Labelled, fitted, loss, model
from vfm.base import UserError
from vfm.data import BadSample, SameEpochs, SampleOrder


@pytest.fixture(autouse=True)
def one_thread():
    """Compute with one thread: the tests compare bits, and fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def forked(work: Callable[[], bool]) -> int:
    """Start `work` in a copy of this process, which ends with it. Its exit code is 0 if the result is true."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = int(not work())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # otherwise an error would continue the tests in the copy


def ended(child: int) -> int:
    """Wait for a child, for two minutes at most, and return its status. A child that takes longer is killed."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return status
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"process {child} did not end within two minutes")


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_dataset_of_image_and_label_is_learned(tmp_path: Path) -> None:
    done = fitted(Labelled(), tmp_path / "mine", steps=60, lr=0.03)
    assert done.table().column_names[:3] == ["step", "samples", "train/accuracy"]
    assert done.table()["step"].to_pylist() == list(range(5, 61, 5))
    assert done.metrics[-1]["train/accuracy"] > 0.9 > done.metrics[0]["train/accuracy"]
    assert done.loss == done.metrics[-1]["train/loss"]
    assert not done.model.training
    weights = load_file(tmp_path / "mine/model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in done.model.state_dict().items())


def test_it_equals_a_loop_by_hand_over_the_same_order() -> None:
    data = TensorDataset(torch.randn(30, 5, generator=torch.Generator().manual_seed(1)), torch.arange(30.0))

    def error(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return mse_loss(net(batch[0])[:, 0], batch[1])

    torch.manual_seed(3)
    ours, theirs = nn.Linear(5, 1), nn.Linear(5, 1)
    theirs.load_state_dict(ours.state_dict())
    plain = {"optimizer": {"type": "sgd", "momentum": 0.9, "weight_decay": 0}, "schedule": {"type": "constant"}}
    vfm.fit(
        ours, data, loss=error, steps=12, global_batch_size=7, micro_batch_size=3, lr=1e-3, seed=5, **plain, **QUIET
    )
    optimizer = torch.optim.SGD(theirs.parameters(), lr=1e-3, momentum=0.9)
    order = SampleOrder(SameEpochs([30]), seed=5, shuffle_shards=1000)
    for step in range(12):
        picked = order(7 * step, 7 * step + 7).tolist()
        optimizer.zero_grad()
        error(theirs, (data.tensors[0][picked], data.tensors[1][picked])).backward()
        optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def weighted(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    images, targets, weights = batch
    return (weights * (net(images)[:, 0] - targets) ** 2).sum() / weights.sum()


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5])
def test_a_weighted_mean_is_the_same_in_micro_batches(micro_batch_size: int) -> None:
    draws = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(40, 5, generator=draws), torch.arange(40.0), torch.rand(40, generator=draws))
    losses, weights = [], []
    for size, weight in ((10, None), (micro_batch_size, lambda batch: batch[2].sum()), (micro_batch_size, None)):
        torch.manual_seed(3)
        net = nn.Linear(5, 1)
        done = vfm.fit(
            net,
            data,
            loss=weighted,
            weight=weight,
            steps=8,
            global_batch_size=10,
            micro_batch_size=size,
            lr=1e-2,
            **QUIET,
        )
        losses.append(done.loss)
        weights.append(net.weight.detach())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(weights[1], weights[0])
    assert abs(losses[2] / losses[0] - 1) > 1e-3, "without the weights it is another training"


def test_a_weight_must_be_a_positive_sum(tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(8, 5), torch.arange(8.0), torch.ones(8))
    settings: dict[str, Any] = {"loss": weighted, "steps": 1, "global_batch_size": 4, **QUIET}
    with pytest.raises(UserError, match=r"weight: expected the sum .* got a tensor of shape \(4,\)"):
        vfm.fit(nn.Linear(5, 1), data, weight=lambda batch: batch[2], **settings)
    with pytest.raises(UserError, match="a positive number, got 0"):
        vfm.fit(nn.Linear(5, 1), data, weight=lambda batch: 0.0, **settings)


def test_killed_trainings_end_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = fitted(Labelled(), tmp_path / "whole")
    for _ in range(2):  # each takes 11 steps, so that the checkpoint before the last one is on the disk
        child = forked(lambda: fitted(Labelled(kill_at=90), tmp_path / "killed").model.training)
        assert ended(child) == signal.SIGKILL
    data = Labelled()
    resumed = fitted(data, tmp_path / "killed")
    assert data.reads <= 1 + 8 * 12
    assert same(whole.model, resumed.model)
    assert whole.metrics == resumed.metrics


def test_the_callers_generators_are_left_alone() -> None:
    random.seed(1)
    np.random.seed(2)
    expected = random.Random(1).random(), np.random.RandomState(2).random()
    fitted(Labelled(), steps=2)
    assert (random.random(), np.random.random()) == expected


def check_wrappers() -> None:
    """End this process if DDP's wrapper is left when the process group is destroyed: torch may then hang for ever."""
    destroy = distributed.destroy_process_group

    def checked(group: Any = None) -> None:
        if any(isinstance(one, DistributedDataParallel) for one in gc.get_objects()):
            os._exit(1)
        destroy(group)

    distributed.destroy_process_group = checked


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))

    def train(rank: str) -> bool:
        os.environ |= {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        check_wrappers()
        done = vfm.fit(plain, Labelled(), loss=loss, steps=4, global_batch_size=8, folder=tmp_path, **QUIET)
        return math.isnan(done.loss) == (rank == "1")  # the first process has the metrics

    children = [forked(partial(train, rank)) for rank in ("0", "1")]
    assert [ended(child) for child in children] == [0, 0]
    vfm.fit(plain, Labelled(), loss=loss, steps=4, global_batch_size=8, **QUIET)
    found = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(found, dict(plain.state_dict()))


def test_workers_change_no_bit() -> None:
    assert same(fitted(Labelled(), steps=6).model, fitted(Labelled(), steps=6, workers=2).model)


def test_a_finished_folder_is_loaded_without_reading_the_data(tmp_path: Path) -> None:
    first, data = fitted(Labelled(), tmp_path), Labelled()
    again = fitted(data, tmp_path, log_every=3, micro_batch_size=4)  # which change no result
    assert same(first.model, again.model)
    assert data.reads == 1


def test_a_finished_folder_of_other_initial_weights_is_refused_and_an_interrupted_one_says_so(tmp_path: Path) -> None:
    first = fitted(Labelled(), tmp_path / "done")
    given: dict[str, Any] = {"loss": loss, "steps": 20, "lr": 0.01, "global_batch_size": 8, **QUIET}
    other = model()
    nn.init.ones_(other[1].bias)
    with pytest.raises(vfm.UserError, match=r"holds a finished training with other initial weights: call torch"):
        vfm.fit(other, Labelled(), folder=tmp_path / "done", **given)
    # The result itself, as in a notebook's cell that runs again, is returned as it is.
    assert same(vfm.fit(first.model, Labelled(), folder=tmp_path / "done", **given).model, first.model)
    copytree(tmp_path / "done", tmp_path / "cut")
    (tmp_path / "cut/model.safetensors").unlink()
    with pytest.warns(UserWarning, match="began with other initial weights; it resumes from its checkpoint"):
        assert same(vfm.fit(other, Labelled(), folder=tmp_path / "cut", **given).model, first.model)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lr": 0.02}, "settings.lr was 0.01, is 0.02"),
        ({"steps": 30}, "settings.steps was 20, is 30"),
        ({"optimizer": {"type": "sgd"}}, "settings.optimizer.type was adamw, is sgd"),
    ],
)
def test_a_folder_of_another_training_is_refused(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    fitted(Labelled(), tmp_path)
    with pytest.raises(vfm.UserError, match=line):
        fitted(Labelled(), tmp_path, **changes)
    with pytest.raises(vfm.UserError, match=r"data.length was 40, is 41; choose another folder, or delete this one"):
        fitted(Labelled(41), tmp_path)
    with pytest.raises(vfm.UserError, match=r"weights.model.1.weight was \[16, 48\], is None"):
        vfm.fit(
            nn.Linear(48, 3), Labelled(), loss=loss, steps=20, lr=0.01, global_batch_size=8, folder=tmp_path, **QUIET
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_resumes_by_skipping_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    def loader() -> DataLoader:
        return DataLoader(Labelled(), batch_size=16, shuffle=True, num_workers=workers)

    calls: list[int] = []

    def interrupted(net: nn.Module, batch: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 11:
            raise KeyboardInterrupt
        return loss(net, batch)

    whole = fitted(loader(), tmp_path / "whole")
    assert whole.metrics[-1]["samples"] == 6 * 40 + 2 * 16  # the last batch of each epoch has 8
    with pytest.raises(KeyboardInterrupt):
        fitted(loader(), tmp_path / "stopped", loss=interrupted)
    resumed = fitted(loader(), tmp_path / "stopped", progress=True)
    assert same(whole.model, resumed.model)
    assert "reads 8 batches of the DataLoader again to skip them" in capsys.readouterr().err


def test_a_dataloader_shorter_than_the_training_is_read_again() -> None:
    seen: list[int] = []

    class Short(IterableDataset):
        def __iter__(self):
            seen.append(len(seen))
            return iter([(torch.ones(3, 4, 4), 0), (torch.zeros(3, 4, 4), 1)])

    fitted(DataLoader(Short(), batch_size=2), steps=5)
    assert seen == [0, 1, 2, 3, 4]


def test_dicts_with_texts_arrays_and_pictures_reach_the_loss() -> None:
    grey = Image.new("L", (4, 4), 255)
    rows = [{"image": grey, "text": f"text {n}", "box": np.ones(4, np.float32), "weight": 0.5} for n in range(6)]

    def check(net: nn.Module, batch: dict[str, Any]) -> Tensor:
        assert {name: tuple(batch[name].shape) for name in ("image", "box", "weight")} == {
            "image": (4, 3, 4, 4), "box": (4, 4), "weight": (4,),
        }  # fmt: skip
        assert batch["image"].eq(1).all()
        assert len(batch["text"]) == 4
        assert all(text.startswith("text ") for text in batch["text"])
        return net(batch["image"]).square().mean() + 0 * batch["weight"].sum()

    done = vfm.fit(model(), rows, loss=check, steps=2, global_batch_size=4, log_every=1, **QUIET)
    assert len(done.metrics) == 2


def test_a_task_takes_a_dataset_of_its_dataclass() -> None:
    rows = [Inputs(*map(torch.as_tensor, Labelled()[n])) for n in range(9)]
    done = vfm.fit(Classify(), rows, steps=3, global_batch_size=4, **QUIET)
    assert isinstance(done.model, Classify)


def test_bad_samples_are_skipped_and_counted() -> None:
    class Flawed(Labelled):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 7:
                raise BadSample("unreadable_image", "photo.jpg")
            return super().__getitem__(index)

    done = fitted(Flawed())
    assert done.skipped == {"unreadable_image": 1}
    assert done.title.endswith("; skipped: 1 unreadable_image")
    with pytest.raises(vfm.UserError, match=r"reads failed.*Flawed\[7\] \(unreadable_image\)"):
        fitted(Flawed(), loading={"max_bad_fraction": 0.001})


def test_results_are_shown_as_text_and_in_a_notebook() -> None:
    done = fitted(Labelled(), steps=10)
    assert repr(done).startswith("<Fit: trained 10 steps; loss ")
    assert "train/accuracy" in str(done)
    page = done._repr_html_()
    assert page.count("<tr>") == 3
    assert page.count("<svg ") == 1
    assert ">train/loss</th>" in page


def test_long_trainings_are_shown_up_to_their_end() -> None:
    done = fitted(Labelled(), steps=50, log_every=1)
    shown = done.preview()["step"].to_pylist()
    assert shown == [*range(2, 51, 3)]
    assert len(done.table()) == 50


def test_nothing_is_printed_without_progress(capfd: pytest.CaptureFixture[str]) -> None:
    fitted(Labelled(), steps=2)
    assert capfd.readouterr() == ("", "")
    fitted(Labelled(), steps=2, progress=True)
    out, err = capfd.readouterr()
    assert not out
    assert "fit" in err


def test_settings_reach_the_record(tmp_path: Path) -> None:
    fitted(Labelled(), tmp_path, seed=3, ema_decay=0.9)
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["settings"]["seed"], record["settings"]["ema_decay"]) == (3, 0.9)
    assert record["data"] == {
        "type": "Labelled", "length": 40, "sample": {"[0]": "float32 (3, 4, 4)", "[1]": "int64 ()"},
    }  # fmt: skip
