"""The work of `vfm predict`: class probabilities, or the nearest images of an index. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from vfm.cli.command import errors
from vfm.config import UserError
from vfm.eval import check_finite, ensemble_templates, fill_templates, logit_scale, read_embeddings
from vfm.eval.classify import columns_of
from vfm.models import ClipModel, PooledVision, class_names_of


def class_probabilities(
    encoder: ClipModel | PooledVision, model: str, images: Sequence[Image.Image], names: list[str], template: str
) -> tuple[list[str], Tensor]:
    """Return class names and their probabilities for each image, (B, num_classes).

    Args:
        encoder: a CLIP model, or a vision model with a classification head.
        model: its name, for error messages.
        images: B images.
        names: the classes; empty: those of the head.
        template: prompt of a CLIP model, with `{}` for the class.

    Raises:
        UserError: a CLIP model without names, an encoder without a head, or a wrong number of names.
    """
    if isinstance(encoder, PooledVision):
        num_classes = int(encoder.module.num_classes)  # type: ignore[arg-type]
        if not num_classes:
            raise UserError(f"{model}: it has no classification head; give --index, a file from `vfm embed`")
        known = names or class_names_of(encoder.module) or [f"class {number}" for number in range(num_classes)]
        columns_of(known, num_classes, known, model)
        return known, encoder.logits(list(images)).softmax(dim=-1)
    if not names:
        raise UserError(f"{model}: a CLIP model needs classes to choose from; give --classes or --index")
    prompts = encoder.encode_texts(fill_templates(names, [template]))
    classifier = ensemble_templates(prompts.view(len(names), 1, -1))
    logits = logit_scale(encoder) * encoder.encode_images(list(images)) @ classifier.T
    return names, logits.softmax(dim=-1)


def similarities(
    encoder: ClipModel | PooledVision, model: str, images: Sequence[Image.Image], index: Path
) -> tuple[list[str], Tensor]:
    """Return the entries of an index and their cosine similarity to each image, (B, num_entries).

    Args:
        encoder: the model.
        model: its full name, which is compared with that of the model that made the index.
        images: B images.
        index: embeddings, as `vfm embed` writes them.

    Raises:
        UserError: the index does not exist, is damaged, or has embeddings of another width.
    """
    known = read_embeddings(index)
    found = encoder.encode_images(list(images))
    if found.shape[1] != known.vectors.shape[1]:
        made = f" of {known.model}" if known.model else ""
        raise UserError(
            f"{index}: expected embeddings with {found.shape[1]} channels, as {model} makes them, got embeddings{made}"
            f" with {known.vectors.shape[1]}; use the same model for both"
        )
    if known.model and known.model != model:
        message = f"{index}: made with {known.model}, not with {model}; similarities of different models mean nothing"
        errors.print(message, markup=False, highlight=False, soft_wrap=True)
    entries = [f"{key}  {text}".rstrip() for key, text in zip(known.keys, known.texts, strict=True)]
    check_finite(known.vectors, str(index), known.keys)
    return entries, found @ normalize(known.vectors, dim=-1).T
