"""Images of their own aspect ratio in rows, and in a padded batch with a mask: equal losses, tokens, memory and time.

    python packages/eva/benchmarks/padded.py --data PHOTOS.tar [--out packages/eva/benchmarks/results/padded]

The padded twin takes each image through timm's own patch embedding, positions and blocks, with its tokens filled up to
the longest. Tokens are counted for all images of the tar, memory and time for the first ones.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench import clock, report
from PIL import Image
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vfm.data import Batch, SampleDraw
from vfm.models import build_clip, build_vision
from vfm_eva.pretrain.naflex.images import MakeStrips, NativeCrop, SampleStrips, StripOf
from vfm_eva.pretrain.naflex.packing import pack_rows
from vfm_eva.pretrain.naflex.rows import RowInputs, Rows
from vfm_eva.pretrain.objective import Objective
from vfm_eva.pretrain.parts import BlockMask
from vfm_eva.pretrain.row_task import RowTask
from vfm_eva.targets.teacher import Teacher
from vfm_kernels import masked_cosine_loss

STUDENT = "eva02_tiny_patch14_224"
PATCH, SEQ_LEN, BUDGET, BATCH = 14, 256, 4096, 128
CROPS = {
    "whole images": NativeCrop(PATCH, (SEQ_LEN,), None, 0.5),
    "crops of 20 to 100 % of the area": NativeCrop(PATCH, (SEQ_LEN,), (0.2, 1.0), 0.5),
    "crops, at most 64, 128 or 256 patches": NativeCrop(PATCH, (64, 128, SEQ_LEN), (0.2, 1.0), 0.5),
}


def padded_loss(task: RowTask, inputs: RowInputs, teacher_features: Tensor) -> Tensor:
    """Compute the cosine loss of a task with one teacher in a padded batch.

    Args:
        task: The task.
        inputs: The row.
        teacher_features: Of all patches of the row, (1, T, Tw).
    """
    student: Any = task.student
    prefix = student.num_prefix_tokens
    strip = inputs.strips[0]
    assert strip is not None
    lengths = [rows * columns for rows, columns in inputs.grids]
    size = strip.shape[2]
    tokens, tables = [], []
    masks = inputs.bool_mask[0].split(lengths)
    strips = task.preprocess.pixels(strip)[0].split([length * size for length in lengths], dim=2)
    for (rows, columns), pixels, mask in zip(inputs.grids, strips, masks, strict=True):
        patches = pixels.view(3, size, rows, columns, size).transpose(1, 2).reshape(1, 3, rows * size, columns * size)
        embedded = student.patch_embed(patches)
        if task.is_masked:
            embedded = torch.where(mask.view(1, rows, columns, 1), task.mask_token, embedded)
        placed = student._pos_embed(embedded)
        tokens.append(placed[0][0] if isinstance(placed, tuple) else placed[0])
        if isinstance(placed, tuple) and placed[1] is not None:
            tables.append(placed[1])
    x = student.norm_pre(nn.utils.rnn.pad_sequence(tokens, batch_first=True))
    ends = torch.tensor([len(image) for image in tokens])
    present = torch.arange(x.shape[1]) < ends[:, None]
    arguments: dict[str, Tensor] = {"attn_mask": present[:, None, None, :]}
    if tables:
        rope = nn.utils.rnn.pad_sequence(tables, batch_first=True)  # (B, N, 2 D)
        arguments["rope"] = rope[:, None]
    for block in student.blocks:
        x = block(x, **arguments)
    whole = student.fc_norm(student.norm(x))
    row = torch.cat([image[prefix:end] for image, end in zip(whole, ends.tolist(), strict=True)])
    prediction = task.objectives[0].head(row[inputs.index])
    return masked_cosine_loss(prediction, teacher_features[0, inputs.index])


def packed_loss(task: RowTask, inputs: RowInputs, teacher_features: Tensor) -> Tensor:
    """Compute the same loss without padding."""
    prediction = task.objectives[0].head(task.row_tokens(inputs)[0, inputs.index])
    return masked_cosine_loss(prediction, teacher_features[0, inputs.index])


def images_of(tar: Path | None) -> Iterator[Image.Image]:
    """Yield the images of a tar, or random ones of a photo's sides."""
    if tar is None:
        draw = random.Random(0)
        for _ in range(8):
            yield Image.effect_noise((draw.choice([320, 375, 500]), draw.choice([333, 500])), 50).convert("RGB")
        return
    with tarfile.open(tar) as members:
        for member in members:
            if member.name.endswith((".jpg", ".jpeg")):
                yield Image.open(members.extractfile(member)).convert("RGB")  # type: ignore[arg-type]


def strips_of(images: list[Image.Image], crop: NativeCrop) -> Batch[SampleStrips]:
    strip = StripOf(PATCH, "bicubic")
    make = MakeStrips(crop, strip, (strip,))
    draws = [SampleDraw.of(0, 0, number) for number in range(len(images))]
    uses = [make.use(image, draw) for image, draw in zip(images, draws, strict=True)]
    return Batch(make.join(uses, draws), [str(number) for number in range(len(images))])


def counted_tokens(images: list[Image.Image], crop: NativeCrop) -> dict[str, float]:
    """Count the tokens of batches of images, with a class token each."""
    lengths, padded, rows = [], 0, 0
    for number, image in enumerate(images):
        grid = crop(image, SampleDraw.of(0, 0, number).seed)[1]
        lengths.append(1 + grid[0] * grid[1])
    for start in range(0, len(lengths), BATCH):
        batch = lengths[start : start + BATCH]
        padded += max(batch) * len(batch)
        rows += len(pack_rows(batch, BUDGET))
    total = sum(lengths)
    return {
        "images": len(lengths),
        "packed": total,
        "padded to the longest": padded,
        "squares": len(lengths) * (1 + SEQ_LEN),
        "rows": rows,
        "filled": total / (rows * BUDGET),
    }


def kept_bytes(loss: Callable[[], Tensor], weights: set[int]) -> int:
    """Count the bytes that autograd keeps for a backward pass, without weights."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss()
    total = sum(storages.values())
    del result
    return total


def measured(images: list[Image.Image], crop: NativeCrop, rounds: int) -> dict[str, float]:
    """Compare both forms on one row of these images."""
    clip = build_clip("ViT-Pico-8-32", seed=0)
    student = build_vision(STUDENT, num_classes=0, seed=0, dynamic_img_size=True, global_pool="avg")
    task = RowTask(student, [Objective(Teacher(clip, clip.preprocess))])
    (batch,) = Rows(BlockMask().ratio, BlockMask().build, 1, len(images) * (1 + SEQ_LEN)).pack(
        [strips_of(images, crop)]
    )
    inputs = batch.inputs
    target = torch.randn(1, inputs.bool_mask.shape[1], task.teacher.width, generator=torch.Generator().manual_seed(0))
    forms = {"packed": packed_loss, "padded": padded_loss}
    weights = {parameter.untyped_storage().data_ptr() for parameter in task.parameters()}
    result: dict[str, float] = {"images": len(images)}
    losses, gradients, seconds = {}, {}, {name: [] for name in forms}
    for name, form in forms.items():
        result[f"{name}, bytes"] = kept_bytes(lambda form=form: form(task, inputs, target), weights)
    for _ in range(rounds):
        for name, form in forms.items():
            task.zero_grad()
            start = clock()
            loss = form(task, inputs, target)
            loss.backward()
            seconds[name].append(clock() - start)
            losses[name] = loss.item()
            gradients[name] = torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])
    apart = (gradients["packed"] - gradients["padded"]).norm() / gradients["padded"].norm()
    result |= {f"{name}, seconds": statistics.median(times) for name, times in seconds.items()}
    return result | {"losses apart": abs(losses["packed"] - losses["padded"]), "gradients apart": apart.item()}


def tables(result: dict[str, Any]) -> str:
    """Format the tables as Markdown."""
    lines = [f"{result['machine']}; {result['models']}", "", "Tokens, with a class token for each image:", ""]
    lines += [
        "| | images | packed | padded to the longest | squares of the same budget | rows | filled |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["tokens"].items():
        total = row["packed"]
        cells = [f"{row[column]:,} ({row[column] / total - 1:+.0%})" for column in ("padded to the longest", "squares")]
        lines.append(
            f"| {name} | {row['images']:,} | {total:,} | {' | '.join(cells)} | {row['rows']} | {row['filled']:.0%} |"
        )
    lines += ["", "A row, forward and backward, with equal losses:", ""]
    lines += [
        "| | images | activations packed | padded | seconds packed | padded | losses apart | gradients apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["measured"].items():
        memory = [f"{row[f'{form}, bytes'] / 2**20:.0f} MiB" for form in ("packed", "padded")]
        times = [f"{row[f'{form}, seconds']:.2f}" for form in ("packed", "padded")]
        apart = [f"{row[column]:.0e}" for column in ("losses apart", "gradients apart")]
        lines.append(f"| {name} | {row['images']} | " + " | ".join([*memory, *times, *apart]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="tar of images; default: a few random images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", type=int, default=16, help="images of the measured row")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = list(images_of(options.data))
    result = {
        "machine": f"{platform.machine()} CPU, one thread, medians of {options.rounds} rounds",
        "models": f"student {STUDENT}, at most {SEQ_LEN} patches, rows of {BUDGET} tokens, steps of {BATCH} images",
        "tokens": {name: counted_tokens(images, crop) for name, crop in CROPS.items()},
        "measured": {name: measured(images[: options.row], crop, options.rounds) for name, crop in CROPS.items()},
    }
    report(result, tables(result), options.out)


if __name__ == "__main__":
    main()
