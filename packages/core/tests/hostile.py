"""Fifty models and files whose authors want their code to run, each made anew in a folder of its own.

Every case leaves a file `executed` in its folder if any of its code ran. `test_hostile.py` runs them against vfm,
`benchmarks/hostile.py` against the libraries that read the same layouts.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from cli_world import run_here
from vfm.base import UserError
from vfm.eval.video.videos import load_video_predictor
from vfm.interfaces import Artifact, DenseCheckpoint, VideoClassifier
from vfm.models import (
    build_clip,
    build_vision,
    find_format,
    import_generator,
    import_vision,
    save_clip,
    save_vision,
    set_class_names,
)

Kind = Literal["none", "auto_map", "options", "predictor", "pipeline", "pickle", "data", "working folder"]
Layout = Literal["open_clip", "transformers", "timm", "diffusers", "dense", "video", "weights", "data", "index"]

MARK = "executed"
YES = "y\n" * 20  # what the user answers to every question
MODULE = "hostile_code"
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@dataclass(frozen=True)
class Case:
    """A hostile folder: a layout with changed files.

    Attributes:
        kind: what is abused.
        title: the case, in a line.
        layout: what the folder is without the changes.
        changes: new content of files: a mapping is merged into JSON, a function gets the path of the mark.
        target: what the user loads, in the folder.
    """

    kind: Kind
    title: str
    layout: Layout
    changes: Mapping[str, Any]
    target: str = "model"


class Maker:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def code(mark: Path) -> bytes:
    """Return a module that leaves the mark when it is imported, with every class that a file may name."""
    classes = "".join(f"class {name}: pass\n" for name in ("Config", "Model", "Tokenizer", "Processor", "Pipeline"))
    return f"open({str(mark)!r}, 'w').close()\n{classes}def load(*_): pass\n".encode()


def torch_file(mark: Path) -> bytes:
    """Return a `torch.save` archive with an object beside its tensors."""
    stream = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Maker(mark)}, stream)
    return stream.getvalue()


def old_torch_file(mark: Path) -> bytes:
    """Return the same in the format before torch 1.6."""
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(1), "args": Maker(mark)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def plain_pickle(mark: Path) -> bytes:
    """Return a pickle."""
    return pickle.dumps(Maker(mark))


def numpy_pickle(mark: Path) -> bytes:
    """Return an npy file of objects."""
    stream = io.BytesIO()
    np.save(stream, np.array([Maker(mark)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def numpy_archive(mark: Path) -> bytes:
    """Return an npz file of objects."""
    stream = io.BytesIO()
    np.savez(stream, numbers=np.array([Maker(mark)], dtype=object))
    return stream.getvalue()


def tar_of(name: str, content: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
    """Return the maker of a WebDataset with an image and a member of this name."""

    def make(mark: Path) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for member, data in (("0.png", photo()), ("0.txt", b"a dog"), (f"0.{name}", content(mark))):
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        return stream.getvalue()

    return make


def extension_table(mark: Path) -> bytes:
    """Return Parquet whose column has the extension type that older pyarrow unpickles when a file is opened."""
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": plain_pickle(mark),
    }
    field = pa.field("caption", pa.string(), metadata=metadata)
    image = pa.field("image", pa.binary())
    table = pa.table([pa.array(["a dog"]), pa.array([photo()], pa.binary())], schema=pa.schema([field, image]))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def photo() -> bytes:
    """Return a small PNG."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(stream, "PNG")
    return stream.getvalue()


def named(**classes: Any) -> dict[str, Any]:
    """Return an `auto_map` of classes in the folder's own module."""
    return {"auto_map": {name: value or f"{MODULE}.Config" for name, value in classes.items()}}


def text_cfg(**values: Any) -> dict[str, Any]:
    return {"model/open_clip_config.json": {"model_cfg": {"text_cfg": values}}}


def tokenizer(entry: object = None, **options: Any) -> dict[str, Any]:
    """Return an open_clip model with the tokenizer of its folder, whose class is in the folder's module."""
    entry = [f"{MODULE}.Tokenizer", None] if entry is None else entry
    return {
        **text_cfg(hf_tokenizer_name="x", **options),
        "model/tokenizer_config.json": {"auto_map": entry if isinstance(entry, list) else {"AutoTokenizer": entry}},
        f"model/{MODULE}.py": code,
    }


def facts(predictor: str) -> dict[str, Any]:
    return {"model/artifact.json": {"predictor": predictor}, f"{MODULE}.py": code}


PART = {f"model/{MODULE}.py": code}
NEW = {"model_type": "hostile"}
REMOTE = {"trust_remote_code": True}
MODEL_CONFIG, INDEX = "model/config.json", "model/model_index.json"
CASES = [
    # Python files that a configuration names by `auto_map`
    Case("auto_map", "tokenizer of a CLIP model", "open_clip", tokenizer()),
    Case("auto_map", "its fast tokenizer", "open_clip", tokenizer([None, f"{MODULE}.Tokenizer"])),
    Case("auto_map", "its tokenizer, by name", "open_clip", tokenizer(f"{MODULE}.Tokenizer")),
    Case(
        "auto_map",
        "its tokenizer, in another repository",
        "open_clip",
        tokenizer([f"other/repo--{MODULE}.Tokenizer", None]),
    ),
    Case(
        "auto_map",
        "its tokenizer's configuration",
        "open_clip",
        {**tokenizer(), MODEL_CONFIG: {**NEW, **named(AutoConfig=None)}},
    ),
    Case(
        "auto_map",
        "text tower of a CLIP model",
        "open_clip",
        {**text_cfg(hf_model_name="model"), MODEL_CONFIG: {**NEW, **named(AutoConfig=None)}, **PART},
    ),
    Case(
        "auto_map",
        "model of a known text tower",
        "open_clip",
        {
            **text_cfg(hf_model_name="model"),
            MODEL_CONFIG: {
                "model_type": "bert",
                "hidden_size": 64,
                "num_attention_heads": 1,
                "num_hidden_layers": 1,
                **named(AutoModel=f"{MODULE}.Model"),
            },
            **PART,
        },
    ),
    Case(
        "auto_map",
        "configuration of a new type",
        "transformers",
        {MODEL_CONFIG: {**NEW, **named(AutoConfig=None, AutoModel=f"{MODULE}.Model")}, **PART},
    ),
    Case(
        "auto_map", "model of a known type", "transformers", {MODEL_CONFIG: named(AutoModel=f"{MODULE}.Model"), **PART}
    ),
    Case(
        "auto_map",
        "tokenizer",
        "transformers",
        {"model/tokenizer_config.json": named(AutoTokenizer=[f"{MODULE}.Tokenizer", None]), **PART},
    ),
    Case(
        "auto_map",
        "processor",
        "transformers",
        {
            "model/processor_config.json": {"processor_class": "Hostile", **named(AutoProcessor=f"{MODULE}.Processor")},
            **PART,
        },
    ),
    Case(
        "auto_map",
        "image processor",
        "transformers",
        {
            "model/preprocessor_config.json": {
                "image_processor_type": "Hostile",
                **named(AutoImageProcessor=f"{MODULE}.Processor"),
            },
            **PART,
        },
    ),
    Case("auto_map", "configuration, in timm's layout", "timm", {MODEL_CONFIG: named(AutoConfig=None), **PART}),
    # options that a file passes to a loader
    Case("options", "trust_remote_code", "open_clip", tokenizer(tokenizer_kwargs=REMOTE)),
    Case("options", "trust_remote_code, a number", "open_clip", tokenizer(tokenizer_kwargs={"trust_remote_code": 1})),
    Case(
        "options",
        "trust_remote_code, with a mode",
        "open_clip",
        tokenizer(tokenizer_kwargs={**REMOTE, "clean": "lower"}, tokenizer_mode="clips"),
    ),
    Case(
        "options",
        "trust_remote_code of a configuration",
        "open_clip",
        {**tokenizer(tokenizer_kwargs=REMOTE), MODEL_CONFIG: {**NEW, **named(AutoConfig=None)}},
    ),
    Case("options", "code_revision", "open_clip", tokenizer(tokenizer_kwargs={**REMOTE, "code_revision": "main"})),
    Case(
        "options",
        "another folder",
        "open_clip",
        {
            **tokenizer(tokenizer_kwargs={**REMOTE, "subfolder": "sub"}),
            "model/sub/tokenizer_config.json": named(AutoTokenizer=[f"{MODULE}.Tokenizer", None]),
            f"model/sub/{MODULE}.py": code,
        },
    ),
    Case(
        "options",
        "another vocabulary",
        "open_clip",
        {**text_cfg(tokenizer_kwargs={"bpe_path": "model/bpe.gz"}), "model/bpe.gz": plain_pickle},
    ),
    Case(
        "options",
        "trust_remote_code in config.json",
        "transformers",
        {MODEL_CONFIG: {**NEW, **REMOTE, **named(AutoConfig=None)}, **PART},
    ),
    Case(
        "options",
        "checkpoint_path",
        "timm",
        {MODEL_CONFIG: {"model_args": {"checkpoint_path": "model/other.pt"}}, "model/other.pt": torch_file},
    ),
    Case(
        "options",
        "custom_load",
        "timm",
        {
            MODEL_CONFIG: {"pretrained_cfg": {"custom_load": True, "file": "model/other.npz"}},
            "model/other.npz": numpy_archive,
        },
    ),
    Case(
        "options",
        "url",
        "timm",
        {
            MODEL_CONFIG: {"pretrained_cfg": {"url": "file:model/other.pt", "source": "url"}},
            "model/other.pt": torch_file,
        },
    ),
    # functions that an artifact names
    Case("predictor", "os:system", "dense", facts("os:system")),
    Case("predictor", "builtins:exec", "dense", facts("builtins:exec")),
    Case("predictor", "a module of the working folder", "dense", facts(f"{MODULE}:load")),
    Case("predictor", "a function of vfm that is no predictor", "dense", facts("vfm.storage.publishing:publish_file")),
    Case("predictor", "os:system", "video", facts("os:system")),
    Case("predictor", "a module of the working folder", "video", facts(f"{MODULE}:load")),
    # parts of a diffusion model
    Case("pipeline", "pipeline in a file", "diffusers", {INDEX: {"_class_name": [MODULE, "Pipeline"]}, **PART}),
    Case(
        "pipeline",
        "text encoder in a file",
        "diffusers",
        {INDEX: {"text_encoder": [MODULE, "Model"]}, f"model/text_encoder/{MODULE}.py": code},
    ),
    Case(
        "pipeline",
        "text encoder in a module of the working folder",
        "diffusers",
        {INDEX: {"text_encoder": [MODULE, "Model"]}, f"{MODULE}.py": code},
    ),
    Case(
        "pipeline",
        "tokenizer in a file",
        "diffusers",
        {INDEX: {"tokenizer": [MODULE, "Tokenizer"]}, f"model/tokenizer/{MODULE}.py": code},
    ),
    Case("pipeline", "denoiser that is no class", "diffusers", {"model/unet/config.json": {"_class_name": "logging"}}),
    Case(
        "pipeline",
        "denoiser in a file",
        "diffusers",
        {INDEX: {"unet": [MODULE, "Model"]}, f"model/unet/{MODULE}.py": code},
    ),
    # weights that are pickles
    Case(
        "pickle",
        "weights of a CLIP model",
        "open_clip",
        {"model/open_clip_model.safetensors": None, "model/open_clip_pytorch_model.bin": torch_file},
    ),
    Case(
        "pickle",
        "weights of a CLIP model, old format",
        "open_clip",
        {"model/open_clip_model.safetensors": None, "model/open_clip_pytorch_model.bin": old_torch_file},
    ),
    Case(
        "pickle",
        "weights of a transformers model",
        "transformers",
        {"model/model.safetensors": None, "model/pytorch_model.bin": torch_file},
    ),
    Case(
        "pickle",
        "weights of an encoder",
        "timm",
        {"model/model.safetensors": None, "model/pytorch_model.bin": torch_file},
    ),
    Case("pickle", "a pickle named safetensors", "timm", {"model/model.safetensors": plain_pickle}),
    Case("pickle", "a checkpoint", "weights", {"model.pt": torch_file}, "model.pt"),
    Case("pickle", "a checkpoint, old format", "weights", {"model.pth": old_torch_file}, "model.pth"),
    Case("pickle", "a plain pickle", "weights", {"model.bin": plain_pickle}, "model.bin"),
    # data sets and embeddings
    Case("data", "npy member of objects", "data", {"data.tar": tar_of("npy", numpy_pickle)}, "data.tar"),
    Case("data", "pickled member", "data", {"data.tar": tar_of("pyd", plain_pickle)}, "data.tar"),
    Case("data", "extension type in Parquet", "data", {"data.parquet": extension_table}, "data.parquet"),
    Case("data", "embeddings of objects", "index", {"e.npy": numpy_pickle, "e.keys.txt": lambda mark: b"0\n"}, "e.npy"),
    # what lies where the command is started
    Case(
        "working folder",
        "modules named as libraries",
        "timm",
        {f"{name}.py": code for name in ("yaml", "torch", "vfm")},
    ),
    Case(
        "working folder",
        "an installed plugin's metadata",
        "timm",
        {
            "hostile-1.dist-info/METADATA": lambda mark: b"Metadata-Version: 2.1\nName: hostile\nVersion: 1\n",
            "hostile-1.dist-info/entry_points.txt": lambda mark: f"[vfm]\nhostile = {MODULE}\n".encode(),
            f"{MODULE}.py": code,
        },
    ),
]


UNCHANGED = [Case("none", "unchanged", layout, {}) for layout in ("open_clip", "transformers", "timm", "diffusers")]


def make_layouts(folder: Path) -> None:
    """Write the harmless folders that cases change, of the libraries that are installed."""
    clip = build_clip(CLIP, seed=0)
    save_clip(clip, folder / "open_clip" / "model")
    find_format("hf", clip, "clip").write(clip, folder / "transformers" / "model")
    encoder = build_vision("vit_pico_patch8_32", num_classes=2, seed=0)
    set_class_names(encoder, ["a", "b"])
    save_vision(encoder, folder / "timm" / "model")
    save_clip(clip, folder / "index" / "model")
    shared = {"class_names": ["a"], "image_size": 16, "predictor": ""}
    dense: dict[str, Any] = {"tasks": ["boxes"], **shared}
    video: dict[str, Any] = {"num_frames": 2, "sampling": "segments", "stride": 1, "model": {}, **shared}
    DenseCheckpoint.create(folder / "dense" / "model", **dense)
    VideoClassifier.create(folder / "video" / "model", **video)
    for name in ("weights", "data"):
        (folder / name).mkdir()
    make_generator(folder / "diffusers" / "model")


def make_generator(folder: Path) -> None:
    """Write a tiny Stable Diffusion with its text encoder."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).save_pretrained(folder / "vae")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    sizes = CLIPTextConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=8, eos_token_id=3,
    )  # fmt: skip
    CLIPTextModel(sizes).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    words = ("a", "a</w>", "<|startoftext|>", "<|endoftext|>")
    (folder / "tokenizer/vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def make_case(case: Case, layouts: Path, folder: Path) -> Path:
    """Write a case into a new folder, with a photo beside it, and return what the user loads."""
    shutil.copytree(layouts / case.layout, folder)
    (folder / "photo.png").write_bytes(photo())
    mark = folder / MARK
    for name, content in case.changes.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.unlink()
        elif callable(content):
            file.write_bytes(content(mark))
        else:
            before = json.loads(file.read_text()) if file.is_file() else {}
            file.write_text(json.dumps(merged(before, content)))
    return folder / case.target


def merged(before: Any, new: Any) -> Any:
    if not (isinstance(before, dict) and isinstance(new, dict)):
        return new
    return {**before, **{key: merged(before.get(key), value) for key, value in new.items()}}


def load_with_vfm(case: Case, target: Path) -> str:
    """Load a case as a user of vfm does, in its folder; return the error if it is refused, else nothing."""
    functions: dict[str, Callable[[], object]] = {
        "weights": lambda: import_vision("vit_pico_patch8_32", str(target)),
        "diffusers": lambda: import_generator(str(target), Path("out")),
        "video": lambda: load_video_predictor(cast("VideoClassifier", Artifact.load(target)), torch.device("cpu")),
    }
    if load := functions.get(case.layout):
        try:
            load()
        except UserError as error:
            return str(error)
        return ""
    words: dict[str, list[str | Path]] = {
        "timm": ["predict", target, "photo.png"],
        "dense": ["predict", target, "photo.png", "--out", "out"],
        "data": ["data", target],
        "index": ["predict", "model", "photo.png", "--index", target],
    }
    done = run_here(*words.get(case.layout, ["predict", target, "photo.png", "--classes", "a,b"]), answers=YES)
    assert done.code in (0, 2), done.err
    return done.err.strip() if done.code else ""
