"""Checks of the parts of a diffusion model in diffusers' layout: each is complete and fits its configuration."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import list_repo_files
from safetensors import safe_open

from vfm.base import UserError, how_to_install
from vfm.models.clip.model_sources import repository
from vfm.models.custom_code import without_custom_code
from vfm.models.stages import HUB_PREFIX
from vfm.models.weights import shapes_of
from vfm.storage.store_files import naming, read_record, reading

DENOISERS = ("unet", "transformer")
INDEX_FILE = "model_index.json"
ENCODERS = ("text_encoder", "tokenizer")  # prefixes of the names of parts that transformers has
# Complete weights or shards. A suffix such as `.fp16` names another variant of the same weights.
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
TRANSFORMERS = "transformers"
_SENTENCEPIECE = ("spiece.model",)
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), _SENTENCEPIECE)


def denoiser_folder(folder: Path) -> str:
    """Find the name of the denoiser's folder, `unet` or `transformer`.

    Raises:
        UserError: If neither exists.
    """
    for name in DENOISERS:
        if (folder / name / "config.json").is_file():
            return name
    raise UserError(f"{folder}: not in diffusers' layout (neither unet/config.json nor transformer/config.json exists)")


def check_parts(folder: Path, source: str) -> None:
    """Check denoiser, VAE, text encoders and tokenizers without reading weights.

    A part is expected if its folder exists or `model_index.json` names it.

    Args:
        folder: Folder of the model.
        source: Origin of the model, for errors.

    Raises:
        UserError: If diffusers is not installed, a part is missing, or it does not fit its configuration.
    """
    try:
        import diffusers
    except ImportError:
        raise UserError(f"models.generator needs diffusers: {how_to_install('vfm-diva')}") from None
    try:
        import transformers
    except ImportError:  # an optional extra, which only prompts need
        transformers = None
    index_file = folder / INDEX_FILE
    index = read_part(index_file) if index_file.is_file() else {}
    check_encoder_classes(index, index_file)
    class_names: dict[str, Any] = {}
    for name, value in index.items():
        if isinstance(value, list) and value and None not in value:  # [library, class], with null for a missing part
            class_names[name] = value[-1]

    def expected(name: str) -> bool:
        return name in class_names or (folder / name).is_dir()

    _check_weights(folder / denoiser_folder(folder), diffusers, source)
    for name in ("vae", "movq"):
        if expected(name):
            _check_weights(folder / name, diffusers, source)
    for suffix in ("", "_2", "_3"):
        # SD 3 is often saved without T5, also if its index names it, and diffusers then takes zeros.
        if suffix == "_3" and not (folder / f"text_encoder{suffix}").is_dir():
            continue
        if expected(f"text_encoder{suffix}"):
            _check_text_encoder(folder / f"text_encoder{suffix}", transformers, source)
            name = f"tokenizer{suffix}"
            _check_tokenizer(folder / name, transformers, str(class_names.get(name)))


def check_encoder_classes(index: Mapping[str, Any], file: Path) -> None:
    """Check that text encoders and tokenizers are classes of transformers.

    The index may name any module, or a Python file in the part's folder. diffusers would import it.

    Args:
        index: Content of `model_index.json`.
        file: Path of the index, for the error.

    Raises:
        UserError: If a part belongs to another library.
    """
    for name, value in index.items():
        if name.startswith(ENCODERS) and isinstance(value, list) and None not in value and value[:1] != [TRANSFORMERS]:
            raise UserError(
                f"{file}: {name}: expected a class of {TRANSFORMERS}, got {value}; code of a model's files is never run"
            )


def _class_of(library: Any, name: object, base: type, file: Path) -> Any:
    """Look up the class of a library that a file names.

    The name may also be that of e.g. a function.
    """
    named_class = getattr(library, str(name), None)
    if not inspect.isclass(named_class) or not issubclass(named_class, base):
        raise UserError(f"{file}: {library.__name__} has no {base.__name__} {name!r}")
    return named_class


def _check_weights(folder: Path, diffusers: Any, source: str) -> None:
    """Compare names and shapes of the weights with the configuration, without reading the weights."""
    config = read_part(folder / "config.json")
    model_class = _class_of(diffusers, config.get("_class_name"), diffusers.ModelMixin, folder / "config.json")
    stored_shapes = _shapes(folder, source)
    with naming(folder / "config.json", "the configuration of a part"), torch.device("meta"):
        model = model_class.from_config(config)
    shapes = shapes_of(model.state_dict())
    current_shapes = {_current(key, shapes): shape for key, shape in stored_shapes.items()}
    _compare(folder, shapes, current_shapes)


# Names in a VAE's attention before diffusers 0.14, which diffusers converts when it reads them.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _current(key: str, expected: dict[str, list[int]]) -> str:
    """Convert a tensor's name in a file to the name that diffusers gives to it."""
    head, _, last = key.rpartition(".")
    head, _, layer = head.rpartition(".")
    new = f"{head}.{_OLD_NAMES.get(layer, layer)}.{last}"
    is_old = key not in expected and new in expected
    return new if is_old else key


def _check_text_encoder(folder: Path, transformers: Any, source: str) -> None:
    """Compare the weights of a text encoder with its configuration, if transformers is installed."""
    config = read_part(folder / "config.json")
    stored_shapes = _shapes(folder, source)
    if transformers is None:
        return
    name = next(iter(config.get("architectures") or []), None)
    model_class = _class_of(transformers, name, transformers.PreTrainedModel, folder / "config.json")
    form = "the configuration of a text encoder"
    with naming(folder / "config.json", form), without_custom_code(folder), torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(config))
    tied: dict[int, list[str]] = {}
    shapes: dict[str, list[int]] = {}
    for key, value in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(value), []).append(key)
        shapes[key] = list(value.shape)
    bare = {_bare(key): shape for key, shape in stored_shapes.items() if not key.endswith("position_ids")}
    expected: dict[str, list[int]] = {}
    for names in tied.values():  # one name of tied weights is enough in the file
        present = [key for key in names if _bare(key) in bare] or names[:1]
        for key in present:
            expected[_bare(key)] = shapes[key]
    _compare(folder, expected, bare)


def _bare(key: str) -> str:
    """Remove the prefix that some versions of transformers write before a text encoder's keys."""
    return key.removeprefix("text_model.")


def _check_tokenizer(folder: Path, transformers: Any, class_name: str) -> None:
    """Load a tokenizer by its class in transformers, if the required libraries are installed."""
    vocabularies = []
    for names in _VOCABULARIES:
        if all((folder / name).is_file() for name in names):
            vocabularies.append(names)
    # Without these files transformers makes an empty tokenizer, whose maximum length is not a number of tokens.
    if not vocabularies:
        raise UserError(
            f"{folder}: no tokenizer found: expected tokenizer.json, vocab.json with merges.txt, or spiece.model"
        )
    if transformers is None or vocabularies == [_SENTENCEPIECE]:  # SentencePiece needs another library, too
        return
    tokenizer_class: Any = transformers.AutoTokenizer
    if hasattr(transformers, class_name):
        file = folder.parent / INDEX_FILE
        tokenizer_class = _class_of(transformers, class_name, transformers.PreTrainedTokenizerBase, file)
    with naming(folder, "a tokenizer"), without_custom_code(folder), suppress(ImportError):
        tokenizer_class.from_pretrained(folder, local_files_only=True)


def _compare(folder: Path, expected: dict[str, list[int]], stored: dict[str, list[int]]) -> None:
    wrong = sorted(key for key in expected.keys() | stored.keys() if expected.get(key) != stored.get(key))
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{folder}: its weights do not fit its configuration: {len(wrong)} keys differ, first {key}: expected "
            f"{expected.get(key, 'no such key')}, got {stored.get(key, 'no such key')}"
        )


def _shapes(folder: Path, source: str) -> dict[str, list[int]]:
    """Read the shape of every tensor in a folder's safetensors files. There may be several shards."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if WEIGHTS.fullmatch(file.name)]
    if not files:
        half = _half_precision(folder, source)
        if half:
            raise UserError(f"{folder}: fp16 variant only ({half}); expected the weights without a variant's suffix")
        raise UserError(f"{folder}: no safetensors; pickled weights are not read")
    shapes: dict[str, list[int]] = {}
    for file in files:
        with reading(file, "safetensors"), safe_open(file, framework="pt") as content:
            for key in content.keys():  # noqa: SIM118  (not a mapping)
                shapes[key] = content.get_slice(key).get_shape()
    return shapes


def _half_precision(folder: Path, source: str) -> str | None:
    """Find the name of a part's fp16 weights in its folder or, as they are not downloaded, on the hub."""
    local = sorted(folder.glob("*.fp16*.safetensors"))
    if local:
        return local[0].name
    if not source.startswith(HUB_PREFIX):
        return None
    repo, revision = repository(source)
    try:
        names = list_repo_files(repo, revision=revision)
    except Exception:  # only the reason in an error's line depends on it
        return None
    halves = sorted(fnmatch.filter(names, f"{folder.name}/*.fp16*.safetensors"))
    return halves[0].rsplit("/", 1)[-1] if halves else None


def read_part(file: Path) -> dict[str, Any]:
    """Read the content of a part's JSON file.

    Raises:
        UserError: If the file is missing or damaged.
    """
    if not file.is_file():
        raise UserError(f"{file}: missing, so this is not a model in diffusers' layout")
    return read_record(file)
