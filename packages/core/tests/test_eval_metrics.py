"""Zero-shot, retrieval, probe and neighbours compared with plain implementations, and edge cases."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from vfm.base import UserError
from vfm.eval.classify.knn import knn_votes
from vfm.eval.classify.linear_probe import fit_linear_probe
from vfm.eval.classify.sweep import split_validation
from vfm.eval.classify.zero_shot import ensemble_templates, fill_templates, predicted_classes, true_class_ranks
from vfm.eval.encode.ranking import best_ranks, hits_at
from vfm.eval.retrieval.retrieval_ranks import nearest, retrieval_ranks
from vfm.statistics import stratified_mean


def naive_hits(scores: list[list[float]], right: list[list[bool]], k: int) -> list[bool]:
    """Return any-hit recall with ties against the query: wrong items sort before right ones of equal score."""
    hits = []
    for row, marks in zip(scores, right, strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], marks[j]))
        hits.append(any(marks[j] for j in order[:k]))
    return hits


@given(
    num_images=st.integers(1, 9),
    extra_texts=st.lists(st.integers(0, 8), max_size=12),
    seed=st.integers(0, 10_000),
    max_scores=st.integers(1, 60),
)
@settings(max_examples=80)
def test_retrieval_in_blocks_equals_the_whole_matrix_with_ties_and_several_captions(
    num_images: int, extra_texts: list[int], seed: int, max_scores: int
) -> None:
    image_of_text = torch.tensor([*range(num_images), *(i % num_images for i in extra_texts)])
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> torch.Tensor:
        """Draw signed one-hot vectors: cosines are exactly -1, 0 or 1, with many ties."""
        signs = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
        return signs * F.one_hot(torch.randint(3, (n,), generator=generator), 3)

    images, texts = draw(num_images), draw(len(image_of_text))
    ranks = retrieval_ranks(images, texts, image_of_text, max_scores=max_scores)
    scores = images @ texts.T
    right = image_of_text[None] == torch.arange(num_images)[:, None]
    for k in (1, 5, 10):
        assert hits_at(ranks.text_retrieval, k).tolist() == naive_hits(scores.tolist(), right.tolist(), k)
        assert hits_at(ranks.image_retrieval, k).tolist() == naive_hits(scores.T.tolist(), right.T.tolist(), k)


@given(
    num_images=st.integers(1, 12),
    extra_texts=st.lists(st.integers(0, 11), max_size=20),
    seed=st.integers(0, 10_000),
    max_scores=st.integers(1, 400),
    broken=st.integers(0, 3),
)
@settings(max_examples=80)
def test_retrieval_both_ways_at_once_equals_each_way_separately(
    num_images: int, extra_texts: list[int], seed: int, max_scores: int, broken: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image_of_text = torch.tensor([*range(num_images), *(i % num_images for i in extra_texts)])
    images = F.normalize(torch.randn(num_images, 6, generator=generator), dim=-1)
    texts = F.normalize(images[image_of_text] + torch.randn(len(image_of_text), 6, generator=generator), dim=-1)
    texts[torch.randint(len(texts), (broken,), generator=generator)] = torch.nan
    ranks, numbers = retrieval_ranks(images, texts, image_of_text, max_scores=max_scores), torch.arange(num_images)
    assert (ranks.text_retrieval == best_ranks(images, texts, numbers, image_of_text)).all()
    assert (ranks.image_retrieval == best_ranks(texts, images, image_of_text, numbers)).all()


def test_retrieval_equals_clip_benchmarks_any_hit_recall_on_continuous_scores() -> None:
    torch.manual_seed(0)
    images, image_of_text = torch.randn(60, 16), torch.arange(60).repeat_interleave(5)
    texts = images[image_of_text] + 2 * torch.randn(300, 16)
    ranks = retrieval_ranks(images, texts, image_of_text)
    scores = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    for k in (1, 5, 10):
        found = scores.topk(k, dim=1).indices
        assert hits_at(ranks.image_retrieval, k).mean() == (found == image_of_text[:, None]).any(1).float().mean()
        found = image_of_text[scores.T.topk(k, dim=1).indices]
        assert hits_at(ranks.text_retrieval, k).mean() == (found == torch.arange(60)[:, None]).any(1).float().mean()


def test_a_collapsed_model_retrieves_nothing_whatever_its_width() -> None:
    """Equal features: a rule that keeps input order would report R@1 = 100 % on the diagonal."""
    features = torch.randn(513, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, 40)[:, None]
    ranks = retrieval_ranks(features, features, torch.arange(40))
    assert (ranks.text_retrieval == 39).all()
    assert (ranks.image_retrieval == 39).all()


def test_nan_features_are_ranked_last() -> None:
    features = torch.eye(4)
    broken = features.clone()
    broken[2] = torch.nan
    ranks = retrieval_ranks(broken, features, torch.arange(4))
    assert ranks.text_retrieval.tolist() == [0, 0, 4, 0]
    assert (ranks.image_retrieval == [1, 1, 4, 1]).all()  # the NaN image counts before every image it is compared with


def test_retrieval_refuses_an_image_without_a_text() -> None:
    with pytest.raises(ValueError, match="1 images have no text, the first is 1"):
        retrieval_ranks(torch.eye(3), torch.eye(3), torch.tensor([0, 2, 2]))


def test_nearest_is_sorted_and_clipped_to_what_exists() -> None:
    queries, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [5.0, 0.1], [1.0, 1.0]])
    assert nearest(queries, items, 10).tolist() == [[1, 2, 0]]


def test_ensemble_is_the_normalised_mean_of_normalised_prompts() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 4, 8) * torch.tensor([1.0, 10.0, 0.1, 3.0])[None, :, None]
    for c, vector in enumerate(ensemble_templates(features)):
        mean = np.mean([f / np.linalg.norm(f) for f in features[c].numpy()], axis=0)
        np.testing.assert_allclose(vector.numpy(), mean / np.linalg.norm(mean), atol=1e-6)


def test_templates_of_both_spellings_fill_class_by_class() -> None:
    assert fill_templates(["cat", "dog"], ["a {}.", "one {c}!"]) == ["a cat.", "one cat!", "a dog.", "one dog!"]
    with pytest.raises(UserError, match=r"template 'a photo' has no \{\} for the class name"):
        fill_templates(["cat"], ["a photo"])


def test_top_k_equals_open_clips_accuracy() -> None:
    from open_clip_train.zero_shot import accuracy

    torch.manual_seed(0)
    images, classifier = torch.randn(200, 12), F.normalize(torch.randn(12, 12), dim=-1)
    labels = torch.randint(12, (200,))
    ranks = true_class_ranks(images, classifier, labels, max_scores=100)
    top1, top5 = accuracy(F.normalize(images, dim=-1) @ classifier.T, labels, topk=(1, 5))
    assert (hits_at(ranks, 1).sum(), hits_at(ranks, 5).sum()) == (top1, top5)
    predicted = predicted_classes(images, classifier, max_scores=100)
    assert ((predicted == labels.numpy()) == hits_at(ranks, 1)).all()


def test_a_model_with_equal_scores_for_all_classes_is_never_right() -> None:
    classifier = F.normalize(torch.ones(10, 6), dim=-1)
    assert not hits_at(true_class_ranks(torch.randn(50, 6), classifier, torch.arange(50) % 10), 5).any()


def test_mean_per_class_recall_equals_scikit_learns_balanced_accuracy() -> None:
    from sklearn.metrics import balanced_accuracy_score

    generator = np.random.default_rng(0)
    labels = generator.choice(5, p=[0.6, 0.2, 0.1, 0.05, 0.05], size=400)
    predicted = np.where(generator.random(400) < 0.7, labels, 0)
    assert stratified_mean(predicted == labels, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))


@given(k=st.integers(1, 30), max_scores=st.integers(1, 200), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_knn_in_blocks_equals_a_plain_loop(k: int, max_scores: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    train, test = generator.normal(size=(25, 4)), generator.normal(size=(9, 4))
    labels = generator.integers(0, 3, size=25)
    votes = knn_votes(
        torch.from_numpy(train).float(),
        torch.from_numpy(labels),
        torch.from_numpy(test).float(),
        num_classes=3,
        k=k,
        temperature=0.07,
        max_scores=max_scores,
    )
    for q, row in zip(test, votes.numpy(), strict=True):
        cosines = train @ q / np.linalg.norm(train, axis=1) / np.linalg.norm(q)
        expected = np.zeros(3)
        for j in np.argsort(-cosines)[:k]:
            expected[labels[j]] += np.exp(cosines[j] / 0.07)
        np.testing.assert_allclose(row / row.sum(), expected / expected.sum(), atol=1e-4)


def test_knn_weights_survive_a_tiny_temperature() -> None:
    votes = knn_votes(torch.eye(3), torch.arange(3), torch.eye(3), num_classes=3, k=20, temperature=1e-4)
    assert votes.isfinite().all()
    assert votes.argmax(1).tolist() == [0, 1, 2]


def blobs(seed: int, size: int, shift: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, size=size)
    features = generator.normal(size=(size, 8)) * [1, 100, 1, 1e-3, 1, 1, 1, 1]
    features[:, 0] += shift * labels
    return features, labels


def test_probe_fits_separable_features_in_any_unit() -> None:
    probe = fit_linear_probe(blobs(0, 300, 6.0), blobs(1, 100, 6.0), max_iter=1000)
    features, labels = blobs(2, 300, 6.0)
    scores = probe.scores(features, 3)
    assert (scores.argmax(1) == labels).mean() > 0.97
    assert probe.converged
    scaled = [(x * 1000 + 5, y) for x, y in (blobs(0, 300, 6.0), blobs(1, 100, 6.0))]
    again = fit_linear_probe(*scaled, max_iter=1000).scores(features * 1000 + 5, 3)
    np.testing.assert_allclose(again, scores, atol=1e-3)


def test_probe_chooses_the_best_penalty_on_validation() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, size=60)
    features = generator.normal(size=(60, 200)) + 0.3 * labels[:, None]  # more columns than images: it must shrink
    probe = fit_linear_probe((features[:40], labels[:40]), (features[40:], labels[40:]), max_iter=1000)
    best = max(probe.validation_accuracy.values())
    assert probe.validation_accuracy[probe.penalty] == best
    assert probe.penalty == max(p for p, a in probe.validation_accuracy.items() if a == best)


def test_probe_equals_scikit_learns_pipeline_at_its_penalty() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, validation = blobs(0, 200), blobs(1, 100)
    probe = fit_linear_probe(train, validation, penalties=(0.01,), max_iter=1000)
    scaler = StandardScaler().fit(train[0])
    x, y = np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]])
    peer = LogisticRegression(C=1 / (0.01 * 300), max_iter=1000).fit(scaler.transform(x), y)
    test, _ = blobs(2, 50)
    np.testing.assert_allclose(probe.scores(test, 3), peer.predict_log_proba(scaler.transform(test)), atol=1e-6)


def test_probe_accepts_constant_columns_and_unseen_classes() -> None:
    features, labels = blobs(0, 100)
    features[:, 4] = 7.0
    probe = fit_linear_probe((features, labels), (features, labels), max_iter=1000)
    scores = probe.scores(features, num_classes=5)
    assert np.isneginf(scores[:, 3:]).all()
    assert np.isfinite(scores[:, :3]).all()


def test_probe_refuses_one_class() -> None:
    with pytest.raises(UserError, match="two or more classes"):
        fit_linear_probe((np.ones((3, 2)), np.zeros(3, int)), (np.ones((3, 2)), np.zeros(3, int)), max_iter=9)


def test_probe_reports_missing_convergence() -> None:
    assert not fit_linear_probe(blobs(0, 200), blobs(1, 50), penalties=(1e-6,), max_iter=2).converged


def test_validation_split_is_by_class_disjoint_and_repeatable() -> None:
    labels = np.repeat([0, 1, 2, 3, 4], [50, 20, 3, 2, 1])
    train, validation = split_validation(labels, 0.2, seed=1)
    assert np.bincount(labels[validation], minlength=5).tolist() == [10, 4, 1, 1, 0]
    assert sorted([*train, *validation]) == list(range(76))
    assert (split_validation(labels, 0.2, seed=1)[1] == validation).all()
    assert (split_validation(labels, 0.2, seed=2)[1] != validation).any()


def test_split_without_an_image_to_hold_out_is_refused() -> None:
    with pytest.raises(UserError, match=r"validation_fraction: no image can be held out, since each class has one"):
        split_validation(np.array([3, 1, 2]), 0.9, seed=0)


def test_retrieval_never_holds_the_score_matrix() -> None:
    """2,000 x 40,000 scores are 320 MB in fp32; blocks of 2 million scores must stay far below that."""
    code = """
import resource, torch
from vfm.eval import retrieval_ranks
images, texts = torch.randn(2000, 8), torch.randn(40000, 8)
owner = torch.arange(2000).repeat_interleave(20)
retrieval_ranks(images[:50], texts[:1000], owner[:1000], max_scores=4000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
retrieval_ranks(images, texts, owner, max_scores=2_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(grown) / 1024 < 100  # MB
