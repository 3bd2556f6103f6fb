"""Two processes against one: gathered features must give the gradients of the whole batch, here in float64."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vfm_kernels import gather_with_grad

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("two_ranks")
    generator = np.random.default_rng(0)
    shapes = {"images": (16, 10), "texts": (16, 6), "image_weight": (10, 8), "text_weight": (6, 8)}
    batch = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    batch["log_scale"] = np.array(2.5)
    np.savez(folder / "batch.npz", **batch)
    ranks = [subprocess.Popen([sys.executable, str(SCRIPT), str(rank), str(folder)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=1800) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    two_ranks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(two_ranks)
    return two_ranks.gradients(batch), [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(2)]


@pytest.mark.parametrize(
    "loss", ["local", "local_chunked", "group", "group_chunked", "all_pairs", "global", "siglip", "siglip_chunked"]
)
def test_two_processes_have_loss_and_gradients_of_the_whole_batch(runs, loss):
    whole, ranks = runs
    for rank in ranks:
        for label in ("loss", "image", "text", "scale"):
            expected = whole[f"{loss}/{label}"]
            np.testing.assert_allclose(rank[f"{loss}/{label}"], expected, atol=1e-12, rtol=1e-12, err_msg=label)
            assert np.abs(expected).max() > 1e-3, "a vanishing gradient would hide a difference"


def test_one_process_returns_its_features():
    features = torch.randn(3, 4, requires_grad=True)
    assert gather_with_grad(features) is features
