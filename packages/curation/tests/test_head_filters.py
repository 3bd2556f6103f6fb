"""Filters by networks and clusters from the user's files, against plain twins with the same model."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import save_file

from vfm.data import read_subset
from vfm.models import build_clip, load_clip, save_clip
from vfm.plugin import ClipCheckpoint, Preflight, UserError
from vfm_curation.engine import run_shards
from vfm_curation.filters.head_filters import ImageClusters, MlpScore
from vfm_curation.filters.head_layers import layers_of
from vfm_curation.filters.stages import FilterPool

NUMBER = 30


def image_file(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipCheckpoint:
    return save_clip(build_clip("ViT-Pico-8-32", seed=0), tmp_path_factory.mktemp("clip"))


FILES = {f"u{i:02d}": image_file(i) for i in range(NUMBER)}


@pytest.fixture
def pool(make_pool: Any) -> Any:
    return make_pool("pool", [(uid, {"en": ["a text"]}) for uid in FILES], images=FILES, shard_size=11)


@pytest.fixture(scope="module")
def vectors(clip: ClipCheckpoint) -> np.ndarray:
    found = load_clip(clip).encode_images([Image.open(io.BytesIO(file)) for file in FILES.values()]).numpy()
    found = found.astype(np.float16).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def kept(run_stage: Any, pool: Any, one: dict[str, Any], **inputs: Any) -> set[str]:
    name = f"f{abs(hash(str(one)))}"
    subset = run_stage(FilterPool(name=name, pool="p", filters=[one]), p=pool, **inputs)
    return set(read_subset(subset.path)["uid"].to_pylist())


def network(width: int, layers: list[int], names: list[str]) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(0), {}
    for name, (inputs, outputs) in zip(names, zip([width, *layers], layers, strict=False), strict=True):
        found[f"{name}.weight"] = rng.normal(size=(outputs, inputs)).astype(np.float32)
        found[f"{name}.bias"] = rng.normal(size=outputs).astype(np.float32)
    return found


@pytest.mark.parametrize(("activation", "sigmoid"), [("none", False), ("relu", True), ("gelu", False)])
def test_a_network_scores_as_written_out(
    run_stage: Any, pool: Any, clip: Any, vectors: np.ndarray, tmp_path: Path, activation: str, sigmoid: bool
) -> None:
    names = ["layers.0", "layers.2", "layers.10"]  # in the order of their numbers, not of their letters
    tensors = network(vectors.shape[1], [7, 5, 1], names)
    save_file(tensors, str(tmp_path / "head.safetensors"))
    expected = torch.from_numpy(vectors)
    function = {"none": lambda x: x, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation]
    for name in names:
        weight, bias = (torch.from_numpy(tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
        expected = expected @ weight.T + bias
        expected = expected if name == names[-1] else function(expected)
    values = expected.sigmoid()[:, 0].numpy() if sigmoid else expected[:, 0].numpy()
    limit = float(np.sort(values)[NUMBER // 2 - 1 : NUMBER // 2 + 1].mean())
    one = {"type": "mlp_score", "clip": "c", "head": str(tmp_path / "head.safetensors"), "activation": activation,
           "sigmoid": sigmoid, "label": "nsfw", "max_score": limit}  # fmt: skip
    MlpScore(**{name: value for name, value in one.items() if name != "type"})
    low = {uid for uid, value in zip(FILES, values, strict=True) if value <= limit}
    assert kept(run_stage, pool, one, c=clip) == low
    assert len(low) == NUMBER // 2


def test_a_head_that_does_not_fit_is_one_line(clip: Any, tmp_path: Path) -> None:
    def error(tensors: dict[str, np.ndarray]) -> str:
        save_file(tensors, str(tmp_path / "head.safetensors"))
        stage = MlpScore(clip="c", head=str(tmp_path / "head.safetensors"), min_score=0)
        return next(iter(stage.errors(Preflight({}, {"c": clip.path}), "p")), "")

    width = clip.embed_dim
    assert error(network(width, [3, 1], ["0", "1"])) == ""
    assert "takes embeddings of width 5; 'c' has" in error(network(5, [3, 1], ["0", "1"]))
    assert "the last with one output" in error(network(width, [3, 2], ["0", "1"]))
    broken = network(width, [3, 1], ["0", "1"]) | {"1.weight": np.ones((1, 4), np.float32)}
    assert "1.weight takes 4 features, the layer before it gives 3" in error(broken)
    with pytest.raises(UserError, match="no such file"):
        layers_of(Path("/no/head"))


def test_images_of_clusters_with_an_image_of_the_set_pass(
    run_stage: Any, make_pool: Any, pool: Any, clip: Any, vectors: np.ndarray, tmp_path: Path
) -> None:
    centroids, uids = 3.0 * vectors[:8], list(FILES)
    np.save(tmp_path / "centroids.npy", centroids)
    nearest = (vectors @ vectors[:8].T).argmax(axis=1)
    wanted = make_pool("wanted", [(uid, {"en": ["x"]}) for uid in uids[2:4]], images=FILES)
    expected = {uid for uid, cluster in zip(uids, nearest, strict=True) if cluster in nearest[2:4]}
    assert 2 <= len(expected) < NUMBER
    one = {"type": "image_clusters", "clip": "c", "centroids": str(tmp_path / "centroids.npy")}
    assert kept(run_stage, pool, {**one, "near": ["w"]}, c=clip, w=wanted) == expected
    np.save(tmp_path / "numbers.npy", np.unique(nearest[2:4]))
    by_number = {**one, "clusters": str(tmp_path / "numbers.npy")}
    assert kept(run_stage, pool, by_number, c=clip) == expected
    for wrong in (np.array([8]), np.array([], np.int64)):
        np.save(tmp_path / "numbers.npy", wrong)
        with pytest.raises(UserError, match="expected numbers of clusters from 0 to 7"):
            kept(run_stage, pool, {**by_number, "near": None}, c=clip)
    with pytest.raises(ValidationError, match="exactly one of near and clusters"):
        ImageClusters(clip="c", centroids="x.npy")


def test_one_process_holds_the_model_unless_the_user_says_otherwise(
    run_stage: Any, make_pool: Any, pool: Any, clip: Any, vectors: np.ndarray, tmp_path: Path, monkeypatch: Any
) -> None:
    np.save(tmp_path / "centroids.npy", vectors[:8])
    wanted = make_pool("wanted", [(uid, {"en": ["x"]}) for uid in list(FILES)[2:4]], images=FILES)
    workers: list[int] = []

    def spied(task: Any, job: Any, shards: Any, runtime: Any) -> Any:
        if task.__name__ == "embed_images":
            workers.append(runtime.workers)
        return run_shards(task, job, shards, runtime)

    monkeypatch.setattr("vfm_curation.filters.run.run_shards", spied)
    one = {"type": "image_clusters", "clip": "c", "centroids": str(tmp_path / "centroids.npy"), "near": ["w"]}
    kept(run_stage, pool, one, c=clip, w=wanted)
    assert workers == [1, 1]  # the pool's images, and the set's
