"""Compare evaluation with clip_benchmark: python packages/clip/benchmarks/evaluation.py

Both use the same model, tars and prompts, and are timed from reading to scores. vfm's stages also compute intervals,
hashes and predictions. There are three tasks: zero-shot classification, zero-shot classification with four sets of
templates (which share the image features in vfm), and retrieval with five captions per image. Both run alternately in
one process, and the result has the scores of both. It takes minutes, with `--quick` seconds. The larger the vision
tower, the larger the share of its forward pass, which is the same for both.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from bench import WORDS, caption, context, in_turn, machine, options, photograph, ratio, write
from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

from vfm.data import write_tar
from vfm.data.labeled.stages import Labeled
from vfm.data.pairs.stages import Pairs
from vfm.eval import load_encoder
from vfm.eval.classify.stages import ZeroShot
from vfm.eval.retrieval.stages import Retrieval
from vfm.models import build_clip, save_clip
from vfm.plugin import Artifact, ClipCheckpoint
from vfm.storage.integrity import seal

BATCH, CLASSES = 64, [f"{colour} {thing}" for colour in WORDS[4:6] for thing in WORDS[8:18]]
WORDINGS = [
    [f"{start} {{}}{end}" for start in ("a photo of a", "a picture of the", "one") for end in ends]
    for ends in ((".", " outside.", " at night."), (", small", ", large"), ("!", " and more"), (" again",))
]
RECALL_K = [1, 5, 10]


def made_set(folder: Path, num_samples: int, side: int, *, captions: bool) -> Path:
    """Write a folder in CLIP_benchmark's format: each image with a class or five captions."""
    (folder / "test").mkdir(parents=True)

    def row(n: int) -> tuple[str, dict[str, bytes]]:
        label = "\n".join(caption(5 * n + c) for c in range(5)).encode() if captions else str(n % len(CLASSES)).encode()
        return f"{n:06d}", {"jpg": photograph(n, side), "txt" if captions else "cls": label}

    write_tar(folder / "test" / "0.tar", map(row, range(num_samples)))
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}")
    (folder / "dataset_type.txt").write_text("retrieval" if captions else "classification")
    return folder


class Peer:
    """clip_benchmark: open_clip's model, transform and tokenizer, its reader and metrics."""

    def __init__(self, checkpoint: ClipCheckpoint, device: str) -> None:
        self.device = device
        self.model, _, self.transform = open_clip.create_model_and_transforms(f"local-dir:{checkpoint.path}")
        self.model.eval().to(device)
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{checkpoint.path}")

    def loader(self, folder: Path, **how: Any) -> Any:
        """Build a loader of a WebDataset folder, as clip_benchmark's command does."""
        dataset = build_wds_dataset("made", self.transform, data_dir=str(folder))
        loader = torch.utils.data.DataLoader(dataset.batched(BATCH, **how), batch_size=None, num_workers=0)
        loader.dataset.classes = CLASSES
        return loader

    def classify(self, folder: Path, templates: list[str]) -> dict[str, float]:
        """Evaluate zero-shot classification."""
        spelled = [template.replace("{}", "{c}") for template in templates]
        return zeroshot_classification.evaluate(
            self.model, self.loader(folder), self.tokenizer, CLASSES, spelled, self.device, amp=False
        )

    def retrieve(self, folder: Path) -> dict[str, float]:
        """Evaluate image and text retrieval."""
        loader = self.loader(folder, collation_fn=image_captions_collate_fn)
        return zeroshot_retrieval.evaluate(
            self.model, loader, self.tokenizer, self.device, amp=False, recall_k_list=RECALL_K
        )


class Ours:
    """vfm's stages, with a loaded model."""

    def __init__(self, root: Path, checkpoint: ClipCheckpoint, device: str) -> None:
        self.root, self.rounds = root, itertools.count()
        self.encoder = load_encoder(checkpoint, torch.device(device))

    def index(self, stage: Any) -> Artifact:
        """Index a dataset as in a store, which may cache features."""
        made = stage.run(context(self.root / f"data{next(self.rounds)}"))
        (made.path / "manifest.json").write_bytes(seal({"files": {}}))
        return made

    def evaluate(self, data: Artifact, *stages: Any) -> list[dict[str, float]]:
        """Compute the scores of stages on a dataset, without cached image features."""
        self.encoder.features_key = f"round{next(self.rounds)}"
        return [self._scores(stage, data) for stage in stages]

    def _scores(self, stage: Any, data: Artifact) -> dict[str, float]:
        ctx = context(self.root / f"run{next(self.rounds)}", data=data)
        return stage.scores(ctx, self.encoder)


def zero_shot(templates: list[str]) -> ZeroShot:
    """Configure the stage with these templates."""
    return ZeroShot.model_validate(
        {"kind": "eval.zero_shot", "name": "z", "data": "data", "templates": templates, "micro_batch_size": BATCH}
    )


def measure(root: Path, model: str, *, quick: bool) -> dict[str, dict[str, float]]:
    """Measure the seconds of both for each task, their ratio, and the difference of their scores."""
    num_samples, rounds = (128, 1) if quick else (256, 3)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = save_clip(build_clip(model, seed=0), root / "clip")
    peer, ours = Peer(checkpoint, device), Ours(root, checkpoint, device)
    labeled = made_set(root / "labeled", num_samples, 128, captions=False)
    pairs = made_set(root / "pairs", num_samples, 128, captions=True)
    classes = ours.index(Labeled.model_validate({"name": "d", "path": str(labeled)}))
    pool = ours.index(Pairs.model_validate({"name": "d", "path": str(pairs)}))
    retrieval = Retrieval.model_validate(
        {"kind": "eval.retrieval", "name": "r", "data": "data", "recall_k": RECALL_K, "micro_batch_size": BATCH}
    )
    work: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "zero-shot": (
            lambda: ours.evaluate(classes, zero_shot(WORDINGS[0])),
            lambda: [peer.classify(labeled, WORDINGS[0])],
        ),
        "zero-shot, four wordings": (
            lambda: ours.evaluate(classes, *map(zero_shot, WORDINGS)),
            lambda: [peer.classify(labeled, wording) for wording in WORDINGS],
        ),
        "retrieval": (lambda: ours.evaluate(pool, retrieval), lambda: [peer.retrieve(pairs)]),
    }
    found = {}
    for name, (vfm, clip_benchmark) in work.items():
        apart = [
            abs(mine[metric] - theirs[metric])
            for mine, theirs in zip(vfm(), clip_benchmark(), strict=True)
            for metric in mine.keys() & theirs.keys()
        ]
        seconds = in_turn({"vfm": vfm, "clip_benchmark": clip_benchmark}, rounds)
        clock = "wall" if device == "cuda" else "cpu"
        one, other = seconds["vfm"], seconds["clip_benchmark"]
        found[name] = {
            "vfm, s": statistics.median(one[clock]),
            "clip_benchmark, s": statistics.median(other[clock]),
            "clip_benchmark / vfm": ratio(other[clock], one[clock]),
            "clip_benchmark / vfm, wall": ratio(other["wall"], one["wall"]),
            "scores compared": len(apart),
            "most apart": max(apart),
        }
    return found


def main() -> None:
    """Run the command."""
    parser = options(__doc__)
    parser.add_argument(
        "--model", nargs="+", default=["ViT-Mini-14-112", "ViT-Nano-8-32"], help="open_clip names; random weights"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for model in ["ViT-Nano-8-32"] if chosen.quick else chosen.model:
        with TemporaryDirectory() as folder:
            found[model] = measure(Path(folder), model, quick=chosen.quick)
    rows = [(model, task, row) for model, tasks in found.items() for task, row in tasks.items()]
    columns = list(rows[0][2])
    lines = ["| model | | " + " | ".join(columns) + " |", "|---|---" + "|---:" * len(columns) + "|"]
    lines += [
        f"| {model} | {task} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |" for model, task, row in rows
    ]
    write(chosen.out, "evaluation", {"machine": machine(), **found}, "\n".join([*lines, "", machine()]))


if __name__ == "__main__":
    main()
