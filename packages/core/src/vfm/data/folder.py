"""A folder of images: each with its captions in a text file of the same name, or in a subfolder that is its class."""

from __future__ import annotations

from collections.abc import Iterator

from vfm.config import UserError
from vfm.data import files
from vfm.data.captions import captions_in, clean_captions, decode_json, field_of, require_captions
from vfm.data.image_list import ImageEntry
from vfm.data.sample import BadSample
from vfm.data.spec import DatasetSpec
from vfm.data.webdataset import IMAGE_EXTENSIONS


def image_names(folder: str) -> list[str]:
    """Paths of the images below a folder, relative to it, sorted; hidden files are left out.

    Raises:
        UserError: there are none.
    """
    names = [
        name
        for name in files.walk(folder)
        if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and "/." not in f"/{name}"
    ]
    if not names:
        raise UserError(f"{folder}: no images here ({', '.join(IMAGE_EXTENSIONS)})")
    return names


def caption_folder(folder: str, spec: DatasetSpec) -> Iterator[ImageEntry]:
    """Images with the captions beside them: `a.jpg` with `a.txt`, or with `a.json` where `texts` says `json.FIELD`."""
    for name in image_names(folder):
        path = f"{folder.rstrip('/')}/{name}"
        key, texts, problem = name.rpartition(".")[0], {}, None
        try:
            texts = {language: _captions(path, source) for language, source in spec.texts.items()}
            texts = require_captions(texts, path)
        except BadSample as bad:
            problem = bad
        yield ImageEntry(key, path, texts, problem=problem)


def _captions(image: str, source: str) -> list[str]:
    extension, _, rest = source.partition(".")
    path = f"{image.rpartition('.')[0]}.{extension}"
    try:
        data = files.read_bytes(path)
    except OSError:
        return []
    if extension == "json":
        return clean_captions(field_of(decode_json(data, path), rest), path)
    return captions_in(data, rest, path)


def class_folders(folder: str) -> tuple[list[str], list[ImageEntry]]:
    """Class names (the subfolders, sorted) and images of an ImageFolder, as torchvision reads it.

    Raises:
        UserError: images lie beside the class folders' places.
    """
    names = image_names(folder)
    if loose := [name for name in names if "/" not in name]:
        raise UserError(f"{folder}: {loose[0]} lies in no class folder; a folder for each class is wanted")
    classes = sorted({name.partition("/")[0] for name in names})
    number = {name: index for index, name in enumerate(classes)}
    root = folder.rstrip("/")
    entries = [
        ImageEntry(name.rpartition(".")[0], f"{root}/{name}", label=number[name.partition("/")[0]]) for name in names
    ]
    return classes, entries
