"""Count time and memory of the recipes for Kinetics on tensors without contents. The recipes are not run.

    python packages/eva/benchmarks/video_cost.py [RECIPE ...] [--out packages/eva/benchmarks/results/video_cost]

Counted are matrix products and joint attention, forward and backward, and forward again where activations are
recomputed. Time assumes 8 GPUs that reach 40 % of 312 teraflops (A100, bf16), and excludes the reading of videos.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from counted import _by_block, _Kept
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm.models import build_vision
from vfm_eva.video.clips import VideoClips
from vfm_eva.video.model import VideoTransformer
from vfm_eva.video.stages import EvaVideo
from vfm_eva.video.task import VideoTask

RECIPES = {"eva_g_k722": 722, "eva_g_k400": 400, "eva_02_l_k400": 400}  # classes
GPUS, PEAK, SHARE = 8, 312e12, 0.4


def cost(recipe: str, num_classes: int) -> dict[str, float]:
    """Count the operations of a step and the bytes of a process."""
    source, config = _stage(recipe)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with torch.device("meta"):
        visual = build_vision(
            source.partition(".")[0], image_size=config.image_size, num_classes=num_classes, global_pool="avg"
        )
        model = VideoTransformer(visual, config.clip.num_frames, config.video, num_classes)
        task = VideoTask(model, config.clip, [str(n) for n in range(num_classes)])
    side, micro = int(config.image_size or 0), config.micro_batch_size or config.global_batch_size
    with FakeTensorMode(allow_non_fake_inputs=True):
        task = task.to_empty(device="cpu").train()
        clips = torch.zeros(micro, 1, config.clip.num_frames, 3, side, side, dtype=torch.uint8)
        inputs = VideoClips(clips, torch.zeros(micro, dtype=torch.long))
        precision, blocks = torch.autocast("cpu", dtype=torch.bfloat16), task.model.visual.blocks
        counter = FlopCounterMode(display=False)
        with counter, _Kept(task) as kept, _by_block(blocks, kept) as each, precision:
            task(inputs)
    # torch does not count attention on a CPU: add queries times keys and weights times values for all tokens of a clip.
    tokens = 1 + task.model.times * task.model.trunk.grid[0] * task.model.trunk.grid[1]
    attention = 4 * tokens**2 * task.model.trunk.width * len(blocks)
    forward = counter.get_total_flops() / micro + attention
    inside, entered = sum(block for block, _ in each), sum(before for _, before in each)
    trained = sum(parameter.nbytes for parameter in task.parameters() if parameter.requires_grad)
    recomputed = kept.bytes - inside + entered + max(block for block, _ in each)
    activations = recomputed if config.grad_checkpointing else kept.bytes
    step = forward * config.global_batch_size * (4 if config.grad_checkpointing else 3)
    return {
        "GMAC of a clip, forward": forward / 2e9,
        "petaflop of a step": step / 1e15,
        "steps": config.num_steps,
        "hours on 8 A100 at 40 %": step * config.num_steps / (GPUS * PEAK * SHARE) / 3600,
        "GiB, weights, gradients, AdamW": 4 * trained / 2**30,
        "GiB, activations of a micro-batch": activations / 2**30,
        "GiB, activations without checkpointing": kept.bytes / 2**30,
        "micro-batch": micro,
    }


def _stage(recipe: str) -> tuple[str, EvaVideo]:
    """Load the encoder's name and the training stage from a recipe."""
    known = stage_types(load_plugins())
    with TemporaryDirectory() as folder:
        sets = ["k400", "k600", "k700", "k400_val", "k600_val", "k700_val"]
        names = sets if recipe == "eva_g_k722" else ["train", "val"]
        found = load_recipe(recipe, known, [f"{name}.path={folder}" for name in names]).stages
    (config,) = [one for one in found if isinstance(one, EvaVideo)]
    (encoder,) = [one for one in found if one.name == "encoder"]
    return encoder.source, config  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows: dict[str, Any] = {name: cost(name, RECIPES[name]) for name in given.recipes}
    for name, row in rows.items():
        print(name, ", ".join(f"{key}: {value:,.1f}" for key, value in row.items()))
    if given.out:
        given.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        columns = list(next(iter(rows.values())))
        head = "No such training was run: `video_cost.py` counts on tensors without contents."
        lines = ["# Cost of the recipes for Kinetics, counted", "", head, "", f"| | {' | '.join(rows)} |"]
        lines.append("|---" * (len(rows) + 1) + "|")
        lines += [f"| {key} | " + " | ".join(f"{row[key]:,.1f}" for row in rows.values()) + " |" for key in columns]
        given.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
