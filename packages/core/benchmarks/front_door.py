"""Count the files of other people that reach a training, or for a model an evaluation, in two commands.

    python packages/core/benchmarks/front_door.py [--only WORD] [--peers SITE_PACKAGES] [--json FILE]

The first command is `vfm doctor PATH`, the second the one that it prints. The files are written by their libraries
where these are installed, here or in `--peers`, and otherwise in their documented layout. Of the second command only
the size is changed: a pretrained model is replaced by a small one with random weights, because nothing is downloaded,
and training takes two steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SMALL_CLIP, SMALL_ENCODER, SMALL_STUDENT = "ViT-Pico-8-32,none", "vit_pico_patch8_32,none", "vit_pico_patch8_32"
SHORT = ["steps=2", "global_batch_size=8", "micro_batch_size=8", "schedule.warmup_steps=0"]
ENCODER = ["--set", "encoder.source=eva02_pico_patch8_64", "--set", "encoder.pretrained=none"]
HEADS = (
    "{image_size: 64, channels: 32, masks: false, proposals: {num_convs: 1, num_samples: 64, before_nms: 100,"
    " num_proposals: 32}, cascade: {num_rois: 16, num_convs: 0, hidden: 128}}"
)


def settings(stage: str, fields: Sequence[str]) -> list[str]:
    """Write fields of a stage as options of `vfm run`."""
    return [word for field in fields for word in ("--set", f"{stage}.{field}")]


SIZES = {
    "finetune": ["--steps", "2", "--batch-size", "8"],
    "distill": ["--steps", "2", "--batch-size", "8"],
    "classify": ["--epochs", "1", "--batch-size", "8"],
    "eval": ["--tasks", "knn"],
    "boxes": [*ENCODER, *settings("detector", [*SHORT, f"detector={HEADS}", "patch_size=null"])],
    "actions": [*ENCODER, *settings("classifier", [*SHORT, "clip={num_frames: 2}"])],
    "questions": [
        "--set", "tower.source=ViT-Pico-8-32", "--set", "tower.pretrained=none", *settings("answers", SHORT)
    ],
}  # fmt: skip


def small(words: Sequence[str], digits: Path) -> list[str]:
    """Replace models that would be downloaded, and shorten the training."""
    words = list(words)
    replaced = {
        "ViT-B-32,openai": SMALL_CLIP,
        "vit_small_patch16_224.augreg_in21k_ft_in1k": SMALL_ENCODER,
        "vit_base_patch14_dinov2.lvd142m": SMALL_ENCODER,
        "vit_small_patch16_224": SMALL_STUDENT,
        "digits": str(digits),
    }
    command = words[1] if words[0] == "run" else words[0]
    return [*(replaced.get(word, word) for word in words), *SIZES.get(command, [])]


def try_file(write: Callable[[Path], Path], folder: Path, digits: Path) -> tuple[str, str]:
    """Run both commands. The result is the second command, and why it failed; empty if it did not."""
    from cli_world import run_here

    path = write(folder)
    os.chdir(folder)
    looked = run_here("doctor", path)
    lines = [line.removeprefix("next: ") for line in looked.out.splitlines() if line.startswith("next: ")]
    if not lines:
        return "", (looked.out + looked.err).strip().splitlines()[-1]
    done = run_here(*small(shlex.split(lines[0])[1:], digits))
    shown = lines[0].replace(f"{folder}/", "")
    return shown, "" if done.code == 0 else (done.err.strip().splitlines() or ["no message"])[-1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="files whose name contains this word")
    parser.add_argument("--peers", default="", help="site-packages with img2dataset and datasets")
    parser.add_argument("--json", default="", help="file for the results")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    from peer_annotations import ANNOTATIONS
    from peer_files import DATA, class_folders
    from peer_models import MODELS

    rows = []
    with tempfile.TemporaryDirectory() as root:
        digits = class_folders(Path(root), "train", "val")
        for number, (name, write) in enumerate({**DATA, **ANNOTATIONS, **MODELS}.items()):
            if arguments.only not in name:
                continue
            folder = Path(root) / str(number)
            folder.mkdir()
            started = time.perf_counter()
            try:
                command, reason = try_file(write, folder, digits)
            except Exception as error:
                traceback.print_exc()
                command, reason = "", repr(error)
            seconds = time.perf_counter() - started
            reason = reason.replace(f"{folder}/", "")
            rows.append({"file": name, "command": command, "reason": reason, "seconds": round(seconds, 1)})
            print(f"| {name} | {'yes' if not reason else 'no'} | `{command}` | {reason[:160]} |", flush=True)
    reached = sum(not row["reason"] for row in rows)
    print(f"{reached} of {len(rows)} reach a training or an evaluation in two commands")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
