"""Probes by gradient, several labels per image, and a classifier's own head, compared with other implementations."""

from __future__ import annotations

from copy import deepcopy
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from eval_world import COLOURS, NAMES, ColourModel, labeled, png, pool, run_in, tiny_clip, write_rows
from vfm.base import UserError
from vfm.data import DatasetSpec, open_dataset
from vfm.data.labeled.caption_labels import Nouns, WordList
from vfm.data.labeled.stages import CaptionLabels
from vfm.data.labeled.tags import read_tags
from vfm.data.samples.images import decode_image
from vfm.eval import load_encoder
from vfm.eval.classify.attentive_probe import AttentiveHead, PatchTokens, patch_tokens
from vfm.eval.classify.classify import columns_of
from vfm.eval.classify.knn import knn_votes
from vfm.eval.classify.stages import AttentiveProbe, Classify, FewShot, Knn, LinearProbe
from vfm.eval.classify.sweep import (
    NormedLinearHead,
    ProbeSchedule,
    head_scores,
    quality,
    sweep,
    train_heads,
)
from vfm.eval.encode.row_files import row_files
from vfm.interfaces import (
    ImageDataset,
    LabeledDataset,
    Pool,
    Preflight,
    TaggedImages,
    VisionCheckpoint,
)
from vfm.models import (
    PooledVision,
    build_vision,
    class_names_of,
    load_vision,
    save_vision,
    set_class_names,
    vision_preprocess,
)
from vfm.models.vision.vision import has_independent_labels
from vfm.statistics import MeanAveragePrecision, average_precisions, compare, to_metric

CPU = torch.device("cpu")
ORACLES = {"right": ColourModel(), "wrong": ColourModel(-1.0)}


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_average_precision_equals_scikit_learns_with_ties_and_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    scores = rng.integers(0, 6, (n, 3)).astype(float)  # many ties
    positives = rng.random((n, 3)) < 0.4
    positives[0] = True
    weights = rng.integers(0, 4, (2, n))
    weights[:, 0] = 1
    found, weighed = average_precisions(scores, positives), average_precisions(scores, positives, weights)
    for c in range(3):
        assert found[c] == pytest.approx(average_precision_score(positives[:, c], scores[:, c]))
        for r in range(2):
            peer = average_precision_score(positives[:, c], scores[:, c], sample_weight=weights[r])
            assert weighed[r, c] == pytest.approx(peer)


def test_nan_ranks_last_and_labels_without_images_do_not_count() -> None:
    scores = np.array([[np.nan, 1.0], [0.5, 2.0], [0.1, 3.0]])
    positives = np.array([[True, False], [True, False], [False, False]])
    assert average_precisions(scores, positives)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert MeanAveragePrecision("map", scores, positives).value == pytest.approx((1 + 2 / 3) / 2)


def test_bootstrap_covers_the_true_value() -> None:
    """95 % intervals of a known mAP, estimated from new images each time."""
    rng = np.random.default_rng(0)

    def drawn(n: int) -> MeanAveragePrecision:
        positives = rng.random((n, 4)) < 0.3
        return MeanAveragePrecision("map", positives + rng.normal(size=(n, 4)), positives)

    truth = drawn(200_000).value
    inside = [low < truth < high for low, high in (drawn(150).interval(seed) for seed in range(40))]
    assert 33 <= sum(inside) <= 40


def test_better_ranking_is_significant_and_equal_ranking_is_not() -> None:
    rng = np.random.default_rng(1)
    positives = rng.random((300, 5)) < 0.3
    good = MeanAveragePrecision("map", positives + rng.normal(size=(300, 5)), positives)
    bad = MeanAveragePrecision("map", 0.2 * positives + rng.normal(size=(300, 5)), positives)
    gain = compare(bad, good, baseline="bad", model="good")
    assert gain.difference > 0
    assert gain.low > 0
    assert gain.p_value < 0.01
    assert gain.test == "paired resamples"
    assert compare(good, good, baseline="a", model="b").p_value == 1.0
    metric = to_metric(good, model="good")
    assert metric.low < metric.value < metric.high
    assert metric.n == 300


def test_chance_is_the_mean_over_all_orders() -> None:
    orders = list(permutations(range(5)))
    for right in (1, 2, 4):
        positives = np.arange(5)[:, None] < right
        found = [average_precisions(np.array(order, float)[:, None], positives)[0] for order in orders]
        assert MeanAveragePrecision("map", np.zeros((5, 1)), positives).chance == pytest.approx(np.mean(found))


def test_random_scores_of_a_rare_label_are_rarely_significant() -> None:
    """Copies in a resample rank together and raise precision: raw resamples of 20 labels are all above 5 %."""
    rng = np.random.default_rng(0)

    def blind(n: int) -> MeanAveragePrecision:
        return MeanAveragePrecision(
            "map", rng.random((n, 20)), rng.permuted(np.arange(n) % 20 == np.zeros((20, 1)), axis=1).T
        )

    scores = [blind(200) for _ in range(20)]
    assert sum(score.interval()[0] > score.chance for score in scores) <= 2
    assert sum(score.interval()[1] < score.chance for score in scores) <= 3
    assert all(np.mean(score._resampled(0)) == pytest.approx(score.value) for score in scores)


def test_lars_scales_the_step_of_a_matrix_by_its_length() -> None:
    """The first step of the weight is lr * 0.001 * |w| / |g| * g, of the bias lr * g; SGD differs."""
    features, answers = torch.randn(40, 8), torch.randint(0, 3, (40,))
    heads = {}
    for solver in ("sgd", "lars"):
        head = NormedLinearHead(8, 3, torch.Generator().manual_seed(0))
        before = deepcopy(head)
        train_heads([head], [3.0], features, answers, np.arange(40), ProbeSchedule(solver, (3.0,), 1, 40))  # type: ignore[arg-type]
        F.cross_entropy(before(features), answers).backward()
        heads[solver] = head.linear
    weight, bias = before.linear.weight, before.linear.bias
    ratio = 0.001 * weight.norm() / weight.grad.norm()
    assert torch.allclose(heads["lars"].weight, weight - 3.0 * ratio * weight.grad, atol=1e-6)
    assert torch.allclose(heads["lars"].bias, bias - 3.0 * bias.grad, atol=1e-5)
    assert not torch.allclose(heads["lars"].weight, heads["sgd"].weight, atol=1e-3)


@pytest.mark.parametrize(("num_images", "batch_size"), [(9, 1), (9, 2), (3, 2)])
def test_no_batch_has_a_single_image(num_images: int, batch_size: int) -> None:
    """Batch norm needs two images."""
    head, rows = NormedLinearHead(4, 2, torch.Generator()), np.arange(num_images)
    train_heads(
        [head], [0.1], torch.randn(9, 4), torch.arange(9) % 2, rows, ProbeSchedule("sgd", (0.1,), 1, batch_size)
    )
    assert head.linear.weight.isfinite().all()


def test_a_head_that_diverged_is_right_on_no_image() -> None:
    scores = np.array([[np.nan, np.nan], [0.9, 0.1], [0.1, np.nan], [0.1, 0.9]])
    assert quality(scores, torch.tensor([0, 0, 1, 1])) == 0.5


def test_a_linear_probe_of_two_images_is_refused_in_a_line(tmp_path: Path) -> None:
    train, data = labeled(tmp_path / "train", 2, classes=1), labeled(tmp_path / "data")
    train = LabeledDataset.create(train.path, num_samples=2, class_names=data.class_names)
    ctx = run_in(tmp_path / "run", train=train, data=data).ctx
    stage = LinearProbe(kind="eval.linear_probe", name="probe", train="train", data="data", solver="sgd", epochs=1)
    with pytest.raises(UserError, match="train: expected two or more images in addition to the held-out ones, got 1"):
        stage.evaluate(ctx, ORACLES)


def test_heads_trained_together_equal_heads_trained_separately() -> None:
    features, answers = torch.randn(60, 8), torch.randint(0, 3, (60,))
    rows = np.arange(60)
    schedule = ProbeSchedule("sgd", (0.01, 0.3), epochs=3, batch_size=16)
    heads = [NormedLinearHead(8, 3, torch.Generator().manual_seed(0)) for _ in schedule.lrs]
    train_heads(heads, schedule.lrs, features, answers, rows, schedule)
    for lr, together in zip(schedule.lrs, heads, strict=True):
        alone = NormedLinearHead(8, 3, torch.Generator().manual_seed(0))
        train_heads([alone], [lr], features, answers, rows, schedule)
        assert torch.equal(alone.linear.weight, together.linear.weight)


@pytest.mark.parametrize("solver", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("several", [False, True])
def test_sweep_fits_linear_targets_and_chooses_the_best_rate(solver: str, several: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 6, generator=generator)
    truth = features @ torch.randn(6, 4, generator=generator)
    answers = truth > 0 if several else truth.argmax(dim=1)
    rates = {"sgd": (1e-9, 0.3), "lars": (1e-9, 30.0), "adamw": (1e-9, 1e-1)}[solver]
    schedule = ProbeSchedule(solver, rates, epochs=20, batch_size=50)  # type: ignore[arg-type]
    split = (np.arange(300), np.arange(300, 400))
    found = sweep(lambda g: NormedLinearHead(6, 4, g), features, answers, split, schedule, CPU)
    assert found.lr == rates[1]
    assert found.validation[rates[1]] > 0.9
    scores = head_scores(found.head, features, np.arange(400))
    again = sweep(lambda g: NormedLinearHead(6, 4, g), features, answers, split, schedule, CPU)
    assert np.array_equal(scores, head_scores(again.head, features, np.arange(400)))


def test_attentive_head_equals_torchs_attention() -> None:
    head = AttentiveHead(16, 5, torch.Generator().manual_seed(0), num_heads=4)
    peer = nn.MultiheadAttention(16, 4, batch_first=True)
    tokens = torch.randn(3, 7, 16)
    with torch.no_grad():
        nn.init.normal_(head.values.bias)
        nn.init.normal_(head.out.bias)
        peer.in_proj_weight.copy_(torch.cat([torch.eye(16), head.keys.weight, head.values.weight]))
        peer.in_proj_bias.copy_(torch.cat([torch.zeros(32), head.values.bias]))
        peer.out_proj.load_state_dict(head.out.state_dict())
        x = F.layer_norm(tokens, (16,))
        seen, _ = peer(head.query.expand(3, 1, -1), x, x)
        assert torch.allclose(head(tokens), head.linear(seen[:, 0]), atol=1e-5)


def test_the_number_of_heads_divides_the_width() -> None:
    assert AttentiveHead(192, 2, torch.Generator()).num_heads == 3
    assert AttentiveHead(100, 2, torch.Generator(), num_heads=8).num_heads == 5


def test_patch_tokens_are_the_models_up_to_a_limit(tmp_path: Path) -> None:
    encoder = load_encoder(tiny_clip(tmp_path / "clip", 0), CPU)
    images = [data.image for data in map(_picture, range(5))]
    expected = patch_tokens(encoder, images).half()
    assert torch.equal(PatchTokens(encoder, 5, 1.0).encode_images(images, 2), expected)
    with row_files(tmp_path / "tokens", ["one"]) as files:
        for part in (expected[:3], expected[3:]):
            files["one"].append(part)
        assert torch.equal(files["one"].rows(), expected)
    assert not (tmp_path / "tokens").exists()
    size = expected.numel() * 2 / 2**30
    PatchTokens(encoder, 5, size).encode_images(images)
    with pytest.raises(UserError, match="raise it, or evaluate on fewer images"):
        PatchTokens(encoder, 6, size).encode_images(images)


class _picture:  # noqa: N801
    def __init__(self, n: int) -> None:
        self.image = decode_image(png(NAMES[n], n), "x")


def tagged(
    folder: Path, num_samples: int, seed: int, like: TaggedImages | None = None, *, thirds: bool = False
) -> TaggedImages:
    """Draw images of seven colours, labelled with those of red, green and blue that each contains."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(num_samples):
        name = NAMES[int(rng.integers(7))]
        words = [word for word, part in zip(("reds", "green", "blue"), COLOURS[name], strict=True) if part]
        rows.append((f"{n:04d}", {"png": png(name, seed * 1000 + n + 1), "txt": f"It has {' '.join(words)}.".encode()}))
    data = Pool.create(folder / "pool", num_samples=write_rows(folder / "pool", rows, DatasetSpec(texts={"en": "txt"})))
    inputs = {"pool": data, **({"like": like} if like else {})}
    words = ["red", "green", "blue", "mauve"]
    stage = CaptionLabels(name="tags", data="pool", words=words, like="like" if like else None, thirds=thirds)
    return stage.run(run_in(folder / "tags", **inputs).ctx)


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaggedImages]:
    train = tagged(tmp_path_factory.mktemp("train"), 90, seed=0)
    return {"train": train, "data": tagged(tmp_path_factory.mktemp("data"), 40, seed=1, like=train)}


def test_captions_become_labels_that_are_read_back(tags: dict[str, TaggedImages]) -> None:
    train = tags["train"]
    assert set(train.class_names) == {"red", "green", "blue"}, "no caption says mauve"
    found = read_tags(train)
    assert found.shape == (90, 3)
    assert found.sum(axis=0).tolist() == train.num_images
    assert train.num_images == sorted(train.num_images, reverse=True)


def test_equally_common_words_become_labels_alphabetically(tmp_path: Path) -> None:
    words = [f"word{letter}" for letter in "hbgcdaef"]
    folder, rows = tmp_path / "pool", [("0", {"png": png(NAMES[0], 1), "txt": " ".join(words).encode()})]
    data = Pool.create(folder, num_samples=write_rows(folder, rows, DatasetSpec(texts={"en": "txt"})))
    stage = CaptionLabels(name="tags", data="pool", words=words, num_labels=4)
    assert stage.run(run_in(tmp_path / "tags", pool=data).ctx).class_names == sorted(words)[:4]


def test_labels_of_another_set_are_reused(tmp_path: Path, tags: dict[str, TaggedImages]) -> None:
    data = pool(tmp_path / "pool")
    stage = CaptionLabels(name="tags", data="pool", words=["red", "number"], like="train", language="en")
    found = stage.run(run_in(tmp_path / "out", pool=data, train=tags["train"]).ctx)
    assert found.class_names == tags["train"].class_names
    assert found.num_images[found.class_names.index("red")] == 1
    with pytest.raises(UserError, match="expected at least 2 of the words"):
        CaptionLabels(name="t", data="pool", words=["red", "mauve"]).run(run_in(tmp_path / "o", pool=data).ctx)


def test_nouns_are_recognised_by_wordnets_counts_and_made_singular(tmp_path: Path) -> None:
    (tmp_path / "index.noun").write_text("  1 licence\ndog n 1\nwhite n 3\nman n 1\nbox n 1\ncity n 1\nin n 1\n")
    with (tmp_path / "index.noun").open("a") as file:
        file.writelines(f"{word} n 1\n" for word in ("while", "sitting", "playing", "building"))
    (tmp_path / "verb.exc").write_text("sitting sit\n")
    (tmp_path / "noun.exc").write_text("men man\nwolves wolf\n")
    (tmp_path / "cntlist.rev").write_text(
        "dog%1:05:00:: 1 42\ndog%2:38:00:: 1 2\nwhite%1:07:00:: 1 10\nwhite%3:00:01:: 1 60\n"
        "man%1:18:00:: 1 90\nbox%1:06:00:: 1 9\ncity%1:15:00:: 1 9\nrun%2:38:00:: 1 99\n"
        "while%1:28:00:: 1 23\nsitting%1:04:00:: 1 2\nsit%2:35:00:: 1 185\nplaying%1:04:00:: 1 12\n"
        "play%2:33:00:: 1 246\nbuilding%1:06:00:: 1 52\nbuild%2:36:00:: 1 139\n"
    )
    noun = Nouns(tmp_path)
    words = ("dog", "dogs", "white", "men", "boxes", "cities", "in", "runs", "wolves", "mans")
    assert [noun(word) for word in words] == ["dog", "dog", None, "man", "box", "city", None, None, None, "man"]
    assert [noun(word) for word in ("while", "sitting", "playing", "buildings")] == [None, None, None, "building"]
    for name, text in (("cntlist.rev", "dog%1:05:00::"), ("noun.exc", "men")):
        whole = (tmp_path / name).read_text()
        (tmp_path / name).write_text(f"{text}\n")
        with pytest.raises(UserError, match=rf"{name}: line 1: expected [23] words, got 1"):
            Nouns(tmp_path)
        (tmp_path / name).write_text(whole)
    (tmp_path / "index.noun").unlink()
    with pytest.raises(UserError, match=r"index\.noun"):
        Nouns(tmp_path)
    listed = WordList(["Bus", "dog"])
    assert [listed(word) for word in ("buses", "dogs", "dog", "doge")] == ["Bus", "dog", "dog", None]


def run_stage(stage: object, folder: Path, encoders: dict, **inputs: object) -> dict:
    evaluated = stage.evaluate(run_in(folder, **inputs).ctx, encoders)  # type: ignore[attr-defined]
    return dict(evaluated.results)


@pytest.mark.parametrize(
    "stage",
    [
        LinearProbe(name="p", train="train", data="data", solver="sgd"),
        Knn(name="k", train="train", data="data", k=5),
    ],
)
def test_probe_and_neighbours_predict_several_labels(stage: object, tmp_path: Path, tags: dict) -> None:
    found = run_stage(stage, tmp_path / "out", ORACLES, **tags)
    assert list((tmp_path / "out/panels").glob("*average-precision*"))
    for result in found.values():
        (score,) = result.scores
        assert score.metric.endswith("_map")
        assert score.value > 0.99


def test_head_middle_and_tail_labels_are_also_evaluated_by_themselves(tmp_path: Path) -> None:
    train = tagged(tmp_path / "train", 90, seed=0, thirds=True)
    data = tagged(tmp_path / "data", 40, seed=1, like=train)
    assert data.class_groups == train.class_groups == {"head": [0], "middle": [1], "tail": [2]}
    found = run_stage(Knn(name="k", train="train", data="data", k=5), tmp_path / "out", ORACLES, train=train, data=data)
    scores = {score.metric: score for score in found["wrong"].scores}
    parts = [scores[f"knn_map/{group}"].value for group in ("head", "middle", "tail")]
    assert scores["knn_map"].value == pytest.approx(np.mean(parts))
    with pytest.raises(ValueError, match="thirds: set it for the labels of `like`"):
        CaptionLabels(name="t", data="pool", words=["red"], like="train", thirds=True)


def test_one_class_and_several_labels_are_not_mixed(tmp_path: Path, tags: dict) -> None:
    one = labeled(tmp_path / "one")
    stage = Knn(name="k", train="train", data="data")
    with pytest.raises(UserError, match="expected train and data of one type"):
        run_stage(stage, tmp_path / "out", ORACLES, train=tags["train"], data=one)
    lbfgs = LinearProbe(name="p", train="train", data="data")
    with pytest.raises(UserError, match="set solver: sgd"):
        run_stage(lbfgs, tmp_path / "out", ORACLES, **tags)


def test_solver_for_one_class_refuses_several_labels_before_the_run() -> None:
    made = {name: CaptionLabels(name=name, data="pool", words=["red", "blue"]) for name in ("train", "data")}
    with pytest.raises(
        UserError, match="solver lbfgs takes one class per image, train has several labels; set solver: sgd"
    ):
        LinearProbe(name="p", train="train", data="data").preflight(Preflight(made, {}))
    LinearProbe(name="p", train="train", data="data", solver="sgd").preflight(Preflight(made, {}))


def test_neighbours_vote_equally_for_a_class_and_for_a_single_label() -> None:
    train, test, labels = torch.randn(30, 4), torch.randn(9, 4), torch.randint(0, 3, (30,))
    votes = knn_votes(train, labels, test, num_classes=3, k=4, temperature=0.07)
    assert torch.allclose(
        votes, knn_votes(train, F.one_hot(labels, 3).bool(), test, num_classes=3, k=4, temperature=0.07)
    )


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that one operation has made."""

    numel = 0

    def __torch_dispatch__(
        self, function: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        made = function(*args, **(kwargs or {}))  # type: ignore[operator]
        self.numel = max([self.numel, *(one.numel() for one in (made if isinstance(made, tuple) else (made,))
                                        if isinstance(one, Tensor))])  # fmt: skip
        return made


def test_votes_for_many_labels_are_counted_in_bounded_memory() -> None:
    labels, test = torch.rand(5, 400) < 0.5, torch.randn(200, 4)
    train, settings = torch.randn(5, 4), {"num_classes": 400, "k": 5, "temperature": 0.07}
    whole = knn_votes(train, labels, test, **settings)
    with LargestTensor() as largest:
        found = knn_votes(train, labels, test, **settings, max_scores=4000)
    assert largest.numel <= found.numel()  # the result itself is larger than what is held at once
    torch.testing.assert_close(found, whole)


def test_attentive_probe_reads_patches_and_removes_its_files(tmp_path: Path, tags: dict) -> None:
    models = {"clip": tiny_clip(tmp_path / "clip", 0)}
    run = run_in(tmp_path / "out", **models, **tags)
    stage = AttentiveProbe(name="a", models=["clip"], train="train", data="data", epochs=15, train_batch_size=16)
    report = stage.run(run.ctx)
    (metric,) = report.metrics
    assert metric.name == "attn_map"
    assert metric.value > 0.9 > (metric.chance or 1)
    assert not (run.ctx.work / "tokens").exists()


def test_probes_of_one_class_have_the_usual_metrics(tmp_path: Path) -> None:
    inputs = {"train": labeled(tmp_path / "train", 70), "data": labeled(tmp_path / "data", 21)}
    stage = LinearProbe(name="p", train="train", data="data", solver="lars", epochs=40, train_batch_size=32)
    found = run_stage(stage, tmp_path / "out", ORACLES, **inputs)
    assert {v.metric: v.value for v in found["right"].scores}["lp_acc1"] == 1
    assert found["right"].details["lr"] in stage_rates(found["right"].details)


def stage_rates(details: dict) -> list[float]:
    return [float(lr) for lr in details["validation"]]


def classifier(folder: Path, names: list[str] | None) -> VisionCheckpoint:
    model = build_vision("vit_pico_patch8_32", num_classes=7, seed=0)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    if names:
        set_class_names(model, names)
    return save_vision(model, folder)


def test_independent_labels_are_kept_by_what_keeps_the_head(tmp_path: Path) -> None:
    model = build_vision("vit_pico_patch8_32", num_classes=7, seed=0)
    set_class_names(model, NAMES, independent=True)
    save_vision(model, tmp_path)
    loaded = load_vision(tmp_path)
    assert has_independent_labels(loaded)
    save_vision(loaded, tmp_path / "again")
    assert has_independent_labels(load_vision(tmp_path / "again"))
    assert not has_independent_labels(load_vision(tmp_path, num_classes=3))
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True)  # timm does not know the key
    set_class_names(loaded, NAMES)
    save_vision(loaded, tmp_path / "single")
    assert not has_independent_labels(load_vision(tmp_path / "single"))


def test_class_names_are_stored_where_timm_stores_them(tmp_path: Path) -> None:
    model = load_vision(classifier(tmp_path, NAMES))
    assert class_names_of(model) == NAMES
    save_vision(model, tmp_path / "again")
    assert class_names_of(load_vision(tmp_path / "again")) == NAMES
    assert class_names_of(load_vision(tmp_path, num_classes=3)) == []
    assert class_names_of(build_vision("vit_pico_patch8_32", num_classes=7)) == []


def test_a_head_is_evaluated_by_names_also_on_some_of_its_classes(tmp_path: Path) -> None:
    """The same images with all classes in the head's order, and with four classes in the data's order."""
    data = labeled(tmp_path / "data", 28)
    named = classifier(tmp_path / "named", NAMES[::-1])
    encoder = load_encoder(named, CPU)
    assert isinstance(encoder, PooledVision)
    images = [_picture_of(n) for n in range(28)]
    logits = encoder.logits(images)[:, list(range(6, -1, -1))]
    found = run_stage(Classify(name="c", data="data"), tmp_path / "out", {"m": encoder}, data=data)
    assert found["m"].predictions["images"]["predicted"].tolist() == logits.argmax(dim=1).tolist()
    few = labeled(tmp_path / "few", 28, classes=4)
    found = run_stage(Classify(name="c", data="data"), tmp_path / "out2", {"m": encoder}, data=few)
    logits = encoder.logits([_picture_of(n, 4) for n in range(28)])[:, [6, 5, 4, 3]]
    assert found["m"].predictions["images"]["predicted"].tolist() == logits.argmax(dim=1).tolist()


def test_a_head_of_several_labels_is_evaluated_by_their_average_precision(
    tmp_path: Path, tags: dict[str, TaggedImages]
) -> None:
    data = tags["data"]
    names = [*data.class_names, *NAMES[3:]]
    encoder = load_encoder(classifier(tmp_path / "m", names), CPU)
    config = Classify(name="c", data="data", models=["m"])
    config.preflight(Preflight({}, {"data": data.path, "m": tmp_path / "m"}))
    (score,) = run_stage(config, tmp_path / "out", {"m": encoder}, data=data)["m"].scores
    assert score.metric == "mean_average_precision"
    pictures = [decode_image(sample.image, "x") for sample in open_dataset(ImageDataset.load(data.linked(data.data)))]
    logits = encoder.logits(pictures)[:, :3].numpy()
    assert score.value == pytest.approx(average_precision_score(read_tags(data), logits))


def _picture_of(n: int, classes: int = 7) -> object:
    return decode_image(png(NAMES[n % classes], n + 1), "x")


def test_classifiers_are_compared_and_models_without_a_head_refused(tmp_path: Path) -> None:
    inputs = {"a": classifier(tmp_path / "a", None), "b": classifier(tmp_path / "b", NAMES[::-1])}
    data = labeled(tmp_path / "data", 28)
    run = run_in(tmp_path / "out", data=data, **inputs)
    report = Classify(name="c", models=["a", "b"], data="data").run(run.ctx)
    assert {m.name for m in report.metrics} == {"acc1", "acc5", "mean_per_class_recall"}
    assert len(report.comparisons) == 3
    headless = save_vision(build_vision("vit_pico_patch8_32", seed=0), tmp_path / "headless")
    with pytest.raises(UserError, match="m: expected a model with a classification head"):
        run_stage(Classify(name="c", data="data"), tmp_path / "o", {"m": load_encoder(headless, CPU)}, data=data)
    clip = load_encoder(tiny_clip(tmp_path / "clip", 0), CPU)
    with pytest.raises(UserError, match="expected a model with a classification head"):
        run_stage(Classify(name="c", data="data"), tmp_path / "o", {"m": clip}, data=data)


@pytest.mark.parametrize(
    ("names", "count", "wanted", "line"),
    [
        ([], 3, ["a", "b"], "3 outputs without names, the dataset 2 classes; give class_names"),
        (["a", "b"], 3, ["a", "b"], "expected class_names for 3 outputs of its head, got 2"),
        (["cat", "dog", "cow"], 3, ["cat", "dogg"], "has no class 'dogg'; did you mean 'dog'"),
    ],
)
def test_classes_that_do_not_match_a_head_are_refused(names: list, count: int, wanted: list, line: str) -> None:
    with pytest.raises(UserError, match=line):
        columns_of(names, count, wanted, "m")


def test_timms_imagenet_order_is_given_by_names(tmp_path: Path) -> None:
    """A head without names, as timm's own, on a subset of its classes: the recipe names the outputs."""
    model = load_encoder(classifier(tmp_path / "m", None), CPU)
    data: LabeledDataset = labeled(tmp_path / "data", 12, classes=4)
    stage = Classify(name="c", data="data", class_names=NAMES[::-1])
    named = load_encoder(classifier(tmp_path / "n", NAMES[::-1]), CPU)
    found = run_stage(stage, tmp_path / "out", {"m": model, "n": named}, data=data)
    ranks = [found[name].predictions["images"]["rank"].tolist() for name in ("m", "n")]
    assert ranks[0] == ranks[1]
    assert vision_preprocess(model.module).image_size == 32  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "stage",
    [
        LinearProbe(name="p", train="train", data="data"),
        LinearProbe(name="p", train="train", data="data", solver="sgd"),
        Knn(name="k", train="train", data="data", k=3),
        FewShot(name="f", train="train", data="data", shots=[1], draws=1),
    ],
    ids=["lbfgs", "sgd", "knn", "few shots"],
)
def test_test_images_that_are_also_trained_on_are_a_warning(stage: object, tmp_path: Path) -> None:
    known, whole = labeled(tmp_path / "train"), labeled(tmp_path / "whole", 70)
    other = tmp_path / "other"
    write_other = [(f"{n:04d}", {"png": png(NAMES[n % 7], 100 + n), "cls": str(n % 7).encode()}) for n in range(42)]
    spec = DatasetSpec(label_key="cls", class_names=NAMES)
    size = write_rows(other, write_other, spec)
    new = LabeledDataset.create(other, num_samples=size, class_names=NAMES)  # the same keys, other images
    renamed = [(f"copy-{n}", {"png": png(NAMES[n], n + 1), "cls": str(n).encode()}) for n in range(7)]
    size = write_rows(tmp_path / "renamed", renamed, spec)
    copies = LabeledDataset.create(tmp_path / "renamed", num_samples=size, class_names=NAMES)
    expected = {
        known.path: ["42 of the 42 test images"],
        whole.path: ["42 of the 70 test images"],
        other: [],
        copies.path: ["7 of the 7 test images"],
    }
    for number, data in enumerate((known, whole, new, copies)):
        run = run_in(tmp_path / str(number), train=known, data=data)
        stage.evaluate(run.ctx, ORACLES)  # type: ignore[attr-defined]
        warnings = [event.data["message"] for event in run.events if event.type == "warning"]
        assert [warning.partition(" are ")[0] for warning in warnings] == expected[data.path]
