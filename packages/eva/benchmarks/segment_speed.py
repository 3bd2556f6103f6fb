"""Compare a training step of queries with transformers' EoMT, and an encoder with windows to global attention.

Images and masks are drawn, or come from a folder of `data.annotated` with masks: `--data coco128seg` measures the
larger step alone.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from bench import report
from eomt_peer import Sizes, our_model, their_model
from torch import Tensor
from torch.nn import functional as F

from vfm.data import to_tensor
from vfm.data.annotated import AnnotatedSource
from vfm.data.annotated.stages import Annotated
from vfm.models import build_vision
from vfm.plugin import AnnotatedImages, Context
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.segment.matching import LossWeights
from vfm_eva.dense.segment.set_loss import PointSettings, Totals, set_loss

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
OBJECTS = 5
TINY = Sizes(64, 8, 64, 4, 2, 20, 13, 2, 12544)
CASES = {  # name: (sizes, images)
    "pico, 64 px": (TINY, 4),
    "S, 224 px": (Sizes(224, 16, 384, 12, 6, 100, 150, 4, 12544), 2),
}
QUICK = {"pico, 64 px": (Sizes(32, 8, 32, 2, 2, 5, 3, 1, 64), 2)}
# Six of EVA-02 L's 24 blocks, of which every sixth attends to the whole map: 4,096 tokens at 1024 pixels.
LARGE = {"architecture": "eva02_large_patch14_224", "depth": 6, "patch_size": 16, "img_size": 1024, "num_classes": 0}
SMALL = {"architecture": "eva02_pico_patch8_32", "depth": 6, "img_size": 64, "num_classes": 0}


def clock() -> float:
    """Read a clock in seconds: wall-clock time on a GPU after it has finished, process time on a CPU."""
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def alternately(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Measure the median seconds of each function, called alternately in every round, without the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, call in contestants.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


Sample = tuple[Tensor, list[Tensor], list[Tensor]]


def drawn(sizes: Sizes, batch: int) -> Sample:
    """Draw random images, (B, 3, S, S), and the labels and square masks of their objects."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(batch, 3, sizes.side, sizes.side, generator=generator)
    labels = [torch.randint(sizes.classes, (OBJECTS,), generator=generator) for _ in range(batch)]
    corners = torch.rand(batch, OBJECTS, 2, generator=generator) * sizes.side / 2
    line = torch.arange(sizes.side)
    return pixels, labels, [_squares(one, line, sizes.side // 3) for one in corners]


def read(folder: Path, sizes: Sizes, batch: int) -> Sample:
    """Read the first images with objects of a dataset, squashed to the model's size, as `drawn` draws them."""
    with tempfile.TemporaryDirectory() as name:
        Annotated(name="data", path=str(folder)).run(Context("data", Path(name), Path(name), {}))
        source = AnnotatedSource(AnnotatedImages.load(name))
        numbers = [number for number in range(len(source)) if len(source.objects(number))][:batch]
        side = (sizes.side, sizes.side)
        pixels = torch.stack([to_tensor(source.image(number).resize(side)).float() / 255 - 0.5 for number in numbers])
        labels = [torch.tensor(source.objects(number).labels, dtype=torch.int64) for number in numbers]
        masks = [F.interpolate(torch.tensor(source.masks(number))[None].float(), size=side)[0] for number in numbers]
    return pixels, labels, masks


def steps(sizes: Sizes, sample: Sample, rounds: int) -> dict[str, float]:
    """Measure a training step: forward with masked attention for all queries, matching, loss, backward, AdamW."""
    theirs = their_model(sizes, std=0.05).to(DEVICE).train()
    ours = our_model(theirs, sizes).to(DEVICE).train()
    theirs.attn_mask_probs.fill_(1.0)
    pixels = sample[0].to(DEVICE)
    labels, masks = ([part.to(DEVICE) for part in parts] for parts in sample[1:])
    totals = Totals.of(torch.tensor([len(part) for part in labels], device=DEVICE), sizes.queries, 0.1)
    updates = {name: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True) for name, model in
               (("ours", ours), ("theirs", theirs))}  # fmt: skip

    def our_step() -> None:
        predictions = ours(pixels, [1.0] * sizes.blocks)
        losses = set_loss(
            predictions, labels, masks, totals, LossWeights(2.0, 5.0, 5.0, 0.1), PointSettings(sizes.points)
        )
        _update(updates["ours"], torch.stack(list(losses.values())).sum())

    def their_step() -> None:
        _update(updates["theirs"], theirs(pixels, mask_labels=masks, class_labels=labels).loss)

    found = alternately({"vfm": our_step, "transformers": their_step}, rounds)
    return {**found, "ratio": found["transformers"] / found["vfm"]}


def windows(model: Mapping[str, Any], window: int, rounds: int) -> dict[str, float]:
    """Measure the forward pass of an encoder with windows and without."""
    encoder = build_vision(model, seed=0).to(DEVICE).eval()
    side = int(model["img_size"])
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with_windows = DenseEncoder(encoder, window=window, global_blocks=[-1])
    without = DenseEncoder(encoder, prefix=False)
    with torch.inference_mode():
        found = alternately({"windows": lambda: with_windows(pixels), "global": lambda: without(pixels)}, rounds)
    return {**found, "ratio": found["global"] / found["windows"]}


def _squares(corners: Tensor, line: Tensor, side: int) -> Tensor:
    inside = [(line >= corner) & (line < corner + side) for corner in corners.flatten()]
    rows, columns = torch.stack(inside[::2]), torch.stack(inside[1::2])
    return (rows[:, :, None] & columns[:, None]).float()


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def table(result: Mapping[str, Any]) -> str:
    """Format the result as Markdown."""
    lines = [result["machine"], "", "| training step | vfm, s | transformers, s | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['vfm']:.3f} | {row['transformers']:.3f} | {row['ratio']:.2f} |"
        for name, row in result["steps"].items()
    ]
    if not result["windows"]:
        return "\n".join(lines)
    lines += ["", "| forward pass | windows, s | global, s | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['windows']:.2f} | {row['global']:.2f} | {row['ratio']:.2f} |"
        for name, row in result["windows"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; the numbers mean nothing")
    parser.add_argument("--data", type=Path, help="folder of annotated images with masks; default: drawn images")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not CUDA:
        torch.set_num_threads(1)
    rounds = 2 if options.quick else 5
    large = ("six blocks, 64 px, windows of 4", SMALL, 4) if options.quick else (
        "six of EVA-02 L's blocks, 1024 px, windows of 16, one global", LARGE, 16
    )  # fmt: skip
    where = torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU, one thread, process times"
    cases = QUICK if options.quick else CASES
    if options.data:
        cases = {"S, 224 px": CASES["S, 224 px"]}
    measured = {}
    for name, (sizes, batch) in cases.items():
        sample = read(options.data, sizes, batch) if options.data else drawn(sizes, batch)
        measured[name] = steps(sizes, sample, rounds)
    encoders = {} if options.data else {large[0]: windows(large[1], large[2], rounds if CUDA else 2)}
    result = {
        "machine": f"{where}; fp32, medians of {rounds} alternate rounds, torch {torch.__version__}",
        "steps": measured,
        "windows": encoders,
    }
    report(result, table(result), options.out)


if __name__ == "__main__":
    main()
