"""Zero-shot, retrieval and caption choice equal clip_benchmark's own code, run here on the same model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clip_benchmark.datasets.builder import image_captions_collate_fn
from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from eval_world import NAMES, labeled, pairs, pool, run_in, sugarcrepe, tiny_clip
from vfm.data import open_dataset
from vfm.data.choices.choices import load_choices
from vfm.data.labeled.tags import TAGS_FILE, read_tags, write_tags
from vfm.eval.choices.choices import score_choices
from vfm.eval.classify.zero_shot import Prompts, score_zero_shot
from vfm.eval.retrieval.retrieval import score_retrieval
from vfm.interfaces import Artifact, Evaluated, LabeledDataset, TaggedImages
from vfm.models import load_clip

TEMPLATES = ["a {c} picture", "it is {c} .", "{c}"]
WORDS = ["red on dark", "something green", "blue", "a yellow thing", "cyan sky", "magenta", "white snow"]


class Items(Dataset[Any]):
    """Input of clip_benchmark: pairs of an image and its label, labels or texts, and the class names."""

    def __init__(self, items: list[tuple[Any, Any]], classes: list[str]) -> None:
        self.items, self.classes = items, classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        return self.items[place]


class Peer:
    """The same checkpoint loaded by open_clip, with its own transform and tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    def seen(self, data: bytes) -> torch.Tensor:
        return self.preprocess(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_clip(tmp_path_factory.mktemp("clip"), seed=1)


def loader(items: list[tuple[Any, Any]], **options: Any) -> DataLoader[Any]:
    return DataLoader(Items(items, NAMES), batch_size=5, **options)


def values(found: Evaluated) -> dict[str, float]:
    return {score.metric: score.value for score in found.results["model"].scores}


def assert_equal(ours: dict[str, float], theirs: dict[str, float], names: set[str]) -> None:
    assert names <= ours.keys() & theirs.keys()
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name


def test_zero_shot_classification(tmp_path: Path, checkpoint: Artifact) -> None:
    data = labeled(tmp_path / "data", 70)
    peer = Peer(checkpoint.path)
    items = [(peer.seen(sample.image), sample.label) for sample in open_dataset(data)]
    theirs = zeroshot_classification.evaluate(
        peer.model, loader(items), peer.tokenizer, WORDS, TEMPLATES, "cpu", amp=False
    )
    prompts = Prompts(templates=TEMPLATES, class_names=WORDS)
    ours = score_zero_shot(run_in(tmp_path / "run").ctx, {"model": load_clip(checkpoint.path)}, data, prompts=prompts)
    assert_equal(values(ours), theirs, {"acc1", "acc5", "mean_per_class_recall"})
    assert 0 < theirs["acc1"] < 1  # otherwise the comparison would be empty


def test_several_labels_per_image(tmp_path: Path, checkpoint: Artifact) -> None:
    data = labeled(tmp_path / "data", 30)
    tags = tagged(tmp_path / "tags", data)
    peer, marks = Peer(checkpoint.path), read_tags(tags)
    items = [(peer.seen(s.image), torch.from_numpy(row)) for s, row in zip(open_dataset(data), marks, strict=True)]
    theirs = zeroshot_classification.evaluate(
        peer.model, loader(items), peer.tokenizer, WORDS, TEMPLATES, "cpu", amp=False
    )
    prompts = Prompts(templates=TEMPLATES, class_names=WORDS)
    ours = score_zero_shot(run_in(tmp_path / "run").ctx, {"model": load_clip(checkpoint.path)}, tags, prompts=prompts)
    assert_equal(values(ours), theirs, {"mean_average_precision"})


def tagged(folder: Path, data: LabeledDataset) -> TaggedImages:
    """Create two labels per image."""
    folder.mkdir()
    rows = [sorted({n % 7, (2 * n + 3) % 7}) for n in range(data.num_samples)]
    write_tags(folder / TAGS_FILE, rows)
    counts = [sum(label in row for row in rows) for label in range(7)]
    return TaggedImages.create(folder, data=str(data.path), num_samples=len(rows), class_names=NAMES, num_images=counts)


@pytest.mark.parametrize("captions", [1, 3])
def test_retrieval_both_ways(tmp_path: Path, checkpoint: Artifact, captions: int) -> None:
    data, recall_k = pool(tmp_path / "data", captions=captions), [1, 2, 5]
    peer = Peer(checkpoint.path)
    items = [(peer.seen(sample.image), sample.texts["en"]) for sample in open_dataset(data)]
    theirs = zeroshot_retrieval.evaluate(
        peer.model,
        loader(items, collate_fn=image_captions_collate_fn),
        peer.tokenizer,
        "cpu",
        amp=False,
        recall_k_list=recall_k,
    )
    model = {"model": load_clip(checkpoint.path)}
    ours = score_retrieval(run_in(tmp_path / "run").ctx, model, data, recall_k=recall_k)
    assert_equal(values(ours), theirs, {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in recall_k})


@pytest.mark.parametrize("make", [pairs, sugarcrepe], ids=["winoground", "sugarcrepe"])
def test_caption_choice(tmp_path: Path, checkpoint: Artifact, make: Any) -> None:
    data, peer = make(tmp_path / "data"), Peer(checkpoint.path)
    items = []
    for item in load_choices(data):
        order = np.argsort(np.where(np.array(item.truth) < 0, 99, item.truth))  # theirs: text i belongs to image i
        pictures = torch.stack([peer.seen(image) for image in item.images])
        items.append((pictures if len(pictures) > 1 else pictures[0], [item.statements[place] for place in order]))
    theirs = image_caption_selection.evaluate(
        peer.model, loader(items, collate_fn=image_captions_collate_fn), peer.tokenizer, "cpu", amp=False
    )
    ours = score_choices(run_in(tmp_path / "run").ctx, {"model": load_clip(checkpoint.path)}, data, prompt="")
    names = {"text_acc", "image_acc", "acc"} if make is pairs else {"text_acc"}
    assert_equal(values(ours), theirs, names)
