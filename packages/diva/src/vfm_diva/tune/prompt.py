"""Text states of a text-to-image model's constant prompt, from its text encoders."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor

from vfm.models import check_encoder_classes, without_custom_code
from vfm.plugin import UserError, how_to_install, store_files
from vfm_diva.generator.conditioning import Conditioning

INDEX_FILE = "model_index.json"
ENCODERS = ("text_encoder", "tokenizer")  # prefixes of the parts' names
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")  # one of them


def check_encoder(folder: Path) -> None:
    """Check that a generator's folder has its text encoders and the index that names its pipeline.

    Raises:
        UserError: If one of them is missing, or belongs to another library than transformers.
    """
    for file in (INDEX_FILE, f"{ENCODERS[0]}/config.json"):
        if not (folder / file).is_file():
            raise UserError(f"{folder}: no {file} found, so the prompt cannot be encoded; prompt or combine needs it")
    # Without these files transformers makes an empty tokenizer, whose maximum length is not a number of tokens.
    if not any((folder / ENCODERS[1] / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"{folder / ENCODERS[1]}: no tokenizer found, so the prompt cannot be encoded")
    index = store_files.read_record(folder / INDEX_FILE)
    check_encoder_classes(index, folder / INDEX_FILE)
    for name, part in index.items():
        # SD 3 is often saved without T5, whose states are then zeros, as in diffusers.
        if name.startswith(ENCODERS) and not name.endswith("_3") and isinstance(part, list) and None in part:
            raise UserError(f"{folder}: {INDEX_FILE} has no {name}, so the prompt's text states would lack its part")


def encode_prompt(folder: Path, text: str) -> Conditioning:
    """Encode a prompt to text states, B = 1. Errors are as in `PromptEncoder`."""
    return PromptEncoder(folder)([text])


class PromptEncoder:
    """Encodes prompts as the pipeline of a generator's folder does. Only its text encoders are loaded.

    Raises:
        UserError: If there is no text encoder, transformers is not installed, or diffusers has no such pipeline.
    """

    def __init__(self, folder: Path) -> None:
        check_encoder(folder)
        index = store_files.read_record(folder / INDEX_FILE)
        kind: Any = getattr(diffusers, str(index.get("_class_name")), None)
        if not inspect.isclass(kind) or not issubclass(kind, diffusers.DiffusionPipeline):
            raise UserError(f"{folder / INDEX_FILE}: diffusers has no pipeline {index.get('_class_name')!r}")
        parts = [name for name, value in index.items() if isinstance(value, list) and not name.startswith(ENCODERS)]
        third = [f"{part}_3" for part in ENCODERS if f"{part}_3" in inspect.signature(kind.__init__).parameters]
        absent = dict.fromkeys(parts if (folder / f"{ENCODERS[0]}_3").is_dir() else [*parts, *third])
        with store_files.naming(folder, "a text encoder"), without_custom_code(folder), quiet_loading():
            try:
                self.pipeline = kind.from_pretrained(folder, **absent)  # type: ignore[attr-defined]
            except ImportError:  # diffusers has dummy classes if transformers is missing
                raise UserError(f"a prompt needs transformers: {how_to_install('vfm-diva[prompt]')}") from None

        if getattr(self.pipeline, "text_encoder_3", self) is None:  # the zeros have the width of the denoiser's context
            config = store_files.read_record(folder / "transformer" / "config.json")
            self.pipeline.transformer = SimpleNamespace(config=SimpleNamespace(**config))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """Encode B prompts to text states."""
        known = inspect.signature(self.pipeline.encode_prompt).parameters
        arguments = {
            "prompt": list(texts),
            "prompt_2": list(texts),
            "prompt_3": list(texts),
            "device": torch.device("cpu"),
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": False,
        }
        states, *rest = self.pipeline.encode_prompt(**{key: value for key, value in arguments.items() if key in known})
        vectors = []
        masks = []
        for value in rest:
            if isinstance(value, Tensor) and value.ndim == 2 and len(value) == len(texts):
                if value.is_floating_point():
                    vectors.append(value)
                else:
                    masks.append(value)
        if masks:  # PixArt's, of the padding after a prompt
            states = without_padding(states, masks[0], texts)
        return Conditioning(states, vectors[0] if vectors else None).map(Tensor.float)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the libraries' progress bars, and their warnings about parts that are left out on purpose."""
    logs: list[Any] = []
    for name in ("diffusers", "transformers"):
        if find_spec(name):
            logs.append(import_module(f"{name}.utils.logging"))
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (verbosity, shows_bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if shows_bars:
                log.enable_progress_bar()


def without_padding(states: Tensor, mask: Tensor, texts: Sequence[str]) -> Tensor:
    """Cut the padding off text states.

    Args:
        states: (B, L, W).
        mask: True for tokens, (B, L).
        texts: The prompts, for messages.

    Raises:
        UserError: If the prompts have different numbers of tokens.
    """
    lengths = mask.sum(dim=1).tolist()
    if len(set(lengths)) > 1:
        raise UserError(
            f"prompts of different lengths need a mask, which is not supported: expected {lengths[0]} tokens each, as"
            f" {texts[0]!r} has, got {max(lengths)}"
        )
    return states[:, : lengths[0]]
