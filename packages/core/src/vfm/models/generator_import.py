"""Importing diffusion models: a folder in diffusers' layout becomes a GeneratorCheckpoint."""

from __future__ import annotations

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import list_repo_files, snapshot_download
from safetensors import safe_open

from vfm.artifacts import GeneratorCheckpoint
from vfm.config import UserError
from vfm.installation import how_to_install
from vfm.models.model_sources import fetch, local_folder
from vfm.models.weights import check_finite_weights
from vfm.stage import Context
from vfm.stages.models import HUB_PREFIX, ImportGenerator
from vfm.store_files import naming, read_record, reading

DENOISERS = ("unet", "transformer")
SCHEDULER_FILE = "scheduler/scheduler_config.json"
# The files that are copied or downloaded. Repositories also hold single-file copies of all parts, 5 GB each, weights in
# other formats, and parts that are not used here (safety checkers, image encoders).
NEEDED = (
    "model_index.json",
    *(
        f"{part}/{file}"
        for part in (*DENOISERS, "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
        for file in ("*.json", "diffusion_pytorch_model*.safetensors", "model*.safetensors")
    ),
    *(f"tokenizer{suffix}/*" for suffix in ("", "_2", "_3")),
    "scheduler/*.json",
    "condition/*",  # of a prior trained here
    "pixels/*.json",
)
VARIANTS = ("*.fp16.*", "*.non_ema.*", "*.bin", "*.ckpt", "*/.*")  # never copied
# Whole weights or shards; a suffix such as `.fp16` names another variant of the same weights.
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
Prediction = Literal["epsilon", "v", "flow"]
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "flow_prediction": "flow"}


def import_generator_checkpoint(config: ImportGenerator, ctx: Context) -> GeneratorCheckpoint:
    """Run `models.generator`: download the model if it is not local, and copy it."""
    return import_generator(config.source, ctx.directory)


def import_generator(source: str, directory: Path) -> GeneratorCheckpoint:
    """Copy a diffusion model into `directory`: denoiser, scheduler and any other parts (VAE, text encoder).

    Only the files in `NEEDED` are taken.

    Args:
        source: a folder in diffusers' layout, also as `local-dir:folder`; or `hf-hub:org/model`, with `@revision` for
            one commit, branch or tag.
        directory: folder of the copy.

    Raises:
        UserError: the model does not exist or is not in diffusers' layout; the weights of its denoiser, VAE or text
            encoders are missing, pickled, of half precision only, not finite or do not fit their configuration; a
            tokenizer is missing; or diffusers is not installed.
    """
    folder = _find_folder(source)
    facts = read_facts(folder)
    _check_parts(folder, source)
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and _is_needed(name):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, directory / name)
            if _WEIGHTS.fullmatch(file.name):
                _check_finite(file)
    return GeneratorCheckpoint.create(directory, **facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of a `GeneratorCheckpoint` for a folder in diffusers' layout.

    Raises:
        UserError: a part is missing, or the denoiser has no cross-attention.
    """
    file = folder / denoiser_folder(folder) / "config.json"
    config = _read_json(file)
    with naming(file, "the configuration of a denoiser"):
        size = int(config.get("sample_size") or 64)
        width = config.get("cross_attention_dim") or config.get("joint_attention_dim")
        condition = int((width[0] if isinstance(width, list) else width) or 0)
    if not condition:
        raise UserError(f"{folder}: its denoiser has no cross-attention, so it cannot be conditioned")
    prediction = _prediction(_read_json(folder / SCHEDULER_FILE), folder)
    return {"sample_size": size, "condition_width": condition, "prediction": prediction}


def denoiser_folder(folder: Path) -> str:
    """Return the name of the denoiser's folder: `unet` or `transformer`.

    Raises:
        UserError: neither exists.
    """
    for name in DENOISERS:
        if (folder / name / "config.json").is_file():
            return name
    raise UserError(f"{folder}: not in diffusers' layout (neither unet/config.json nor transformer/config.json exists)")


def _find_folder(source: str) -> Path:
    if folder := local_folder(source):
        return folder
    if not source.startswith(HUB_PREFIX):
        raise UserError(f"{source}: no such folder; write a model of the hub as hf-hub:org/model")
    repo, revision = _repository(source)
    files: dict[str, Any] = {"allow_patterns": list(NEEDED), "ignore_patterns": list(VARIANTS), "revision": revision}
    return Path(fetch(source, lambda: snapshot_download(repo, **files)))


def _repository(source: str) -> tuple[str, str | None]:
    """Split `hf-hub:org/model@revision`; without a revision the hub's newest is read."""
    repo, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    return repo, revision or None


def _is_needed(name: str) -> bool:
    wanted = any(fnmatch(name, pattern) for pattern in NEEDED)
    return wanted and not any(fnmatch(name, pattern) for pattern in VARIANTS)


def _check_parts(folder: Path, source: str) -> None:
    """Check denoiser, VAE, text encoders and tokenizers, without reading weights.

    A part is expected if its folder exists or `model_index.json` names it.
    """
    try:
        import diffusers
    except ImportError:
        raise UserError(f"models.generator needs diffusers: {how_to_install('vfm-diva')}") from None
    index_file = folder / "model_index.json"
    index = _read_json(index_file) if index_file.is_file() else {}
    named = {name for name, value in index.items() if isinstance(value, list) and None not in value}

    def expected(name: str) -> bool:
        return name in named or (folder / name).is_dir()

    _check_weights(folder / denoiser_folder(folder), diffusers, source)
    if expected("vae"):
        _check_weights(folder / "vae", diffusers, source)
    for suffix in ("", "_2", "_3"):
        if expected(f"text_encoder{suffix}"):
            _check_text_encoder(folder / f"text_encoder{suffix}", source)
            _check_tokenizer(folder / f"tokenizer{suffix}")


def _check_weights(folder: Path, diffusers: Any, source: str) -> None:
    """Compare names and shapes of the weights with the configuration, without reading the weights."""
    config = _read_json(folder / "config.json")
    model_class = getattr(diffusers, str(config.get("_class_name")), None)
    if model_class is None:
        raise UserError(f"{folder}: diffusers has no {config.get('_class_name')!r}")
    found = _shapes(folder, source)
    with naming(folder / "config.json", "the configuration of a part"), torch.device("meta"):
        model = model_class.from_config(config)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    _compare(folder, shapes, {_current(key, shapes): shape for key, shape in found.items()})


# Names of a VAE's attention before diffusers 0.14, which diffusers converts when it reads them.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _current(key: str, expected: dict[str, list[int]]) -> str:
    """Return the name that diffusers gives to a tensor with this name in a file."""
    head, _, last = key.rpartition(".")
    head, _, layer = head.rpartition(".")
    new = f"{head}.{_OLD_NAMES.get(layer, layer)}.{last}"
    return key if key in expected or new not in expected else new


def _check_text_encoder(folder: Path, source: str) -> None:
    """Compare the weights of a text encoder with its configuration, as far as transformers is installed."""
    config = _read_json(folder / "config.json")
    found = _shapes(folder, source)
    try:
        import transformers
    except ImportError:  # an optional extra, which only prompts need
        return
    name = next(iter(config.get("architectures") or []), None)
    model_class: Any = getattr(transformers, str(name), None)
    if model_class is None:
        raise UserError(f"{folder}: transformers has no {name!r}")
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(config))
    tied: dict[int, list[str]] = {}
    for key, value in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(value), []).append(key)
    shapes = {key: list(value.shape) for key, value in model.named_parameters(remove_duplicate=False)}
    bare = {_bare(key): shape for key, shape in found.items() if not key.endswith("position_ids")}
    expected: dict[str, list[int]] = {}
    for names in tied.values():  # one name of tied weights is enough in the file
        present = [key for key in names if _bare(key) in bare] or names[:1]
        expected.update({_bare(key): shapes[key] for key in present})
    _compare(folder, expected, bare)


def _bare(key: str) -> str:
    """Return a text encoder's key without the prefix that some versions of transformers write."""
    return key.removeprefix("text_model.")


def _check_tokenizer(folder: Path) -> None:
    # Without these files transformers makes an empty tokenizer, whose maximum length is no number of tokens.
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        raise UserError(
            f"{folder}: no tokenizer found: expected tokenizer.json, vocab.json with merges.txt, or spiece.model"
        )


def _compare(folder: Path, expected: dict[str, list[int]], found: dict[str, list[int]]) -> None:
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{folder}: its weights do not fit its configuration: {len(wrong)} keys differ, first {key}: expected "
            f"{expected.get(key, 'no such key')}, got {found.get(key, 'no such key')}"
        )


def _shapes(folder: Path, source: str) -> dict[str, list[int]]:
    """Return the shape of every tensor in a folder's safetensors files, which may be several shards."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if _WEIGHTS.fullmatch(file.name)]
    if not files:
        if half := _half_precision(folder, source):
            raise UserError(f"{folder}: fp16 variant only ({half}); expected the weights without a variant's suffix")
        raise UserError(f"{folder}: no safetensors; pickled weights are not read")
    shapes: dict[str, list[int]] = {}
    for file in files:
        with reading(file, "safetensors"), safe_open(file, framework="pt") as content:
            shapes.update({key: content.get_slice(key).get_shape() for key in content.keys()})  # noqa: SIM118
    return shapes


def _check_finite(file: Path) -> None:
    """Check a file's weights; tensors are read one by one, since together they may exceed the memory."""
    with reading(file, "safetensors"), safe_open(file, framework="pt") as content:
        for key in content.keys():  # noqa: SIM118
            check_finite_weights({key: content.get_tensor(key)}, file)


def _half_precision(folder: Path, source: str) -> str | None:
    """Return the name of a part's fp16 weights, in its folder or, as they are not downloaded, on the hub."""
    if local := sorted(folder.glob("*.fp16*.safetensors")):
        return local[0].name
    if not source.startswith(HUB_PREFIX):
        return None
    repo, revision = _repository(source)
    try:
        names = list_repo_files(repo, revision=revision)
    except Exception:  # only the reason in an error's line depends on it
        return None
    found = sorted(name for name in names if fnmatch(name, f"{folder.name}/*.fp16*.safetensors"))
    return found[0].rpartition("/")[2] if found else None


def _prediction(scheduler: dict[str, Any], folder: Path) -> Prediction:
    if str(scheduler.get("_class_name", "")).startswith("FlowMatch"):  # these have no `prediction_type`
        return "flow"
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise UserError(
            f"{folder}: prediction_type of its scheduler: expected one of {', '.join(_PREDICTIONS)}, got {prediction!r}"
        )
    return _PREDICTIONS[prediction]


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: missing, so this is not a model in diffusers' layout")
    return read_record(file)
