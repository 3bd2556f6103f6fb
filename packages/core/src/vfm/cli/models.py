"""The commands `embed`, `predict`, `view` and `export`. They import torch only when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vfm.api.paths import check_images_exist
from vfm.base import UserError, load_function
from vfm.cli.command import DataOption, DebugOption, command, console, note, show
from vfm.cli.terminal import completion
from vfm.flow.listeners.listeners import ConsoleListener
from vfm.flow.requests.data_options import read_data_options
from vfm.interfaces import FACTS_FILE, DenseCheckpoint
from vfm.storage import files

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Folder of a checkpoint, or a model by file, hf-hub:org/model, or name: NAME,TAG for a pretrained tag,"
        " NAME,none for random weights.",
        autocompletion=completion.models,
    ),
]
ImagesArgument = Annotated[list[str], typer.Argument(help="Image files, or folders of them.")]
FilesArgument = Annotated[
    list[str], typer.Argument(help="Image files, or folders of them; video files with a video classifier.")
]
PretrainedOption = Annotated[
    str | None, typer.Option(help="Pretrained tag of an open_clip name, or a file of weights, as in models.clip.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]


@command
def embed(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(readable=False, help="File to write: .parquet or .npy.")],
    data: Annotated[str | None, typer.Argument(help="Folder of a dataset, or any path of data.pairs.")] = None,
    texts: Annotated[
        Path | None, typer.Option(readable=False, help="Embed the lines of this file instead, with a CLIP model.")
    ] = None,
    data_option: DataOption = None,
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 64,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Tolerated fraction of images that cannot be read.")
    ] = 0.05,
    debug: DebugOption = False,
) -> None:
    """Write embeddings of images, videos or texts to a file.

    The file, Parquet or npy, holds unit vectors in the order of the dataset or the lines. Videos need a video
    classifier. `vfm search` and `vfm predict --index` search in it.
    """
    if (data is None) == (texts is None):
        raise UserError("give either DATA (a dataset of images or videos) or --texts (a file with a text per line)")
    lines = _texts(texts) if texts else []
    from vfm.api.embedding import embed as embed_all, write_embeddings
    from vfm.api.inputs import full_name
    from vfm.api.results import skipped_note
    from vfm.api.search import kept_place
    from vfm.eval import open_writer
    from vfm.plugin import ReadSettings

    writer = open_writer(out, full_name(model, pretrained), kept_place(data or ""))
    if texts is not None:
        embeddings = embed_all(model, texts=lines, pretrained=pretrained, device=device, batch_size=batch_size)
        show(f"{embeddings.save(out)}: {len(lines):,} embeddings")
        return
    assert data is not None
    reading = ReadSettings(batch_size, max_bad_fraction)
    options = read_data_options(data_option or ())
    count, bad = write_embeddings(model, data, writer, ConsoleListener(console), pretrained, device, reading, options)
    show(f"{out}: {count:,} embeddings{skipped_note(bad)}")


def _texts(file: Path) -> list[str]:
    """Read a text from each line.

    Raises:
        UserError: If a line is blank, since the rows of the embeddings would no longer be those of the lines.
    """
    lines = files.read_text(str(file)).splitlines()
    blank = [str(number) for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        raise UserError(f"{file}: expected a text in every line, got blank lines: {', '.join(blank[:10])}")
    return lines


@command
def predict(
    model: ModelArgument,
    images: FilesArgument,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names: a file, one per line, or a comma-separated list. Default: the head's classes."),
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt of a CLIP model, with {} for the class.")] = "a photo of a {}.",
    prompts: Annotated[
        Path | None,
        typer.Option(readable=False, help="JSON of {class: [sentences]} for a CLIP model, in place of a template."),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(readable=False, help="Embeddings from `vfm embed`: show the nearest ones instead.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of results per image.")] = 5,
    draw: Annotated[
        bool, typer.Option("--draw", help="Model with a dense head: write images with boxes and masks, and a json.")
    ] = False,
    out: Annotated[Path, typer.Option(readable=False, help="Folder for the output of --draw.")] = Path("predictions"),
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Smallest score of a drawn or listed object.")] = 0.3,
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Classify, detect or segment images or videos; find neighbours.

    With an index, the nearest neighbours of the images are found. With a model that has a dense head, --draw writes a
    drawing of each image and, for a detector, `results.json` in COCO's format. image_id is the file name if it is a
    number. If names are not unique numbers, images are numbered in the order given.
    """
    check_images_exist(images)
    from vfm.api.inputs import artifact_of, local_file
    from vfm.api.prediction import TEMPLATE, Predictions, predict as predict_images

    paths = list(map(local_file, images))
    dense = artifact_of(model, DenseCheckpoint)
    if draw and not dense:
        reason = "no folder"
        if (Path(model) / FACTS_FILE).is_file():
            reason = "another model"
        elif Path(model).is_dir():
            reason = "a folder without a model"
        raise UserError(
            f"{model}: --draw expects the folder of a model with a dense head, as eva.detect's, got {reason}"
        )
    if dense and not (classes or prompts or index or pretrained or template != TEMPLATE):
        predict_dense = load_function("vfm.cli.dense_prediction:predict_dense")  # needs vfm-core[dense]
        predict_dense(dense, paths, device, out=out if draw else None, min_score=min_score)
        return
    predictions = predict_images(
        model,
        paths,
        classes,
        index=index,
        template=template,
        prompts=prompts,
        top=top,
        pretrained=pretrained,
        device=device,
        warn=note,
    )
    assert isinstance(predictions, Predictions)
    for file, best in zip(predictions.images, predictions.best(), strict=True):
        show(file)
        for label, score in best:
            show(f"  {score:6.3f}  {label}")


@command
def view(
    model: ModelArgument,
    images: ImagesArgument,
    out: Annotated[Path, typer.Option(readable=False, help="Folder to write PNG files to.")],
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Draw a model's patch features and attention.

    It writes a PNG file for each image, with the image, the principal components of its patch features, their
    similarity to the image feature, and the attention.
    """
    draw = load_function("vfm.api.viewing:view")  # imports torch
    views = draw(model, images, out, pretrained=pretrained, device=device)
    for file in views.files:
        show(str(file))
    if views.compared:
        show(f"{model}: {views.compared}")


@command
def export(
    model: Annotated[
        Path,
        typer.Argument(
            readable=False,
            help="Folder of an artifact, or of a model in the layout of open_clip, timm or HF.",
            autocompletion=completion.models,
        ),
    ],
    format: Annotated[  # noqa: A002
        str,
        typer.Option(
            help="timm, open_clip, hf, safetensors, onnx, eva or llava; pt2 (torch.export) for a segmenter.",
            autocompletion=completion.words("timm", "open_clip", "hf", "safetensors", "onnx", "eva", "llava", "pt2"),
        ),
    ],
    out: Annotated[Path, typer.Option("--out", readable=False, help="Folder to write; it must not exist.")],
    base: Annotated[
        Path | None,
        typer.Option(readable=False, help="For llava: folder of the LLaVA checkpoint whose vision tower is replaced."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check whether the model fits the format.")] = False,
    debug: DebugOption = False,
) -> None:
    """Export a model for other libraries.

    Supported are timm, open_clip, transformers, onnxruntime, EVA's original code and LLaVA.
    """
    export_model = load_function("vfm.api.exporting:export")  # imports torch
    exported = export_model(model, format, out, base=base, dry_run=dry_run)
    show(exported.title)
    for row in exported.table().to_pylist():
        show(f"{row['bytes']:>14,}  {row['file']}")
    for line in exported.notes:
        show(line)
