"""Import tiny files and folders of open_clip, timm and EVA with random weights, and compare each with its library.

    python packages/core/benchmarks/import_zoo_files.py

Each is imported by its stage. It is equal, refused (also where the comparison finds a difference), or not compared,
where the library does not read it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import nn

from vfm.base import UserError
from vfm.interfaces import Context, Event
from vfm.models import build_clip, build_vision, save_clip, save_state_dict, save_vision
from vfm.models.interchange.eva_layouts import to_official
from vfm.models.stages import ImportClip, ImportVision
from vfm.models.weight_transfer import KeyReport

CLIP, EVA_CLIP, EVA = "ViT-Pico-8-32", "EVA02-Pico-8-32", "eva02_pico_patch8_32"
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}
TIMM = (
    "resnet10t", "mobilenetv3_small_050", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224", "test_vit", "test_convnext", "test_efficientnet",
    "test_resnet", "test_byobnet",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A model of the zoo: its family, and what writes it into a folder and returns the settings of its stage."""

    family: str
    name: str
    write: Callable[[str, Path], dict[str, Any]]


def randomised(model: nn.Module) -> nn.Module:
    """Draw all weights, norms and biases included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model.eval()


def timm_file(name: str, folder: Path) -> dict[str, Any]:
    """Save a classifier of timm as its train.py does."""
    model = randomised(timm.create_model(name, num_classes=5))
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, folder / "model.pth.tar")
    return {"source": name, "pretrained": str(folder / "model.pth.tar")}


def timm_folder(name: str, folder: Path) -> dict[str, Any]:
    """Save an encoder in timm's layout."""
    save_vision(randomised(timm.create_model(name, num_classes=3)), folder / "model")
    return {"source": str(folder / "model")}


def other_pixels(name: str, folder: Path) -> dict[str, Any]:
    """Save an encoder whose images are preprocessed as the name says: `bilinear 0.9 center`."""
    source = timm_folder("test_vit", folder)
    file = folder / "model/config.json"
    record = json.loads(file.read_text())
    interpolation, crop, mode = name.split()
    record["pretrained_cfg"] |= {"interpolation": interpolation, "crop_pct": float(crop), "crop_mode": mode}
    file.write_text(json.dumps(record))
    return source


def open_clip_folder(name: str, folder: Path) -> dict[str, Any]:
    """Save a CLIP model in open_clip's layout."""
    clip = build_clip(name, seed=0)
    randomised(clip.module)
    save_clip(clip, folder / "model")
    return {"source": str(folder / "model")}


def open_clip_file(name: str, folder: Path) -> dict[str, Any]:
    """Save a checkpoint as open_clip's training does, or its weights alone."""
    module = randomised(open_clip.create_model(name))
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in module.state_dict().items()}}, folder / "epoch.pt"
    )
    return {"source": name, "pretrained": str(folder / "epoch.pt")}


def open_clip_safetensors(name: str, folder: Path) -> dict[str, Any]:
    """Save the weights of a CLIP model alone."""
    save_state_dict(randomised(open_clip.create_model(name)).state_dict(), folder / "model.safetensors")
    return {"source": name, "pretrained": str(folder / "model.safetensors")}


def eva_file(name: str, folder: Path) -> dict[str, Any]:
    """Save an encoder under the names of EVA's code: a classifier, or a pre-trained encoder."""
    architecture, _, layout = name.partition(" ")
    classes = {"num_classes": 7, "global_pool": "avg"} if layout == "classifier" else {"num_classes": 0}
    model = randomised(build_vision(architecture, **classes))
    tensors = to_official(model.state_dict(), model, KeyReport())
    if not layout.startswith("class"):
        tensors["mask_token"] = torch.zeros(1, 1, model.embed_dim)  # type: ignore[arg-type]
    torch.save({"model": tensors}, folder / "eva.pt")
    return {"source": architecture, "pretrained": str(folder / "eva.pt")}


def eva_clip_file(name: str, folder: Path) -> dict[str, Any]:
    """Save a CLIP model under the names of EVA-CLIP's code."""
    clip = build_clip(name, seed=0)
    randomised(clip.module)
    tensors = to_official(clip.module.state_dict(), clip.module.visual.trunk, KeyReport())  # type: ignore[union-attr]
    torch.save(tensors, folder / "eva_clip.pt")
    return {"source": name, "pretrained": str(folder / "eva_clip.pt")}


PIXELS = (
    "bilinear 0.9 center",
    "bicubic 1.0 squash",
    "bicubic 0.95 border",
    "nearest 1.0 center",
    "lanczos 0.9 center",
)
ZOO = [
    *(Entry("timm file", name, timm_file) for name in TIMM),
    *(Entry("timm folder", name, timm_folder) for name in ("test_vit", "test_resnet", "convnext_atto", EVA)),
    *(Entry("timm folder", name, other_pixels) for name in PIXELS),
    *(Entry("open_clip folder", name, open_clip_folder) for name in (CLIP, EVA_CLIP)),
    *(Entry("open_clip file", name, open_clip_file) for name in (CLIP, EVA_CLIP)),
    *(Entry("open_clip file", name, open_clip_safetensors) for name in (CLIP, EVA_CLIP)),
    *(Entry("EVA file", f"{EVA} {layout}", eva_file) for layout in ("classifier", "encoder")),
    Entry("EVA-CLIP file", EVA_CLIP, eva_clip_file),
]


def outcome(entry: Entry, folder: Path) -> tuple[str, dict[str, float]]:
    """Write and import a model, and find what its stage says of it and the differences by name."""
    settings = entry.write(entry.name, folder)
    kind: Any = ImportClip if "clip" in entry.family.lower() else ImportVision
    events: list[Event] = []
    made = folder / "artifact"
    made.mkdir()
    try:
        kind(name="model", **settings).run(Context("model", made, made, {}, events.append))
    except UserError as error:
        return f"refused: {error}", {}
    values = [event.data["values"] for event in events if event.type == "metrics"]
    if values:
        return "equal", {name.rpartition("/")[2]: value for name, value in values[0].items()}
    said = [str(event.data["message"]) for event in events if event.type in ("log", "warning")]
    return f"not compared: {next((line for line in said if 'not compared' in line), 'no library')}", {}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for entry in ZOO:
        with tempfile.TemporaryDirectory() as folder:
            word, differences = outcome(entry, Path(folder))
        rows.setdefault(entry.family, []).append((word, differences))
        if word != "equal":
            print(f"{entry.family} {entry.name}: {word}")
    words = ("equal", "refused", "not compared")
    print(f"| family | models | {' | '.join(words)} | features, tokens | pixels | resized |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for family, results in rows.items():
        counts = [sum(word.startswith(each) for word, _ in results) for each in words]
        largest = []
        for names in (
            ("features", "text_features", "tokens"),
            ("pixels",),
            ("resized_pixels",),
        ):
            values = [differences[name] for _, differences in results for name in names if name in differences]
            largest.append(f"{max(values):.0e}" if values else "")
        print(f"| {family} | {len(results)} | {' | '.join(map(str, counts))} | {' | '.join(largest)} |")


if __name__ == "__main__":
    main()
