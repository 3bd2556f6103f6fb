"""The command that finds images by words or by other images: search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vfm.base import UserError, load_function
from vfm.cli.command import DataOption, DebugOption, command, note, show
from vfm.cli.models import DeviceOption, PretrainedOption
from vfm.flow.requests.data_options import read_data_options


@command
def search(
    queries: Annotated[
        list[str], typer.Argument(metavar="QUERY...", help='What to find: words ("a red boat"), or an image file.')
    ],
    index: Annotated[Path, typer.Option(readable=False, help="Embeddings from `vfm embed`.")],
    top: Annotated[int, typer.Option(min=1, help="Number of results of a query.")] = 9,
    out: Annotated[
        Path, typer.Option(readable=False, help="PNG file for the images, with a row for each query.")
    ] = Path("search.png"),
    data: Annotated[
        str, typer.Option(help="The dataset of the index, for its images. Default: where the index was made.")
    ] = "",
    data_option: DataOption = None,
    model: Annotated[
        str | None, typer.Option(help="Model, as for `vfm embed`. Default: the model that made the index.")
    ] = None,
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Find images by words or by other images, and draw them. Words need a CLIP model."""
    if out.suffix != ".png":
        raise UserError(f"--out {out}: expected a .png file, got {out.suffix or 'no suffix'}")
    options = read_data_options(data_option or ())
    find = load_function("vfm.api.search:search")  # imports torch
    result = find(queries, index, model=model, pretrained=pretrained, top=top, device=device, warn=note)
    for query, hits in zip(result.queries, result.hits, strict=True):
        show(query)
        for hit in hits:
            text = "" if hit.text == hit.key else hit.text  # in an index of texts, the key is the text
            show(f"  {hit.score:6.3f}  {hit.key}  {text}".rstrip())
    dataset = data or result.index.data
    if not dataset:
        note(f"{index} does not have the path of its images: give --data to draw them")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    result.sheet(dataset, options).save(out)
    show(f"images: {out}")
