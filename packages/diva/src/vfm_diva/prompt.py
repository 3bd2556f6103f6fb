"""The constant prompt of a text-to-image model, and how an image's tokens are combined with its text states."""

# B batch, T tokens of an image, L of the prompt, W width of the context, P of the vector

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vfm.config import UserError
from vfm_diva.told import Told

Combine = Literal["replace", "add", "concatenate"]
INDEX_FILE = "model_index.json"
ENCODERS = ("text_encoder", "tokenizer")  # how the names of the parts begin


def check_encoder(folder: Path) -> None:
    """Refuses a generator's folder without a text encoder, or with one of several left out, or silent on their use.

    Raises:
        UserError: as it says.
    """
    for file in (INDEX_FILE, f"{ENCODERS[0]}/config.json"):
        if not (folder / file).is_file():
            raise UserError(f"{folder}: no {file} here, so it cannot encode the prompt that combine or it asks for")
    for name, part in json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")).items():
        if name.startswith(ENCODERS) and isinstance(part, list) and None in part:  # SD 3 saved without T5
            raise UserError(f"{folder}: {INDEX_FILE} has no {name}, so the prompt's text states would lack its part")


@torch.no_grad()
def encode_prompt(folder: Path, text: str) -> Told:
    """The text states of a prompt, B = 1, by the pipeline that the folder names; only its text encoders are loaded.

    Raises:
        UserError: there is no text encoder, transformers is not installed, or diffusers has no such pipeline.
    """
    check_encoder(folder)
    import diffusers

    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    kind: Any = getattr(diffusers, str(index.get("_class_name")), None)
    if kind is None:
        raise UserError(f"{folder / INDEX_FILE}: diffusers has no {index.get('_class_name')!r}")
    others = {name: None for name, value in index.items() if isinstance(value, list) and not name.startswith(ENCODERS)}
    try:
        pipeline = kind.from_pretrained(folder, **others)
    except (ImportError, OSError, ValueError) as error:  # diffusers has dummies where transformers is missing
        line = next(line.strip() for line in str(error).splitlines() if line.strip())
        raise UserError(
            f"{folder}: its text encoder cannot be loaded: {line[:300]} (pip install 'vfm-diva[prompt]')"
        ) from None
    known = inspect.signature(pipeline.encode_prompt).parameters
    wanted = {
        **dict.fromkeys(("prompt", "prompt_2", "prompt_3"), text),
        "device": torch.device("cpu"),
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    states, *rest = pipeline.encode_prompt(**{name: value for name, value in wanted.items() if name in known})
    vectors = [value for value in rest if isinstance(value, Tensor) and value.ndim == 2 and len(value) == 1]
    return Told(states, vectors[0] if vectors else None).map(Tensor.float)


def combined(image: Told, prompt: Told | None, how: Combine) -> Told:
    """What a generator is told of an image beside a prompt.

    Args:
        image: of each image; no tokens (T = 0) where it is told by the vector alone.
        prompt: B = 1; None is as `replace`.
        how: `replace`: the image's tokens in the place of the text states. `add`: element by element where there are
            as many, else each with the states' mean (DIVA's code, for 77 tokens and for other numbers). `concatenate`:
            after the states. A vector cannot grow, so `concatenate` leaves it the prompt's.
    """
    if prompt is None:
        return image
    prompt = prompt.expanded(len(image))
    return Told(_tokens(image.tokens, prompt.tokens, how), _pooled(image.pooled, prompt.pooled, how))


def _tokens(image: Tensor, states: Tensor, how: Combine) -> Tensor:
    if not image.shape[1]:
        return states
    if how == "replace":
        return image
    if how == "concatenate":
        return torch.cat([states, image], dim=1)
    return image + (states if states.shape[1] == image.shape[1] else states.mean(dim=1, keepdim=True))


def _pooled(image: Tensor | None, prompt: Tensor | None, how: Combine) -> Tensor | None:
    if image is None or prompt is None:
        return prompt if image is None else image
    if how == "add":
        return image + prompt
    return prompt if how == "concatenate" else image
