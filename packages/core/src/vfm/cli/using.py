"""Verbs that use a model: embed, predict, view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from vfm.cli.command import DebugOption, console, errors, verb
from vfm.config import UserError
from vfm.flow.listeners import ConsoleListener
from vfm.stage import Context

if TYPE_CHECKING:
    from torch import Tensor

ModelArgument = Annotated[
    str, typer.Argument(help="A checkpoint's folder, or a model by name, file or hf-hub:org/model.")
]
ImagesArgument = Annotated[list[Path], typer.Argument(readable=False, help="Image files.")]
PretrainedOption = Annotated[
    str | None, typer.Option(help="open_clip's tag for a name, or a file of weights, as models.clip takes it.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Images a forward pass.")]


@verb
def embed(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(help="A data set's folder, or a path as data.pairs takes it.")],
    out: Annotated[Path, typer.Option(readable=False, help="The file to write: .parquet or .npy.")],
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 64,
    max_bad_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of bad images that is borne.")] = 0.05,
    debug: DebugOption = False,
) -> None:
    """Write the embeddings of a data set's images, unit vectors in order, to Parquet or npy."""
    from vfm.cli.opening import full_name, open_device, open_images, open_model
    from vfm.eval.embeddings import embed_dataset, open_writer
    from vfm.eval.encode import Reading

    writer = open_writer(out, full_name(model, pretrained))
    with TemporaryDirectory() as folder:
        source = open_images(data, Path(folder))
        encoder = open_model(model, pretrained, open_device(device))
        with _told("embed", Path(folder)) as ctx, writer:
            bad = embed_dataset(ctx, source, encoder, writer, Reading(batch_size, max_bad_fraction))
    skipped = f"; skipped: {', '.join(f'{count} {reason}' for reason, count in bad.items())}" if bad else ""
    told = f"{out}: {len(source) - bad.total():,} embeddings{skipped}"
    console.print(escape(told), highlight=False, soft_wrap=True)


@verb
def predict(
    model: ModelArgument,
    images: ImagesArgument,
    classes: Annotated[
        str | None,
        typer.Option(help="Names to choose from: a file, one a line, or a list with commas. Default: the head's own."),
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt of a CLIP model, with a {} for the name.")] = "a photo of a {}.",
    index: Annotated[
        Path | None, typer.Option(readable=False, help="Embeddings by `vfm embed`: show the nearest of them instead.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Answers to show.")] = 5,
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Say what is on pictures: the likeliest names, or the nearest pictures of an index."""
    from vfm.cli.opening import full_name, open_device, open_model, open_pictures, read_classes

    if classes and index:
        raise UserError("--classes are names to choose from, --index holds pictures to find: give one of them")
    names = read_classes(classes) if classes else []
    pictures = open_pictures(images)
    encoder = open_model(model, pretrained, open_device(device))
    if index:
        words, scores = _neighbours(encoder, full_name(model, pretrained), pictures, index)
    else:
        words, scores = _classes(encoder, model, pictures, names, template)
    for file, row in zip(images, scores, strict=True):
        console.print(escape(str(file)), highlight=False, soft_wrap=True)
        best = row.topk(min(top, len(words)))
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            console.print(f"  {value:6.3f}  {escape(words[place])}", highlight=False, soft_wrap=True)


def _classes(
    encoder: Any, model: str, pictures: list[Any], names: list[str], template: str
) -> tuple[list[str], Tensor]:
    """The names to choose from, and the probability of each for each picture."""
    from vfm.eval.encode import PooledVision, logit_scale
    from vfm.eval.judges.classify import columns_of
    from vfm.eval.zero_shot import ensemble_templates, fill_templates
    from vfm.models.class_names import class_names_of

    if isinstance(encoder, PooledVision):
        num_classes = int(encoder.module.num_classes)  # type: ignore[arg-type]
        if not num_classes:
            raise UserError(f"{model}: it has no classification head; give --index, embeddings by vfm embed")
        known = names or class_names_of(encoder.module) or [f"class {number}" for number in range(num_classes)]
        columns_of(known, num_classes, known, model)
        return known, encoder.logits(pictures).softmax(dim=-1)
    if not names:
        raise UserError(f"{model}: a CLIP model chooses among names; give --classes, or --index")
    prompts = encoder.encode_texts(fill_templates(names, [template]))
    classifier = ensemble_templates(prompts.view(len(names), 1, -1))
    logits = logit_scale(encoder) * encoder.encode_images(pictures) @ classifier.T
    return names, logits.softmax(dim=-1)


def _neighbours(encoder: Any, model: str, pictures: list[Any], index: Path) -> tuple[list[str], Tensor]:
    """What lies in the index, and the cosine of each with each picture."""
    from torch.nn.functional import normalize

    from vfm.eval.embeddings import read_embeddings

    known = read_embeddings(index)
    found = encoder.encode_images(pictures)
    if found.shape[1] != known.vectors.shape[1]:
        made = f", which {known.model} made," if known.model else ""
        raise UserError(
            f"{index}: its embeddings{made} have {known.vectors.shape[1]} channels, those of {model} {found.shape[1]};"
            " make them with the same model"
        )
    if known.model and known.model != model:
        errors.print(
            escape(f"{index}: {known.model} made it, not {model}; if they differ, how near pictures are means nothing"),
            highlight=False,
            soft_wrap=True,
        )
    words = [f"{key}  {text}".rstrip() for key, text in zip(known.keys, known.texts, strict=True)]
    return words, found @ normalize(known.vectors, dim=-1).T


@verb
def view(
    model: ModelArgument,
    images: ImagesArgument,
    out: Annotated[Path, typer.Option(readable=False, help="The folder to write PNG files into.")],
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Show what a model's patches say of pictures: features as colours, how like the whole each is, and attention."""
    from PIL import Image

    from vfm.cli.opening import open_device, open_model, open_pictures
    from vfm.eval.semantic import semantic_views

    pictures = open_pictures(images)
    encoder = open_model(model, pretrained, open_device(device))
    out.mkdir(parents=True, exist_ok=True)
    for number, (file, shown) in enumerate(zip(images, semantic_views(encoder, pictures), strict=True)):
        twice = [other.stem for other in images].count(file.stem) > 1
        target = out / f"{file.stem}{f'-{number}' if twice else ''}.png"
        Image.fromarray(shown.sheet()).save(target)
        console.print(escape(str(target)), highlight=False, soft_wrap=True)


@contextmanager
def _told(verb_name: str, folder: Path) -> Iterator[Context]:
    """A context whose progress is a bar on the console."""
    listener = ConsoleListener(console)
    listener.on_stage_started(verb_name, {"kind": "", "status": "new"})
    try:
        yield Context(verb_name, folder, folder, {}, listener.vfm_event)
    finally:
        listener.close()
