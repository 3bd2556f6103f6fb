"""Replacement of the vision tower in a LLaVA checkpoint in transformers' layout. Everything else stays the same.

On disk the tower is `vision_tower.vision_model.*` (transformers 4) or `vision_tower.*` (5). Release 5 reads both, so
the names of release 4 are written. `transformers` itself is not needed.

Source: Liu et al. 2023, LLaVA-1.5 (arXiv:2310.03744). Names as in transformers' `LlavaForConditionalGeneration`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel
from vfm.models.interchange.hugging_face import CONFIG_FILE, hugging_face_mismatches, to_hugging_face
from vfm.models.interchange.hugging_face_config import hugging_face_config
from vfm.models.interchange.hugging_face_siglip import siglip_config, siglip_mismatches, to_siglip
from vfm.models.transformers_folders.processor import PROCESSOR_FILE
from vfm.models.weights import save_state_dict
from vfm.storage.store_files import naming, read_record

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOWER = re.compile(r"((?:model\.)?vision_tower\.)(?:vision_model\.)?(.+)")
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")
# Defaults of transformers' CLIPVisionConfig, which its files leave out, and of SiglipVisionConfig.
_CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP |= {"image_size": 224, "patch_size": 32}
_SIGLIP = {**_CLIP, "patch_size": 16}
DEFAULT_LAYER = -2  # LLaVA's default: the output of the block before the last


def llava_mismatch(model: Any, base: Path) -> str:
    """Explain why a model's vision tower cannot be put into a LLaVA checkpoint; empty if it can.

    Raises:
        UserError: If the folder is not a LLaVA checkpoint in transformers' layout with safetensors.
    """
    if not isinstance(model, ClipModel):
        return "it is a vision encoder without a text tower"
    expected = _tower_config(base)
    is_siglip = expected.get("model_type") == "siglip_vision_model"
    reasons = siglip_mismatches(model) if is_siglip else hugging_face_mismatches(model)
    if reasons:
        return f"{base} has a {'SigLIP' if is_siglip else 'CLIP'} tower, and {', '.join(reasons)}"
    config = siglip_config(model) if is_siglip else hugging_face_config(model)
    actual = config["vision_config"]
    defaults: dict[str, Any] = {**_SIGLIP, "hidden_act": "gelu_pytorch_tanh"} if is_siglip else {**_CLIP}
    defaults = {"hidden_act": "quick_gelu", **defaults}
    for key, default in defaults.items():
        wanted = expected.get(key, default)
        if actual[key] != wanted:
            return f"the tower of {base} has {key} {wanted}, this model {actual[key]}"
    return ""


def write_llava(model: Any, directory: Path, base: Path) -> list[str]:
    """Write a copy of a LLaVA checkpoint with the model's vision tower.

    Args:
        model: A model that `llava_mismatch` accepts.
        directory: Folder of the copy.
        base: Folder of the checkpoint.

    Returns:
        Lines for the user: the number of replaced tensors, and whether LLaVA reads the ones that differ.

    Raises:
        UserError: If the checkpoint's tower has a tensor that the model lacks or that has another shape, its tower
            lacks tensors, or one of its files is damaged.
    """
    assert isinstance(model, ClipModel)
    is_siglip = _tower_config(base).get("model_type") == "siglip_vision_model"
    state_dict = model.module.state_dict()
    tensors = to_siglip(state_dict) if is_siglip else to_hugging_face(state_dict)
    tower = {key.removeprefix("vision_model."): value for key, value in tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    shards = _shards(base)
    _check_shards(base, shards, tower)
    for file in sorted(base.iterdir()):
        if file.is_file() and file.name not in (*shards, INDEX) and file.suffix not in (".bin", ".pt", ".pth"):
            shutil.copyfile(file, directory / file.name)
    renamed: dict[str, str] = {}
    differing: list[str] = []
    for name in shards:
        with safe_open(base / name, framework="pt") as opened:
            keys = list(filter(_TOWER.match, opened.keys()))
        if not keys:
            shutil.copyfile(base / name, directory / name)
            continue
        shard = load_file(base / name)
        for key in keys:
            new, changed = _replace(shard, key, tower, str(base / name))
            renamed[key] = new
            if changed:
                differing.append(changed)
        save_state_dict(shard, directory / name)
    index = base / INDEX
    if index.is_file():
        record = read_record(index, "weight_map")
        record["weight_map"] = {renamed.get(key, key): name for key, name in record["weight_map"].items()}
        (directory / INDEX).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return [
        f"{len(renamed)} tensors of the vision tower, of which {len(differing)} differ",
        *_notes(model, base, differing),
    ]


def _check_shards(base: Path, shards: list[str], tower: Mapping[str, Tensor]) -> None:
    """Check that each file of weights is intact and that the tower has all blocks, since the copy keeps any gap."""
    stored_names = set[str]()
    for name in shards:
        try:
            with safe_open(base / name, framework="pt") as opened:
                for match in filter(None, map(_TOWER.match, opened.keys())):
                    stored_names.add(match[2])
        except SafetensorError as error:
            raise UserError(f"{base / name}: damaged; download it again: {error}") from None
    missing = sorted(filter(_BLOCK.match, tower.keys() - stored_names))
    if missing:
        raise UserError(f"{base}: its vision tower lacks {len(missing)} tensors, such as {missing[0]}")


def _replace(shard: dict[str, Tensor], key: str, tower: Mapping[str, Tensor], where: str) -> tuple[str, str | None]:
    """Replace a tensor of the tower in place. Return its new key, and its name in the tower if its values differ."""
    match = _TOWER.match(key)
    assert match
    prefix, name = match.groups()
    old = shard.pop(key)
    new = f"{prefix}vision_model.{name}"
    if name.endswith("position_ids"):  # constants, saved by older releases
        shard[new] = old
        return new, None
    if name not in tower or tower[name].shape != old.shape:
        shape = tuple(tower[name].shape) if name in tower else "none"
        raise UserError(f"{where}: {key} is {tuple(old.shape)}, the model's is {shape}")
    shard[new] = tower[name].detach().cpu().to(old.dtype)
    is_same = torch.equal(shard[new], old)
    return new, None if is_same else name


def _notes(model: ClipModel, base: Path, differing: list[str]) -> list[str]:
    """Collect notes for users who compare the models."""
    config, lines = read_record(base / CONFIG_FILE), []
    depth = int(_tower_config(base).get("num_hidden_layers", _CLIP["num_hidden_layers"]))
    layer = config.get("vision_feature_layer", DEFAULT_LAYER)
    layers = layer if isinstance(layer, list) else [layer]
    # Negative numbers count from the end of the depth + 1 outputs, of which number 0 is the embedding.
    last = max(number if number >= 0 else depth + 1 + number for number in layers)
    if not any(_is_read(name, last) for name in differing):
        lines.append(
            f"nothing that LLaVA reads differs: vision_feature_layer {layer} is the output of block {last} of {depth},"
            " and only later weights changed"
        )
    if (base / PROCESSOR_FILE).is_file():
        theirs = read_record(base / PROCESSOR_FILE)
        if tuple(theirs.get("image_mean", model.preprocess.mean)) != tuple(model.preprocess.mean):
            lines.append(f"its {PROCESSOR_FILE} normalises with another mean than {model.name}")
    lines.append("its projector was trained with the old tower: train LLaVA again before comparing the two")
    return lines


def _is_read(name: str, last: int) -> bool:
    """Check whether a tensor of the tower comes before the output of block number `last`, counted from 1."""
    block = _BLOCK.match(name)
    if block:
        return int(block[1]) < last
    return name.startswith(("embeddings.", "pre_layrnorm."))


def _tower_config(base: Path) -> dict[str, Any]:
    """Read the configuration of a LLaVA checkpoint's vision tower.

    Raises:
        UserError: If the folder is not a LLaVA checkpoint in transformers' layout with safetensors.
    """
    if not (base / CONFIG_FILE).is_file():
        raise UserError(f"{base}: no LLaVA checkpoint ({CONFIG_FILE} is missing)")
    record = read_record(base / CONFIG_FILE)
    if "mm_vision_tower" in record:
        raise UserError(
            f"{base}: a checkpoint of LLaVA's own code, which reads its tower from another folder: export with --format"
            f" hf and set mm_vision_tower in {CONFIG_FILE} to that folder"
        )
    vision = record.get("vision_config")
    if record.get("model_type") not in ("llava", "llava_next") or not isinstance(vision, dict):
        raise UserError(f"{base}: expected a model of type llava or llava_next, got {record.get('model_type')!r}")
    _shards(base)
    return vision


def _shards(base: Path) -> list[str]:
    """List the names of a checkpoint's files of weights, and check that they exist."""
    if (base / INDEX).is_file():
        with naming(base / INDEX, "an index of weights"):
            names = sorted(set(read_record(base / INDEX, "weight_map")["weight_map"].values()))
            for name in names:
                if Path(name).name != name:
                    raise UserError(f"expected names of files in its folder, got {name}")
        for name in names:
            if not (base / name).is_file():
                raise UserError(f"{base / name}: no such file, though {INDEX} names it; download it again")
        return names
    if (base / WEIGHTS).is_file():
        return [WEIGHTS]
    raise UserError(f"{base}: no weights as safetensors (looked for {INDEX} and {WEIGHTS})")
