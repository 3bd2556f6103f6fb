"""Further hostile files: of processors, chat templates, timm, diffusers, safetensors, arrays, YAML and XML.

Each is a `Case` of `hostile`, and leaves a file `executed` if any of its code ran. `IN_FOLDERS` are files of the folder
in which the command is started.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hostile import (
    INDEX,
    MODEL_CONFIG,
    MODULE,
    PART,
    Case,
    Maker,
    code,
    named,
    numpy_archive,
    numpy_pickle,
    photo,
    plain_pickle,
    tar_of,
    text_cfg,
    tokenizer,
    torch_file,
)

JINJA = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.mkdir('executed') }}"
LONG_HEADER = 100_000_000  # bytes, the most that safetensors allows


def safetensors_header(header: bytes, size: int | None = None) -> Callable[[Path], bytes]:
    """Create the maker of a safetensors file with this header, which may lie about its size."""
    return lambda mark: struct.pack("<Q", len(header) if size is None else size) + header


def yaml_tag(mark: Path) -> bytes:
    """Write YAML that makes a folder if it is not loaded safely."""
    return f"path: !!python/object/apply:os.mkdir [{str(mark)!r}]\nnames: [a]\nstages: []\n".encode()


def yaml_module(mark: Path) -> bytes:
    """Write YAML that imports a module if it is not loaded safely."""
    return f"path: .\nnames: !!python/name:{MODULE}.Model\n".encode()


def object_hdf5(mark: Path) -> bytes:
    """Write the beginning of an HDF5 file before a pickle, as old weights of Keras have."""
    return b"\x89HDF\r\n\x1a\n" + plain_pickle(mark)


def object_array_in_npz(mark: Path) -> bytes:
    """Write an archive whose vectors are objects."""
    stream = io.BytesIO()
    np.savez(stream, vectors=np.array([[Maker(mark)]], dtype=object), keys=np.array(["0"]))
    return stream.getvalue()


def external_entity(mark: Path) -> bytes:
    """Write CVAT's XML that names a file of the machine, and a text that grows to 300 GB."""
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    kinds = f'<!DOCTYPE annotations [<!ENTITY x SYSTEM "file:///etc/hostname"><!ENTITY e0 "lol">{bomb}]>'
    box = '<box label="a" xtl="0" ytl="0" xbr="2" ybr="2">&e11;</box>'
    image = f'<image id="0" name="photo.png" width="3" height="2">{box}</image>'
    return f"{kinds}<annotations><version>1.1</version>{image}</annotations>".encode()


def image(mark: Path) -> bytes:
    """Return a good image."""
    return photo()


YOLO = {"yolo/images/a.png": image, "yolo/labels/a.txt": lambda mark: b"0 0.5 0.5 0.2 0.2\n"}
MORE_CASES = [
    Case(
        "auto_map",
        "video processor",
        "transformers",
        {
            "model/video_preprocessor_config.json": {
                "video_processor_type": "Hostile",
                **named(AutoVideoProcessor=f"{MODULE}.Processor"),
            },
            **PART,
        },
    ),
    Case(
        "auto_map",
        "feature extractor",
        "transformers",
        {"model/preprocessor_config.json": named(AutoFeatureExtractor=f"{MODULE}.Processor"), **PART},
    ),
    Case(
        "auto_map",
        "generation in a file",
        "transformers",
        {"model/custom_generate/generate.py": code, "model/generation_config.json": {"custom_generate": "model"}},
    ),
    Case("auto_map", "denoiser", "diffusers", {"model/unet/config.json": named(AutoModel=f"{MODULE}.Model"), **PART}),
    Case(
        "options",
        "chat template with code",
        "open_clip",
        {**tokenizer([None, None]), "model/tokenizer_config.json": {"chat_template": JINJA}},
    ),
    Case(
        "options",
        "chat template in a file",
        "transformers",
        {
            "model/chat_template.jinja": lambda mark: JINJA.encode(),
            "model/chat_template.json": {"chat_template": JINJA},
        },
    ),
    Case(
        "options",
        "trust_remote_code, a text",
        "open_clip",
        tokenizer(tokenizer_kwargs={"trust_remote_code": "true"}),
    ),
    Case(
        "options",
        "trust_remote_code of the tokenizer's file",
        "open_clip",
        {
            **text_cfg(hf_tokenizer_name="x"),
            "model/tokenizer_config.json": {
                "trust_remote_code": "yes",
                "auto_map": {"AutoTokenizer": [f"{MODULE}.Tokenizer", None]},
            },
            **PART,
        },
    ),
    Case(
        "options",
        "class of the tokenizer, a path",
        "open_clip",
        {
            **text_cfg(hf_tokenizer_name="x"),
            "model/tokenizer_config.json": {"tokenizer_class": f"{MODULE}.Tokenizer"},
            **PART,
        },
    ),
    Case(
        "options",
        "custom_load",
        "timm",
        {MODEL_CONFIG: {"pretrained_cfg": {"custom_load": f"{MODULE}:load", "hf_hub_id": "x/y"}}, **PART},
    ),
    Case(
        "options",
        "weights of timm in another file",
        "timm",
        {MODEL_CONFIG: {"model_args": {"pretrained_cfg_overlay": {"file": "evil.pt"}}}, "evil.pt": torch_file},
    ),
    Case(
        "options",
        "layer of timm, a path",
        "timm",
        {MODEL_CONFIG: {"model_args": {"act_layer": f"{MODULE}.Model", "norm_layer": "os.system"}}, **PART},
    ),
    Case(
        "pipeline",
        "custom_pipeline",
        "diffusers",
        {INDEX: {"custom_pipeline": MODULE}, "model/pipeline.py": code, **PART},
    ),
    Case(
        "pipeline",
        "modular pipeline",
        "diffusers",
        {
            "model/modular_model_index.json": {"_class_name": "Pipeline", **named(ModularPipelineBlocks=None)},
            "model/modular_config.json": named(ModularPipelineBlocks=f"{MODULE}.Pipeline"),
            **PART,
        },
    ),
    Case("pickle", "HDF5", "weights", {"model.h5": object_hdf5}, "model.h5"),
    Case("pickle", "archive of objects", "weights", {"model.npz": numpy_archive}, "model.npz"),
    Case(
        "pickle",
        "safetensors with a header of 100 MB",
        "timm",
        {"model/model.safetensors": safetensors_header(b"{" + b" " * (LONG_HEADER - 2) + b"}")},
    ),
    Case(
        "pickle",
        "safetensors with a header of 8 EB",
        "timm",
        {"model/model.safetensors": safetensors_header(b"{}", 2**63 - 1)},
    ),
    Case(
        "pickle",
        "safetensors with numbers that overflow",
        "timm",
        {
            "model/model.safetensors": safetensors_header(
                json.dumps({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 2**63]}}).encode()
            )
        },
    ),
    Case("data", "npz member of objects", "data", {"data.tar": tar_of("npz", numpy_archive)}, "data.tar"),
    Case("data", "cls member of objects", "data", {"data.tar": tar_of("cls", numpy_pickle)}, "data.tar"),
    Case("data", "YAML that makes an object", "data", {**YOLO, "yolo/data.yaml": yaml_tag}, "yolo"),
    Case(
        "data",
        "YAML that names a class",
        "data",
        {**YOLO, "yolo/data.yaml": yaml_module, f"{MODULE}.py": code},
        "yolo",
    ),
    Case(
        "data",
        "XML that reads and grows",
        "data",
        {"cvat/photo.png": image, "cvat/annotations.xml": external_entity},
        "cvat",
    ),
    Case("data", "embeddings in an archive of objects", "index", {"e.npz": object_array_in_npz}, "e.npz"),
]

IN_FOLDERS: dict[str, dict[str, Callable[[Path], bytes]]] = {
    "sitecustomize": {"sitecustomize.py": code, "usercustomize.py": code},
    "pth": {
        "x.pth": lambda mark: b"import os; os.mkdir('executed')\n",
        "data/x.pth": lambda mark: b"import hostile_code\n",
    },
    "egg-info": {
        "hostile.egg-info/PKG-INFO": lambda mark: b"Metadata-Version: 2.1\nName: hostile\nVersion: 1\n",
        "hostile.egg-info/entry_points.txt": lambda mark: f"[vfm]\nhostile = {MODULE}\n".encode(),
        f"{MODULE}.py": code,
    },
    "pyproject": {
        "pyproject.toml": lambda mark: f'[project.entry-points.vfm]\nhostile = "{MODULE}"\n'.encode(),
        "setup.cfg": lambda mark: f"[options.entry_points]\nvfm =\n    hostile = {MODULE}\n".encode(),
        f"{MODULE}.py": code,
        "conftest.py": code,
    },
    "modules": {f"{name}.py": code for name in ("numpy", "pyarrow", "typer", "rich", "pydantic", "PIL", "__main__")},
    "matplotlibrc": {
        "matplotlibrc": lambda mark: f"backend: module://{MODULE}\ntext.usetex: True\n".encode(),
        f"{MODULE}.py": code,
    },
}
