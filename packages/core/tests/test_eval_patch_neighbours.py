"""Labels from the nearest patches: a plain twin, properties, a memory that is too small, and `eval.dense_probe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from test_eval_dense_probe import clip, encoder, evaluate, probe, scenes
from vfm.eval.dense.stages import PatchNeighbours
from vfm.eval.segmentation.patch_head import predict_map
from vfm.eval.segmentation.patch_neighbours import PatchMemory, patch_shares, remember_patches

CPU = torch.device("cpu")
CLASSES = 3


def world(seed: int, count: int = 5, grid: int = 3) -> tuple[torch.Tensor, list[NDArray[np.int64]]]:
    """Return random features of a grid of patches, and label maps of other sizes with unlabelled pixels."""
    rng = np.random.default_rng(seed)
    labels = [rng.integers(-1, CLASSES, (int(rng.integers(2, 9)), int(rng.integers(2, 9)))) for _ in range(count)]
    return torch.from_numpy(rng.normal(size=(count, 4, grid, grid))).float(), labels


def plain_shares(labels: NDArray[np.int64], grid: int) -> NDArray[np.float64]:
    """Count the classes of each patch pixel by pixel."""
    counts = np.zeros((grid * grid, CLASSES))
    height, width = labels.shape
    for (y, x), label in np.ndenumerate(labels):
        if label >= 0:
            counts[int(y * grid / height) * grid + int(x * grid / width), label] += 1
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


def plain_votes(
    memory: NDArray[np.float64], shares: NDArray[np.float64], patch: NDArray[np.float64], k: int, temperature: float
) -> NDArray[np.float64]:
    """Average the classes of the k patches with the largest cosine, weighted by its softmax."""
    cosines = memory @ patch / np.linalg.norm(memory, axis=1) / np.linalg.norm(patch)
    nearest = sorted(range(len(memory)), key=lambda place: -cosines[place])[:k]
    weights = np.exp(cosines[nearest] / temperature)
    return np.asarray((weights[:, None] * shares[nearest]).sum(axis=0) / weights.sum())


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0.02, 0.5]))
def test_shares_and_votes_equal_the_plain_ones(seed: int, k: int, temperature: float) -> None:
    maps, labels = world(seed)
    found = remember_patches(
        maps, labels, np.array([0, 1, 3]), CLASSES, PatchNeighbours(k=k, temperature=temperature), 0, CPU
    )
    features, shares = [], []
    for row in (0, 1, 3):
        known = plain_shares(labels[row], 3)
        np.testing.assert_allclose(patch_shares(labels[row], (3, 3), CLASSES), known)
        kept = known.any(axis=1)  # without a labelled pixel a patch says nothing
        features.append(maps[row].flatten(1).T.double().numpy()[kept])
        shares.append(known[kept])
    votes = found(maps[4:])
    for patch, vote in zip(maps[4].flatten(1).T, votes[0].flatten(1).T, strict=True):
        expected = plain_votes(np.concatenate(features), np.concatenate(shares), patch.double().numpy(), k, temperature)
        np.testing.assert_allclose(vote.numpy(), expected, atol=2e-5)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.1, 10.0))
def test_votes_are_shares_whatever_the_order_and_the_length_of_features(seed: int, length: float) -> None:
    maps, labels = world(seed)
    memory = remember_patches(maps, labels, np.arange(5), CLASSES, PatchNeighbours(k=7), 0, CPU)
    votes = memory(maps)
    torch.testing.assert_close(votes.sum(dim=1), torch.ones(5, 3, 3))
    assert (votes >= 0).all()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(memory.features)))
    other = PatchMemory(length * memory.features[order], memory.shares[order], 7, 0.02)
    torch.testing.assert_close(other(length * maps), votes)
    # The nearest patch of a patch in the memory is itself.
    own = PatchMemory(memory.features, memory.shares, 1, 0.02)(memory.features.T[None, :, :, None])
    torch.testing.assert_close(own[0, :, :, 0].T, memory.shares)


def test_a_small_memory_has_equally_many_patches_of_each_image_and_rare_classes_first() -> None:
    labels = [np.zeros((8, 8), dtype=np.int64) for _ in range(40)]
    for one in labels:
        one[0, 0] = 1  # one of 64 patches
    maps = torch.stack([torch.from_numpy(one)[None].float() for one in labels])
    small = [
        remember_patches(maps, labels, np.arange(40), 2, PatchNeighbours(memory=80), seed, CPU) for seed in (0, 0, 1)
    ]
    assert len(small[0].features) == 80
    assert small[0].shares[:, 1].sum() > 20  # 1.25 if all patches were as likely
    assert torch.equal(small[0].shares, small[1].shares)
    assert not torch.equal(small[0].shares, small[2].shares)


def test_pictures_take_the_labels_of_equal_patches() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, CLASSES, (4, 4)).repeat(8, 0).repeat(8, 1) for _ in range(6)]
    maps = torch.eye(CLASSES)[torch.from_numpy(np.stack([one[::8, ::8] for one in labels]))].permute(0, 3, 1, 2)
    memory = remember_patches(maps, labels, np.arange(4), CLASSES, PatchNeighbours(k=5), 0, CPU)
    for row in (4, 5):
        found = predict_map(memory, maps, row, (32, 32), CPU)
        assert (found[3::8, 3::8] == labels[row][3::8, 3::8]).all()


def test_the_probe_compares_encoders_by_neighbours(tmp_path: Path) -> None:
    train, test = scenes(tmp_path / "train", 8, 0), scenes(tmp_path / "test", 6, 1)
    models = {"vit": encoder(tmp_path / "vit"), "clip": clip(tmp_path / "clip")}
    fields: dict[str, Any] = {"kind": "eval.dense_probe", "name": "probe", "models": ["vit", "clip"], "data": "test",
                              "num_resamples": 100, "neighbours": {"k": 5}}  # fmt: skip
    stage = type(probe()).model_validate(fields | {"train": "train"})
    report = evaluate(stage, tmp_path / "a", train=train, test=test, **models)
    values = {one.model: one.value for one in report.metrics if one.name == "dense_knn_miou"}
    assert all(0.1 < value <= 1 for value in values.values())
    assert values.keys() == models.keys()
    record = json.loads((report.path / "results/test_vit_dense_probe.json").read_text())
    assert (record["k"], record["temperature"], record["memory"]) == (5, 0.02, 100_000)
    folds = type(probe()).model_validate(fields | {"folds": 2})
    again = evaluate(folds, tmp_path / "b", test=test, **models)
    assert again.metrics[0].n == 6
    with pytest.raises(ValidationError, match="steps has no effect with neighbours, which train nothing; leave it out"):
        probe(neighbours={})
