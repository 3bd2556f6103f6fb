"""The first process goes on alone with an evaluation that the others have left to it, and they do not wait for it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from train_toy import fork, run_group
from vfm.base import UserError
from vfm.interfaces import LeftToFirst, Runtime
from vfm.train import DistributedWorld, distributed
from vfm.train.parallel.sharing import (
    leave_to_first,
    of_all,
    of_first,
    own_share,
    sharing,
    without_values,
)


def evaluate(folder: Path) -> None:
    """Square six numbers together, then in the first process alone, until the other one has gone on."""
    with distributed(Runtime(device="cpu")) as world:
        with suppress(LeftToFirst), sharing(world):
            features = list(of_all((torch.ones(n) for n in own_share(range(3))), for_others=without_values))
            features.append(of_first(lambda: torch.ones(3), for_others=without_values))
            facts = [(one.is_meta, list(one.shape)) for one in features]
            (folder / f"features-{world.rank}.json").write_text(json.dumps(facts))
            together = list(of_all(n * n for n in own_share(range(6))))
            leave_to_first()
            alone = list(of_all(n * n for n in own_share(range(6))))
            end = time.monotonic() + 30
            while not (folder / "gone").exists() and time.monotonic() < end:
                time.sleep(0.01)
            waited = not (folder / "gone").exists()
            (folder / "found.json").write_text(json.dumps([together, alone, waited]))
        if not world.is_main:
            (folder / "gone").touch()


@pytest.mark.slow
def test_the_first_process_computes_alone_what_follows_and_the_other_goes_on(tmp_path: Path) -> None:
    run_group(__file__, str(tmp_path))
    for rank in (0, 1):  # the other process knows the shapes
        facts = json.loads((tmp_path / f"features-{rank}.json").read_text())
        assert facts == [[bool(rank), [size]] for size in (0, 1, 2, 3)]
    squares = [n * n for n in range(6)]
    assert json.loads((tmp_path / "found.json").read_text()) == [squares, squares, False]


def test_the_first_process_scores_with_the_threads_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    threads = torch.get_num_threads()
    with sharing(DistributedWorld(torch.device("cpu"), rank=0, size=2)):
        leave_to_first()
        assert torch.get_num_threads() == 2 * threads
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "score",
    [
        lambda features: features.numpy(),
        lambda features: features.tolist(),
        lambda features: float(features.mean()),
        lambda features: np.arange(3)[features.argmax(dim=1)],
        lambda features: features[features > 0],
        lambda features: torch.cat([features, torch.ones(1, 3)]),
    ],
)
def test_an_evaluation_that_leaves_nothing_to_the_first_process_is_one_line(score: Callable[[Tensor], object]) -> None:
    features = torch.eye(3)
    with pytest.raises(UserError, match=r"^[^\n]*must call vfm.train.leave_to_first\(\)[^\n]*$"), sharing(_other()):
        score(without_values(features))
    with sharing(_other()):
        score(features)


def test_another_error_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="wrong metadata"), sharing(_other()):
        raise RuntimeError("wrong metadata")


def _other() -> DistributedWorld:
    return DistributedWorld(torch.device("cpu"), rank=1, size=2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fork(2, lambda: evaluate(Path(sys.argv[1])))
