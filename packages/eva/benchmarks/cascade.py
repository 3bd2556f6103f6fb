"""Compare training and inference of the cascade's heads with detectron2's, on the same weights, maps and boxes.

detectron2 is no dependency. Put a checkout, fvcore, iopath, omegaconf and cloudpickle on PYTHONPATH. Its compiled parts
are not used. Without detectron2 only our times are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import report

from vfm_eva.dense.detect.cascade import CascadeHeads
from vfm_eva.dense.detect.eva_layout import head_name
from vfm_eva.dense.detect.objects import TargetObjects
from vfm_eva.dense.detect.settings import Cascade, Selection

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import detectron2_peer as peer


def contestants(mode: str, *, with_peer: bool) -> dict[str, dict[str, Callable[[], Any]]]:
    """Build the training step and the inference step of each implementation."""
    maps, proposals, truths = peer.inputs()
    settings = Cascade(
        ious=list(peer.IOUS), num_rois=peer.NUM_ROIS, positive_fraction=1.0, num_convs=2,
        hidden=peer.HIDDEN, mask_convs=2, loss=mode,
    )  # fmt: skip
    heads = CascadeHeads(peer.CHANNELS, peer.CLASSES, settings, peer.STRIDES)
    if with_peer:
        theirs = peer.build(mode)
        shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
        drawn = peer.weights(shapes)
        theirs.load_state_dict(drawn)
        heads.load_state_dict(
            {head_name(f"roi_heads.{name}").removeprefix("cascade."): value for name, value in drawn.items()}
        )
    objects = [TargetObjects(one["labels"], one["boxes"], one["masks"]) for one in truths]
    sizes, selection = [(peer.SIDE, peer.SIDE)] * 2, Selection(score=peer.SCORE, max_detections=peer.MAX_DETECTIONS)

    def step() -> float:
        inputs = [one.detach().requires_grad_() for one in maps]
        loss = torch.stack(list(heads.train().losses(inputs, proposals, objects, sizes).values())).sum()
        loss.backward()
        return loss.item()

    def test() -> None:
        with torch.no_grad():
            heads.eval().detect(maps, proposals, sizes, selection)

    found: dict[str, dict[str, Callable[[], Any]]] = {"vfm": {"step": step, "test": test}}
    if with_peer:

        def their_step() -> float:
            inputs = [one.detach().requires_grad_() for one in maps]
            loss = torch.stack(list(peer.train(theirs, (inputs, proposals, truths)).values())).sum()
            loss.backward()
            return loss.item()

        found["detectron2"] = {"step": their_step, "test": lambda: peer.detect(theirs, (maps, proposals, truths))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny heads, one round; the numbers mean nothing")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 1
    if not options.quick:
        peer.CHANNELS, peer.HIDDEN, peer.CLASSES, rounds = 64, 256, 80, 7
    with_peer = importlib.util.find_spec("detectron2") is not None
    result: dict[str, Any] = {"machine": f"{platform.machine()} CPU, one thread, torch {torch.__version__}"}
    for mode in ("softmax", "sigmoid"):
        runs = contestants(mode, with_peer=with_peer)
        losses = {name: run["step"]() for name, run in runs.items()}  # this is the warm-up too
        assert max(losses.values()) - min(losses.values()) < 1e-4 * max(losses.values())
        spent: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, run in runs.items():
                for what in ("step", "test"):
                    start = time.process_time()
                    run[what]()
                    spent.setdefault(f"{name} {what}", []).append(1000 * (time.process_time() - start))
        result[mode] = {name: statistics.median(times) for name, times in spent.items()}
    lines = [
        f"{result['machine']}; {peer.CHANNELS} channels, {peer.CLASSES} classes, two images with 32 and 36 boxes",
        "",
        "| classes' loss | contestant | training step, ms | test, ms |",
        "|---|---|---|---|",
    ]
    for mode in ("softmax", "sigmoid"):
        for name in ("vfm", "detectron2") if with_peer else ("vfm",):
            times = result[mode]
            lines.append(f"| {mode} | {name} | {times[f'{name} step']:.0f} | {times[f'{name} test']:.0f} |")
    report(result, "\n".join(lines), options.out)


if __name__ == "__main__":
    main()
