"""The evaluation stages: pairing from file to score, equality with open_clip's own loop, reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError

from eval_world import (
    NAMES,
    ColourModel,
    labeled,
    pairs,
    png,
    pool,
    run_in,
    sugarcrepe,
    tiny_clip,
    write_rows,
)
from vfm.base import UserError
from vfm.core import vfm_stages
from vfm.data import DatasetSpec, open_dataset
from vfm.data.choices.choices import load_choices, write_choices
from vfm.data.labeled.stages import Labeled
from vfm.data.samples.images import decode_image
from vfm.eval.choices.choice_logits import choice_logits
from vfm.eval.choices.choices import score_choices, score_mmvp_vlm
from vfm.eval.choices.stages import Choices, MmvpVlm
from vfm.eval.classify.knn import evaluate_knn
from vfm.eval.classify.linear_probe import evaluate_linear_probe
from vfm.eval.classify.stages import Knn, LinearProbe, ZeroShot
from vfm.eval.classify.zero_shot import score_zero_shot
from vfm.eval.encode.hashes import checkpoint_hash
from vfm.eval.retrieval.retrieval import score_retrieval
from vfm.eval.retrieval.stages import Retrieval
from vfm.interfaces import (
    Artifact,
    Evaluation,
    ImagesPanel,
    LabeledDataset,
    ModelResult,
    Pool,
    Preflight,
    Ref,
    Report,
    TablePanel,
    load_panels,
    load_plugins,
    stage_types,
)
from vfm.models import build_vision, save_vision
from vfm.plugin import ReadSettings

KNOWN = stage_types(load_plugins())
EVALUATIONS = [KNOWN[kind] for kind in vfm_stages() if kind.startswith("eval.")]
ORACLES = {"right": ColourModel(), "wrong": ColourModel(-1.0)}
SETS = {"models": ["m"], "train": "train", "data": "test"}
PROBE = LinearProbe.model_validate({"name": "probe", **SETS})
NEIGHBOURS = Knn.model_validate({"name": "knn", **SETS, "k": 5})


def values(results: Mapping[str, ModelResult], model: str) -> dict[str, float]:
    return {score.metric: score.value for score in results[model].scores}


def metric(report: Report, name: str, model: str) -> float:
    return next(m.value for m in report.metrics if (m.name, m.model) == (name, model))


def test_a_perfect_model_gets_every_class_and_its_opposite_none(tmp_path: Path) -> None:
    run = run_in(tmp_path / "out")
    found = score_zero_shot(run.ctx, ORACLES, labeled(tmp_path / "data")).results
    assert set(values(found, "right").values()) == {1.0}
    assert values(found, "wrong")["acc1"] == 0
    assert found["right"].predictions["images"]["predicted"].tolist() == [n % 7 for n in range(42)]


def test_each_group_of_classes_has_an_accuracy_among_all_answers(tmp_path: Path) -> None:
    data = labeled(tmp_path / "data").model_copy(update={"class_groups": {"head": [0, 1, 2, 3], "tail": [4, 5, 6]}})
    data._path = tmp_path / "data"
    run = run_in(tmp_path / "out")
    found = score_zero_shot(run.ctx, ORACLES, data).results
    for result in found.values():
        scores = {score.metric: score for score in result.scores}
        labels = result.predictions["images"]["label"]
        assert len(scores["acc1/tail"].correct) == np.isin(labels, [4, 5, 6]).sum()
        assert scores["acc1/tail"].chance == pytest.approx(1 / 7)
        parts = np.concatenate([scores["acc1/head"].correct, scores["acc1/tail"].correct])
        assert parts.mean() == scores["acc1"].value


def test_a_perfect_model_retrieves_every_caption_and_image(tmp_path: Path) -> None:
    run = run_in(tmp_path / "out")
    found = score_retrieval(run.ctx, ORACLES, pool(tmp_path / "data")).results
    assert set(values(found, "right").values()) == {1.0}
    assert values(found, "wrong")["image_retrieval_recall@1"] == 0
    scores = {score.metric: score for score in found["right"].scores}
    assert len(scores["image_retrieval_recall@1"].correct) == 13  # one image has one caption, six have two
    assert scores["image_retrieval_recall@1"].num_independent == 7
    assert scores["image_retrieval_recall@5"].chance == pytest.approx(5 / 7)


def test_chance_of_text_retrieval_is_the_mean_of_random_models(tmp_path: Path) -> None:
    from vfm.eval import retrieval_ranks
    from vfm.eval.retrieval.retrieval import recall_scores

    image_of_text = np.repeat(np.arange(12), [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4])
    torch.manual_seed(0)
    found = []
    for _ in range(400):
        ranks = retrieval_ranks(torch.randn(12, 24), torch.randn(30, 24), torch.from_numpy(image_of_text))
        found.append({v.metric: (v.value, v.chance) for v in recall_scores(ranks, image_of_text, [1, 5, 30])})
    for name in found[0]:
        values, chances = zip(*(one[name] for one in found), strict=True)
        assert np.mean(values) == pytest.approx(chances[0], abs=0.02), name


def test_pairs_are_matched_in_any_order_of_statements(tmp_path: Path) -> None:
    run = run_in(tmp_path / "out")
    found = score_mmvp_vlm(run.ctx, ORACLES, pairs(tmp_path / "data"), prompt="a photo of ").results
    assert values(found, "right") == {
        "pair_accuracy": 1.0,
        "pair_accuracy/colour": 1.0,
        "pair_accuracy/tone": 1.0,
        "statement_accuracy": 1.0,
        "aligned_pairs": 1.0,
    }
    assert set(values(found, "wrong").values()) == {0.0}
    flips = next(panel for panel in load_panels(tmp_path / "out") if isinstance(panel, ImagesPanel))
    assert "0 won and 6 lost" in flips.note
    assert "“it is red” · right → wrong" in flips.pictures[0].caption


def test_images_of_choices_do_not_stay_in_memory(tmp_path: Path) -> None:
    found = choice_logits(run_in(tmp_path / "out").ctx, ORACLES, pairs(tmp_path / "data"), "", ReadSettings(2))
    assert [item.images for item in found.items] == [[b"", b""]] * 6
    assert found.numbers == list(range(6))


def test_mmvp_refuses_items_that_are_not_pairs(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="data: item 0: expected two images and two statements, got 1 images and 2 statements"
    ):
        score_mmvp_vlm(run_in(tmp_path / "out").ctx, ORACLES, sugarcrepe(tmp_path / "data"), prompt="")


@pytest.mark.parametrize(("make", "chance"), [(pairs, 1 / 6), (sugarcrepe, 1 / 2)])
def test_caption_choice_of_both_shapes(make: object, chance: float, tmp_path: Path) -> None:
    run = run_in(tmp_path / "out")
    found = score_choices(run.ctx, ORACLES, make(tmp_path / "data"), prompt="").results  # type: ignore[operator]
    main = found["right"].scores[0]
    assert (main.metric, main.value, main.chance) == ("acc", 1.0, pytest.approx(chance))
    assert found["wrong"].scores[0].value == 0
    assert ("image_acc" in values(found, "right")) == (make is pairs)


def test_probe_and_neighbours_classify_separable_features(tmp_path: Path) -> None:
    train, test = labeled(tmp_path / "train", 70), labeled(tmp_path / "test", 21)
    run = run_in(tmp_path / "out", train=train, test=test)
    probed = evaluate_linear_probe(PROBE, run.ctx, ORACLES).results
    neighbours = evaluate_knn(NEIGHBOURS, run.ctx, ORACLES).results
    for name in ORACLES:  # a probe does not use names: opposite colours are separable too
        assert values(probed, name)["lp_acc1"] == 1
        assert values(neighbours, name)["knn_acc1"] == 1


def test_bad_images_are_skipped_counted_and_reported_for_all_models(tmp_path: Path) -> None:
    run = run_in(tmp_path / "out")
    found = score_zero_shot(run.ctx, ORACLES, labeled(tmp_path / "data", 42, broken=[3, 40])).results
    keys = found["right"].predictions["images"]["key"]
    assert len(keys) == 40
    assert keys == found["wrong"].predictions["images"]["key"]
    assert values(found, "right")["acc1"] == 1  # labels are not shifted
    assert run.bad == {"unreadable_image": 2}
    assert sum(event.type == "bad_sample" for event in run.events) == 2


def test_too_many_bad_images_stop_the_evaluation(tmp_path: Path) -> None:
    run = run_in(tmp_path / "out")
    with pytest.raises(
        UserError, match=r"3 of 42 samples cannot be used .*: 3 unread.*; the first is .*\.tar:0*3 \(unread"
    ):
        score_zero_shot(run.ctx, ORACLES, labeled(tmp_path / "data", 42, broken=[3, 4, 40]))


@pytest.mark.parametrize("evaluate", [score_mmvp_vlm, score_choices])
def test_too_many_bad_items_stop_a_caption_choice(evaluate: Callable, tmp_path: Path) -> None:
    items = list(load_choices(pairs(tmp_path / "data")))
    items[2] = replace(items[2], images=[b"no image", items[2].images[1]])
    data = write_choices(tmp_path / "broken", items)
    run = run_in(tmp_path / "borne")
    found = evaluate(run.ctx, ORACLES, data, prompt="", reading=ReadSettings(max_bad_fraction=0.2)).results
    assert len(found["right"].scores[0].correct) == 5
    assert run.bad == {"unreadable_image": 1}
    with pytest.raises(
        UserError, match=r"1 of 6 items cannot be used \(max_.*\): 1 unread.*; the first is \S+ \(unread"
    ):
        evaluate(run_in(tmp_path / "out").ctx, ORACLES, data, prompt="")


def test_bad_samples_are_counted_per_data_set(tmp_path: Path) -> None:
    train, test = labeled(tmp_path / "train", 70, broken=[1]), labeled(tmp_path / "test", 14, broken=[0])
    with pytest.raises(UserError, match=r"1 of 14 samples cannot be used .*: 1 unread.*; the first is \S+ \(unread"):
        evaluate_knn(NEIGHBOURS, run_in(tmp_path / "out", train=train, test=test).ctx, ORACLES)


def test_data_hash_covers_texts_labels_and_images_but_not_the_batch_size(tmp_path: Path) -> None:
    def hash_of(name: str, change: dict[str, bytes], size: int = 64) -> str:
        rows = []
        for n in range(4):
            parts = {"png": png(NAMES[n]), "txt": NAMES[n].encode(), "cls": str(n).encode()}
            rows.append((str(n), parts | (change if n == 2 else {})))
        spec = DatasetSpec(texts={"en": "txt"}, label_key="cls", class_names=NAMES)
        (tmp_path / name).mkdir()
        data = LabeledDataset.create(
            tmp_path / name,
            num_samples=write_rows(tmp_path / name, rows, spec),
            class_names=NAMES,
            templates=["a {} ."],
        )
        return score_zero_shot(
            run_in(tmp_path / f"{name}-out").ctx, ORACLES, data, reading=ReadSettings(size)
        ).data_sha256

    same = {hash_of("one", {}), hash_of("again", {}), hash_of("small", {}, 1), hash_of("uneven", {}, 3)}
    others = {
        hash_of("text", {"txt": b"red"}),
        hash_of("label", {"cls": b"5"}),
        hash_of("image", {"png": png("red", 9)}),
    }
    assert len(same) == 1
    assert len(same | others) == 4


def test_hash_of_choices_covers_statements_truth_and_images(tmp_path: Path) -> None:
    items = list(load_choices(pairs(tmp_path / "data")))
    changes: list[dict] = [
        {},
        {"statements": ["it is red", "it is red"]},
        {"truth": [1, 0]},
        {"images": items[0].images[::-1]},
    ]
    found = []
    for n, change in enumerate(changes):
        data = write_choices(tmp_path / f"{n}", [replace(items[0], **change), *items[1:]])
        for size in (64, 4):
            run = run_in(tmp_path / f"{n}-{size}")
            found.append(score_choices(run.ctx, ORACLES, data, prompt="", reading=ReadSettings(size)).data_sha256)
    assert found[::2] == found[1::2]
    assert len(set(found)) == 4


def test_probe_on_few_images_per_class_holds_out_one_of_each(tmp_path: Path) -> None:
    train, test = labeled(tmp_path / "train", 28), labeled(tmp_path / "test", 14)
    found = evaluate_linear_probe(PROBE, run_in(tmp_path / "out", train=train, test=test).ctx, ORACLES).results
    assert values(found, "right")["lp_acc1"] == 1
    assert set(found["right"].details["validation_accuracy"].values()) <= {n / 7 for n in range(8)}  # seven images


def test_probe_on_one_image_per_class_is_refused_before_test_images_are_encoded(tmp_path: Path) -> None:
    train, test = labeled(tmp_path / "train", 7), labeled(tmp_path / "test", 14)
    run = run_in(tmp_path / "out", train=train, test=test)
    with pytest.raises(UserError, match="validation_fraction: no image can be held out"):
        evaluate_linear_probe(PROBE, run.ctx, ORACLES)
    assert [event.data["total"] for event in run.events if event.type == "progress"] == [7]


def test_a_template_file_without_a_place_for_the_name_is_refused_when_the_data_set_is_made(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"data/{n}").mkdir(parents=True)
        (tmp_path / f"data/{n}/a.png").write_bytes(png(NAMES[n]))
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\na photo\n")
    stage = Labeled(name="val", path=f"{tmp_path}/data")
    message = r"^zeroshot_classification_templates.txt: template 'a photo' has no \{\} for the class name$"
    with pytest.raises(UserError, match=message):
        stage.run(run_in(tmp_path / "out").ctx)
    with pytest.raises(UserError, match=message):
        stage.preflight(Preflight({}, {}))


def test_every_input_of_an_evaluation_is_described() -> None:
    for stage in EVALUATIONS:
        assert all(field.description for name, field in stage.model_fields.items() if name in ("data", "train"))


def test_images_of_a_retrieval_are_of_the_last_model(tmp_path: Path) -> None:
    for last, shown in (("right", "rank 1"), ("wrong", "rank 7")):
        models = {name: ORACLES[name] for name in sorted(ORACLES, key=lambda name: name == last)}
        score_retrieval(run_in(tmp_path / last).ctx, models, pool(tmp_path / f"{last}-data"))
        [sheet] = [panel for panel in load_panels(tmp_path / last) if panel.title.startswith("Captions that find")]
        assert isinstance(sheet, ImagesPanel)
        assert sheet.title.endswith(f"({last})")
        assert any(shown in picture.caption for picture in sheet.pictures)


def test_equal_captions_for_all_images_are_refused(tmp_path: Path) -> None:
    rows = [(str(n), {"png": png(NAMES[n]), "txt": b"a red thing"}) for n in range(4)]
    size = write_rows(tmp_path / "data", rows, DatasetSpec(texts={"en": "txt"}))
    data = Pool.create(tmp_path / "data", num_samples=size)
    with pytest.raises(UserError, match="data: expected different captions, got 'a red thing' for all images"):
        score_retrieval(run_in(tmp_path / "out").ctx, ORACLES, data)


def test_zero_shot_equals_open_clips_own_classifier_and_accuracy(tmp_path: Path) -> None:
    from open_clip_train.zero_shot import accuracy

    data, clip = labeled(tmp_path / "data"), tiny_clip(tmp_path / "clip", 3)
    run = run_in(tmp_path / "out", val=data, clip=clip)
    report = ZeroShot(kind="eval.zero_shot", name="z", models=["clip"], data="val", micro_batch_size=5).run(run.ctx)

    peer, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip.path}")
    peer.eval()
    templates = [lambda c, t=t: t.format(c) for t in data.templates]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip.path}")
    classifier = open_clip.build_zero_shot_classifier(peer, tokenizer, data.class_names, templates)
    samples = list(open_dataset(data))
    images = torch.stack([transform(decode_image(sample.image, sample.key)) for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    with torch.no_grad():
        logits = peer.encode_image(images, normalize=True) @ classifier
    top1, top5 = accuracy(logits, labels, topk=(1, 5))
    assert 0 < top5 < 42
    assert (metric(report, "acc1", "clip"), metric(report, "acc5", "clip")) == (top1 / 42, top5 / 42)


def test_mmvp_equals_the_official_script_on_a_real_model(tmp_path: Path) -> None:
    data, clip = pairs(tmp_path / "data", 12), tiny_clip(tmp_path / "clip", 5)
    run = run_in(tmp_path / "out", pairs=data, clip=clip)
    MmvpVlm(kind="eval.mmvp_vlm", name="m", models=["clip"], data="pairs", micro_batch_size=5).run(run.ctx)
    table = pq.read_table(tmp_path / "out/predictions/pairs.parquet").to_pylist()

    peer, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip.path}")
    peer.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip.path}")
    for item, row in zip(load_choices(data), table, strict=True):
        images = torch.stack([transform(decode_image(image, "")) for image in item.images])
        for side, statement in enumerate(item.statements, start=1):
            with torch.no_grad():
                features = peer.encode_image(images, normalize=True)
                text = peer.encode_text(tokenizer(["a photo of " + statement]), normalize=True)
                probability = (peer.logit_scale.exp() * text @ features.T).softmax(dim=-1)[0, 0].item()
            assert row[f"probability_{side}"] == pytest.approx(probability, abs=1e-5)
            assert row[f"predicted_{side}"] == (1 if probability > 0.5 else 2)


def evaluate_all(directory: Path) -> dict[str, Report]:
    """Run every evaluation of two tiny models."""
    inputs: dict[str, Artifact] = {
        "clip": tiny_clip(directory / "clip", 1),
        "diva": tiny_clip(directory / "diva", 2),
        "val": labeled(directory / "val"),
        "train": labeled(directory / "train", 70),
        "pool": pool(directory / "pool"),
        "pairs": pairs(directory / "pairs"),
    }
    common = {"models": ["clip", "diva"]}
    stages = [
        ZeroShot(kind="eval.zero_shot", name="zero_shot", data="val", **common),
        Retrieval(kind="eval.retrieval", name="retrieval", data="pool", **common),
        LinearProbe(kind="eval.linear_probe", name="probe", train="train", data="val", penalties=[0.01, 1.0], **common),
        Knn(kind="eval.knn", name="knn", train="train", data="val", **common),
        MmvpVlm(kind="eval.mmvp_vlm", name="mmvp", data="pairs", **common),
        Choices(kind="eval.choices", name="choices", data="pairs", **common),
    ]
    return {stage.name: stage.run(run_in(directory / stage.name, **inputs).ctx) for stage in stages}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Report]]:
    directory = tmp_path_factory.mktemp("everything")
    return directory, evaluate_all(directory)


def test_every_score_has_n_and_an_interval_around_it(everything: tuple[Path, dict[str, Report]]) -> None:
    for report in everything[1].values():
        assert {m.model for m in report.metrics} == {"clip", "diva"}
        for m in report.metrics:
            assert m.n > 0
            assert 0 <= m.low <= m.value <= m.high <= 1
            assert m.low < m.high
            assert m.chance is not None
        assert len(report.comparisons) == len(report.metrics) / 2
        for c in report.comparisons:
            assert (c.baseline, c.model) == ("clip", "diva")
            assert c.low <= c.difference <= c.high
            assert 0 < c.p_value <= 1
            values = {m.model: m.value for m in report.metrics if m.name == c.metric}
            assert c.difference == pytest.approx(values["diva"] - values["clip"])


def test_scores_can_be_recomputed_from_the_predictions(everything: tuple[Path, dict[str, Report]]) -> None:
    directory, reports = everything
    for name, table, column, metric_name in [
        ("zero_shot", "images", "rank", "acc1"),
        ("probe", "images", "rank", "lp_acc1"),
        ("knn", "images", "rank", "knn_acc1"),
        ("retrieval", "image_retrieval", "rank", "image_retrieval_recall@1"),
        ("retrieval", "text_retrieval", "rank", "text_retrieval_recall@1"),
        ("mmvp", "pairs", "correct", "pair_accuracy"),
        ("choices", "items", "correct", "acc"),
    ]:
        frame = pq.read_table(directory / name / "predictions" / f"{table}.parquet").to_pydict()
        for model in ("clip", "diva"):
            values = np.array([v for v, m in zip(frame[column], frame["model"], strict=True) if m == model])
            hits = values == 0 if column == "rank" else values
            assert hits.mean() == pytest.approx(metric(reports[name], metric_name, model)), (name, model)


def test_checkpoint_hash_covers_the_configuration(tmp_path: Path) -> None:
    """Normalisation of the images changes every result."""
    checkpoint = tiny_clip(tmp_path, 0)
    before, file = checkpoint_hash(checkpoint), tmp_path / "open_clip_config.json"
    (tmp_path / "manifest.json").write_text("{}")  # it holds times, which are no part of the model
    assert checkpoint_hash(checkpoint) == before
    file.write_text(file.read_text().replace('"mean"', '"means"'))
    assert checkpoint_hash(checkpoint) != before


def test_result_files_are_a_superset_of_clip_benchmarks(everything: tuple[Path, dict[str, Report]]) -> None:
    directory, reports = everything
    result = json.loads((directory / "zero_shot/results/val_diva_zeroshot_classification.json").read_text())
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= result.keys()
    assert result["metrics"].keys() == {"acc1", "acc5", "mean_per_class_recall"} == result["ci95"].keys()
    assert result["metrics"]["acc1"] == metric(reports["zero_shot"], "acc1", "diva")
    assert (result["dataset"], result["pretrained"], result["language"], result["n"]) == ("val", "diva", "en", 42)
    other = json.loads((directory / "zero_shot/results/val_clip_zeroshot_classification.json").read_text())
    assert result["data_sha256"] == other["data_sha256"]
    assert result["checkpoint_sha256"] != other["checkpoint_sha256"]
    retrieval = json.loads((directory / "retrieval/results/pool_clip_zeroshot_retrieval.json").read_text())
    assert {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)} == retrieval[
        "metrics"
    ].keys()


def test_every_evaluation_writes_panels_whose_images_exist(everything: tuple[Path, dict[str, Report]]) -> None:
    directory, reports = everything
    for name in reports:
        panels = load_panels(directory / name)
        for panel in panels:
            if isinstance(panel, TablePanel):
                assert all(len(row) == len(panel.columns) for row in panel.rows)
            for picture in panel.pictures if isinstance(panel, ImagesPanel) else ():
                with Image.open(directory / name / picture.file) as image:
                    assert max(image.size) <= 256
    titles = [panel.title for panel in load_panels(directory / "retrieval")]
    assert "Captions that find their image best (diva)" in titles
    assert "Captions that miss their image (diva)" in titles


def test_the_same_evaluation_again_is_equal_bit_for_bit(
    everything: tuple[Path, dict[str, Report]], tmp_path: Path
) -> None:
    directory, reports = everything
    evaluate_all(tmp_path)
    for name in reports:
        files = sorted(p.relative_to(directory) for p in (directory / name).rglob("*") if p.is_file())
        assert len(files) > 4
        for file in files:
            assert (directory / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_probe_takes_a_vision_encoder_with_timms_own_pooled_features(tmp_path: Path) -> None:
    from vfm.eval import load_encoder

    checkpoint = save_vision(build_vision("vit_pico_patch8_32", seed=0), tmp_path / "vit")
    pictures = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 50, 3), np.uint8)) for n in range(3)]
    ours = load_encoder(checkpoint, torch.device("cpu")).encode_images(pictures, 2)
    peer = timm.create_model(f"local-dir:{checkpoint.path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(peer))
    with torch.no_grad():
        features = peer.forward_head(
            peer.forward_features(torch.stack([transform(p) for p in pictures])), pre_logits=True
        )
    torch.testing.assert_close(ours, torch.nn.functional.normalize(features, dim=-1), atol=1e-5, rtol=0)
    run = run_in(
        tmp_path / "out", vit=checkpoint, train=labeled(tmp_path / "train", 70), val=labeled(tmp_path / "val", 21)
    )
    report = Knn(kind="eval.knn", name="k", models=["vit"], train="train", data="val").run(run.ctx)
    assert metric(report, "knn_acc1", "vit") > 0.9  # plain colours: even random features separate them


def test_stages_are_known_without_torch() -> None:
    code = "import sys; from vfm.interfaces import import_stages; import_stages(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len({stage.kind_name() for stage in EVALUATIONS}) == 18


@pytest.mark.parametrize("evaluation", [stage for stage in EVALUATIONS if issubclass(stage, Evaluation)])
def test_models_of_one_name_are_refused(evaluation: type[Evaluation]) -> None:
    stage = evaluation.model_construct(
        kind=evaluation.kind_name(), name="e", models=[Ref("one/clip"), Ref("two/clip/")]
    )
    with pytest.raises(UserError, match="models: 'clip' is named more than once"):
        stage.preflight(Preflight({}, {}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat"], "expected two or more classes, got 1"),
        (["cat", " "], "class 1 has an empty name"),
        (["cat", "dog", "cat"], "classes 0 and 2 are both named 'cat'"),
    ],
)
def test_empty_and_repeated_class_names_are_refused_before_the_run(
    names: list[str], message: str, tmp_path: Path
) -> None:
    LabeledDataset.create(tmp_path, num_samples=1, class_names=names)
    stage = ZeroShot(kind="eval.zero_shot", name="z", models=["clip"], data="val")
    with pytest.raises(UserError, match=message):
        stage.preflight(Preflight({}, {"val": tmp_path}))


def test_missing_language_is_refused_with_a_hint(tmp_path: Path) -> None:
    stage = Retrieval(kind="eval.retrieval", name="r", models=["clip"], data="pool", language="fr")
    with pytest.raises(UserError, match="pool has no captions in 'fr'; known: de, en"):
        stage.preflight(Preflight({}, {"pool": pool(tmp_path).path}))


def test_retrieval_uses_the_configured_language(tmp_path: Path) -> None:
    run = run_in(tmp_path / "out", pool=pool(tmp_path / "data"), clip=tiny_clip(tmp_path / "clip", 0))
    Retrieval(kind="eval.retrieval", name="r", models=["clip"], data="pool", language="de", recall_k=[1]).run(run.ctx)
    texts = pq.read_table(tmp_path / "out/predictions/image_retrieval.parquet")["text"].to_pylist()
    assert texts == [f"{name} auf deutsch" for name in NAMES]


def test_probe_refuses_sets_of_different_classes(tmp_path: Path) -> None:
    train, val = labeled(tmp_path / "train", classes=5), labeled(tmp_path / "val")
    stage = Knn(kind="eval.knn", name="k", models=["clip"], train="train", data="val")
    with pytest.raises(UserError, match=r"got '\(none\)' in train where val has 'magenta'"):
        stage.preflight(Preflight({}, {"train": train.path, "val": val.path}))


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        (ZeroShot, {"kind": "eval.zero_shot", "templates": ["a photo"]}, "for the class name"),
        (Retrieval, {"kind": "eval.retrieval", "recall_k": [0]}, "k must be at least 1, got 0"),
        (LinearProbe, {"kind": "eval.linear_probe", "train": "t", "penalties": [0.0]}, "greater than 0"),
    ],
)
def test_wrong_settings_are_refused(stage: type, fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        stage(**{"name": "x", "models": ["clip"], "data": "val", **fields})
