"""Targets of models: folders in the layouts of open_clip, Hugging Face, timm and diffusers, and files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

import vfm.api.prediction  # with what commands import late: paid for once, before a process is forked
import vfm.report.charts  # noqa: F401
from fuzz.data import CAPTIONS, NAMES, caption, encoded, images, table, tar
from fuzz.targets import RUN, Target, recipe, vfm as run
from vfm.models import build_clip, build_vision, save_clip, save_vision

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
VIT = "eva02_pico_patch8_32"
TABLES = ("lists/t.csv", "lists/t.jsonl", "lists/t.parquet")
CLASSES = ("--classes", "cat,dog")


def clip(folder: str = "clip") -> None:
    """Save a tiny CLIP model in open_clip's layout, with `artifact.json`."""
    save_clip(build_clip(CLIP, seed=0), Path(folder))


def vision(folder: str) -> None:
    """Save a tiny encoder in timm's layout."""
    save_vision(build_vision(VIT, seed=0), Path(folder))


def imported(kind: str, source: object, **fields: Any) -> None:
    recipe({"kind": f"models.{kind}", "name": "model", "source": source, **fields})


def open_clip_folder() -> None:
    clip()
    Path("clip/artifact.json").unlink()
    Path("x.png").write_bytes(encoded(0))
    tar()
    imported("clip", "clip")


def exported(form: str) -> None:
    """Export a model, and import the result."""
    (vision if form in ("timm", "eva") else clip)("from")
    run("export", "from", "--format", form, "--out", "to")
    if form == "eva":
        (file,) = [file for file in Path("to").iterdir() if file.suffix in (".pt", ".pth", ".bin")]
        imported("vision", VIT, pretrained=str(file))
    else:
        imported("vision" if form == "timm" else "clip", "to")


def weights() -> None:
    """Save weights alone, as torch does."""
    torch.save({"state_dict": build_clip(CLIP, seed=0).module.state_dict()}, "w.pt")
    imported("clip", CLIP, pretrained="w.pt")


def diffusers_folder() -> None:
    diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
    ).save_pretrained("g/unet")  # fmt: skip
    diffusers.DDPMScheduler().save_pretrained("g/scheduler")
    imported("generator", "g")


def use() -> None:
    """Make a model, images, class names and an index of embeddings."""
    clip()
    images("f")
    tar(txt=caption)
    rows = [{"image": image, "caption": CAPTIONS[n]} for n, image in enumerate(images("lists", ""))]
    for name in TABLES:
        table(name, rows)
    Path("classes.txt").write_text("\n".join(NAMES))
    run("embed", "clip", "x.tar", "--out", "e.parquet")
    Path("suite.yaml").write_text(
        "description: d\nsets:\n- {name: a, title: A, scores: {retrieval: ['image_retrieval_recall@1']},"
        " data: {kind: data.pairs, path: x.tar}}\n"
    )


def predict(*words: str) -> tuple[str, ...]:
    return ("predict", "clip", "f/000.png", "f/111.jpg", "f/222.webp", *words)


MODELS = [
    Target("open_clip folder", open_clip_folder, ("clip/*.json", "clip/*"),
           (RUN, ("predict", "clip", "x.png", *CLASSES), ("embed", "clip", "x.tar", "--out", "e.npy"))),
    Target("Hugging Face folder", lambda: exported("hf"), ("to/*.json", "to/*")),
    Target("timm folder", lambda: exported("timm"), ("to/*.json", "to/*")),
    Target("EVA file", lambda: exported("eva"), ("to/*.p*",)),
    Target("weights alone", weights, ("w.pt",)),
    Target("diffusers folder", diffusers_folder, ("g/*/*.json", "g/*/*")),
    Target("class names", use, ("classes.txt",), (predict("--classes", "classes.txt"),)),
    Target("index of embeddings", use, ("e.parquet",), (predict("--index", "e.parquet"),)),
    Target("images to predict", use, ("f/*.png", "f/*.jpg", "f/*.webp"), (predict(*CLASSES),)),
    Target("data to embed", use, ("x.tar", "f/*", "lists/t.*", "lists/*"),
           (("embed", "clip", "x.tar", "--out", "e.npy"), ("embed", "clip", "f", "--out", "e.parquet"),
            *(("embed", "clip", name, "--out", "e.npy") for name in TABLES), *(("data", name) for name in TABLES))),
    Target("suite", use, ("suite.yaml",), (("eval", "clip", "--suite", "suite.yaml", "--root", ".", "--dry-run"),)),
]  # fmt: skip
