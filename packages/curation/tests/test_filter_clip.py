"""The filters with a CLIP model, against plain twins with the same model."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from filter_runs import verdicts
from vfm.data import DatasetSpec, Shard, read_subset, write_index, write_tar
from vfm.models import build_clip, load_clip, save_clip
from vfm.plugin import ClipCheckpoint, LabeledDataset, Preflight, UserError
from vfm_curation.filters.copies import buckets
from vfm_curation.filters.copies.clusters import near_any, near_earlier, spherical_kmeans
from vfm_curation.filters.stages import FilterPool

NUMBER = 70
TEXTS = ["a red dog", "the house in snow", "two people", "a lighthouse at night", "okapi"]


def image_file(seed: int, shift: int = 0) -> bytes:
    """Return an image of blobs; a small shift of its colours gives another file with nearly the same embedding."""
    coarse = np.random.default_rng(seed).integers(20, 236, (4, 4, 3))
    image = Image.fromarray((coarse + shift).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipCheckpoint:
    return save_clip(build_clip("ViT-Pico-8-32", seed=0), tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def uids() -> list[str]:
    return [f"{(37 * i) % NUMBER:03d}" for i in range(NUMBER)]


@pytest.fixture(scope="module")
def images(uids: list[str]) -> dict[str, bytes]:
    """Return every image about twice, once with its colours shifted."""
    return {uid: image_file(i // 2, shift=i % 2) for i, uid in enumerate(uids)}


@pytest.fixture
def samples(uids: list[str]) -> list[tuple[str, dict[str, list[str]]]]:
    return [(uid, {"en": [TEXTS[i % 5], TEXTS[(i // 5) % 5]]}) for i, uid in enumerate(uids)]


@pytest.fixture
def pool(make_pool: Any, samples: Any, images: dict[str, bytes]) -> Any:
    return make_pool("pool", samples, shard_size=16, images=images)


def embedded(clip: ClipCheckpoint, files: dict[str, bytes]) -> dict[str, np.ndarray]:
    vectors = load_clip(clip).encode_images([Image.open(io.BytesIO(data)) for data in files.values()]).numpy()
    return dict(zip(files, vectors, strict=True))


def run(run_stage: Any, pool: Any, one: dict[str, Any], name: str = "filtered", **inputs: Any) -> Any:
    return run_stage(FilterPool(name=name, pool="p", filters=[one]), p=pool, **inputs)


def passed(subset: Any) -> set[tuple[str, int]]:
    rows = read_subset(subset.path).to_pylist()
    return {(row["uid"], row["text_index"]) for row in rows}


def passed_images(subset: Any) -> set[str]:
    return {uid for uid, _ in passed(subset)}


def test_scores_are_cosines_and_are_cut_at_a_value_or_a_fraction(
    run_stage: Any, pool: Any, clip: ClipCheckpoint, samples: Any, images: dict[str, bytes]
) -> None:
    vectors = embedded(clip, images)
    of_text = dict(zip(TEXTS, load_clip(clip).encode_texts(TEXTS).numpy(), strict=True))
    scores = {(uid, k): float(vectors[uid] @ of_text[t]) for uid, texts in samples for k, t in enumerate(texts["en"])}
    ranked = sorted(scores, key=scores.__getitem__)
    middle = (scores[ranked[69]] + scores[ranked[70]]) / 2
    sure = {place for place in scores if abs(scores[place] - middle) > 1e-3}
    for options, expected in (
        ({"min_score": middle}, set(ranked[70:])),
        ({"max_score": middle}, set(ranked[:70])),
        ({"top_fraction": 0.5}, set(ranked[70:])),
        ({"bottom_fraction": 0.5}, set(ranked[:70])),
    ):
        subset = run(run_stage, pool, {"type": "clip_score", "clip": "c", **options}, next(iter(options)), c=clip)
        assert passed(subset) & sure == expected & sure
    assert len(sure) > 100


def test_fraction_keeps_that_fraction(run_stage: Any, pool: Any, clip: ClipCheckpoint, tmp_path: Path) -> None:
    save_file({"weight": np.linspace(-1, 1, clip.embed_dim, dtype=np.float32)}, tmp_path / "head.safetensors")
    head = {"type": "linear_score", "clip": "c", "head": str(tmp_path / "head.safetensors")}
    for fraction in (0.1, 0.3, 0.77):
        subset = run(run_stage, pool, {**head, "top_fraction": fraction}, f"f{round(100 * fraction)}", c=clip)
        assert len(passed_images(subset)) == round(fraction * NUMBER)


def test_linear_head_scores_whole_images(
    run_stage: Any, pool: Any, clip: ClipCheckpoint, images: dict[str, bytes], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(1, clip.embed_dim)).astype(np.float32)
    file = tmp_path / "head.safetensors"
    save_file({"weight": weight, "bias": np.array([0.25], dtype=np.float32)}, file)
    scores = {uid: float(vector @ weight[0]) + 0.25 for uid, vector in embedded(clip, images).items()}
    ranked = sorted(scores, key=scores.__getitem__)
    gap = max(range(20, 50), key=lambda i: scores[ranked[i]] - scores[ranked[i - 1]])
    limit = (scores[ranked[gap]] + scores[ranked[gap - 1]]) / 2
    one = {"type": "linear_score", "clip": "c", "head": str(file), "label": "aesthetic"}
    high = run(run_stage, pool, {**one, "min_score": limit}, "high", c=clip)
    low = run(run_stage, pool, {**one, "max_score": limit}, "low", c=clip)
    assert passed(high) == {(uid, k) for uid in ranked[gap:] for k in (0, 1)}
    assert passed(low) == {(uid, k) for uid in ranked[:gap] for k in (0, 1)}
    reasons = [set(pq.read_table(s.path / "verdicts")["reason"].to_pylist()) for s in (high, low)]
    assert reasons == [{"", "low_aesthetic"}, {"", "high_aesthetic"}]

    save_file({"weight": weight[:, :7].copy()}, tmp_path / "narrow.safetensors")
    narrow = {**one, "head": str(tmp_path / "narrow.safetensors"), "min_score": 0}
    message = f"takes embeddings of width 7; 'c' has {clip.embed_dim}"
    with pytest.raises(UserError, match=message):
        FilterPool(name="f", pool="p", filters=[narrow]).preflight(Preflight({}, {"c": clip.path}))
    with pytest.raises(UserError, match=message):
        run(run_stage, pool, narrow, "narrow", c=clip)


def exact(vectors: dict[str, np.ndarray], limit: float) -> set[str]:
    """Return the uids with no near earlier one."""
    order = sorted(vectors)
    return {a for i, a in enumerate(order) if all(vectors[a] @ vectors[b] < limit for b in order[:i])}


def a_limit(vectors: dict[str, np.ndarray], share: float = 0.96) -> float:
    """Return a cosine with a gap around it, so that rounding decides nothing."""
    matrix = np.stack(list(vectors.values()))
    cosines = np.sort((matrix @ matrix.T)[np.triu_indices(len(matrix), 1)])
    candidates = range(int(share * len(cosines)), int((share + 0.03) * len(cosines)))
    place = max(candidates, key=lambda i: cosines[i] - cosines[i - 1])
    return float(cosines[place] + cosines[place - 1]) / 2


def test_semantic_duplicates_with_one_cluster_equal_a_comparison_of_all(
    run_stage: Any, make_pool: Any, clip: ClipCheckpoint, samples: Any, images: dict[str, bytes], monkeypatch: Any
) -> None:
    vectors = embedded(clip, images)
    limit = a_limit(vectors)
    expected = exact(vectors, limit)
    assert 10 < len(expected) < NUMBER - 10
    one = {"type": "semantic_duplicates", "clip": "c", "min_cosine": limit}
    for name, ordered, size in (("one", samples, 100), ("turned", samples[::-1], 9)):
        pool = make_pool(name, ordered, shard_size=size, images=images)
        assert passed_images(run(run_stage, pool, {**one, "clusters": 1}, f"f{name}", c=clip)) == expected


def test_semantic_duplicates_with_several_clusters_drop_only_images_with_a_near_one(
    run_stage: Any, make_pool: Any, clip: ClipCheckpoint, samples: Any, images: dict[str, bytes], monkeypatch: Any
) -> None:
    monkeypatch.setattr(buckets, "ROWS_PER_BUCKET", 20)
    vectors = embedded(clip, images)
    limit = a_limit(vectors)
    one = {"type": "semantic_duplicates", "clip": "c", "min_cosine": limit, "clusters": 5}
    kept = []
    for name, ordered, size in (("one", samples, 100), ("turned", samples[::-1], 9)):
        pool = make_pool(name, ordered, shard_size=size, images=images)
        kept.append(passed_images(run(run_stage, pool, one, f"f{name}", c=clip)))
    assert kept[0] == kept[1]
    assert exact(vectors, limit) <= kept[0]
    assert len(kept[0]) < NUMBER - 10  # and many are found: each image occurs twice


def test_equal_vectors_are_near_at_a_cosine_of_one() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(300, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    assert near_earlier(torch.cat([vectors, vectors]), 1.0).tolist() == [False] * 300 + [True] * 300
    assert near_any(vectors, vectors, 1.0).all()


def test_near_pairs_in_blocks_equal_a_comparison_of_all(monkeypatch: Any) -> None:
    monkeypatch.setattr("vfm_curation.filters.copies.clusters.BLOCK", 7)
    vectors = torch.nn.functional.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    near = vectors @ vectors.T >= 0.9
    assert (near_earlier(vectors, 0.9) == near.tril(-1).any(dim=1).numpy()).all()
    assert (near_any(vectors[:30], vectors[30:], 0.9) == near[:30, 30:].any(dim=1).numpy()).all()
    centres = spherical_kmeans(vectors, 5, seed=0)
    assert torch.allclose(centres.norm(dim=1), torch.ones(5))
    spread = lambda c: (vectors @ c.T).amax(dim=1).mean()  # noqa: E731
    assert spread(centres) > spread(vectors[:5])


@pytest.fixture
def evaluation(tmp_path: Path) -> LabeledDataset:
    """Pictures 0 to 9 with shifted colours, as a labelled set, and one that is broken."""
    folder = tmp_path / "store" / "val"
    folder.mkdir(parents=True)
    files = [image_file(i, shift=2) for i in range(10)] + [b"broken"]
    write_tar(tmp_path / "val.tar", ((f"{i}", {"png": data, "cls": b"0"}) for i, data in enumerate(files)))
    count = write_index(folder, [Shard.of(tmp_path / "val.tar", len(files))], DatasetSpec(label_key="cls"))
    return LabeledDataset.create(folder, num_samples=count, class_names=["blob"])


def test_images_of_evaluation_sets_are_dropped_by_hash_or_by_cosine(
    run_stage: Any, pool: Any, clip: ClipCheckpoint, uids: list[str], images: dict[str, bytes], evaluation: Any
) -> None:
    one = {"type": "decontaminate", "against": ["e"]}
    by_hash = run(run_stage, pool, one, "hash", e=evaluation)
    assert passed_images(by_hash) == {uid for i, uid in enumerate(uids) if i // 2 >= 10}

    files = {str(i): image_file(i, shift=2) for i in range(10)}
    references = np.stack(list(embedded(clip, files).values()))
    vectors = embedded(clip, images)
    limit = a_limit(vectors | {f"e{name}": vector for name, vector in embedded(clip, files).items()}, 0.8)
    near = {uid for uid, vector in vectors.items() if (references @ vector).max() >= limit}
    by_both = run(run_stage, pool, {**one, "clip": "c", "min_cosine": limit}, "both", e=evaluation, c=clip)
    assert passed_images(by_both) == passed_images(by_hash) - near
    assert near - {uid for i, uid in enumerate(uids) if i // 2 < 10}  # some that the hash does not find


def test_shards_without_remaining_texts(
    run_stage: Any, make_pool: Any, clip: ClipCheckpoint, images: dict[str, bytes], evaluation: Any, tmp_path: Path
) -> None:
    """Filter a pool whose first shard has no captions, whose second only short ones, whose third no images."""
    save_file({"weight": np.ones(clip.embed_dim, dtype=np.float32)}, tmp_path / "head.safetensors")
    made = [(f"x{i}", {"en": []}) for i in range(5)] + [(f"y{i}", {"en": ["dog"]}) for i in range(5)]
    made += [(f"z{i}", {"en": [f"a long text {i}"]}) for i in range(5)] + [
        (uid, {"en": [f"a picture {uid}"]}) for uid in images
    ]
    urls = {uid: f"http://x.org/{uid}" for uid, _ in made}
    pool = make_pool("holes", made, shard_size=5, images=images, urls=urls)
    fraction = {"clip": "c", "top_fraction": 0.9}
    filters = [
        {"type": "caption_length"},
        {"type": "duplicates", "of": "text"},
        {"type": "duplicates", "of": "url"},
        {"type": "duplicates", "of": "image"},
        {"type": "near_duplicates"},
        {"type": "semantic_duplicates", "clip": "c", "min_cosine": 1.0},
        {"type": "clip_score", **fraction},
        {"type": "linear_score", **fraction, "head": str(tmp_path / "head.safetensors")},
        {"type": "decontaminate", "against": ["e"], "clip": "c", "min_cosine": 1.0},
    ]
    stage = FilterPool(name="all", pool="p", filters=filters)
    subset = run_stage(stage, p=pool, c=clip, e=evaluation)
    reasons = {uid: reason for (uid, _, _), reason in verdicts(subset).items()}
    assert {reasons[f"y{i}"] for i in range(5)} == {"caption_length"}
    assert {reasons[f"z{i}"] for i in range(5)} == {"unreadable_image"}
    assert "x0" not in reasons
    assert 0 < subset.num_samples < NUMBER
