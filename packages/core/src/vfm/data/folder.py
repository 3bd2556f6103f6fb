"""Folders of images: captions in text files of the same name, or one subfolder per class."""

from __future__ import annotations

from collections.abc import Iterator

from vfm import files
from vfm.config import UserError
from vfm.data.captions import captions_in, clean_captions, decode_json, field_of, require_captions
from vfm.data.image_list import ImageEntry
from vfm.data.sample import BadSample
from vfm.data.spec import DatasetSpec
from vfm.data.webdataset import IMAGE_EXTENSIONS


def image_names(folder: str) -> list[str]:
    """Return the paths of the images below a folder, relative to it, sorted, without hidden files.

    Raises:
        UserError: there are no images.
    """
    names = [
        name
        for name in files.walk(folder)
        if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS and "/." not in f"/{name}"
    ]
    if not names:
        raise UserError(f"{folder}: no images found ({', '.join(IMAGE_EXTENSIONS)})")
    return names


def caption_folder(folder: str, spec: DatasetSpec) -> Iterator[ImageEntry]:
    """Yield images with the captions beside them: `a.jpg` with `a.txt`, or with `a.json` if `texts` is `json.FIELD`."""
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
    """Return class names (the sorted subfolders) and images, as torchvision's ImageFolder reads them.

    Raises:
        UserError: an image is in no class folder.
    """
    names = image_names(folder)
    if loose := [name for name in names if "/" not in name]:
        raise UserError(f"{folder}: expected one folder per class, but {loose[0]} is in none")
    classes = sorted({name.partition("/")[0] for name in names})
    number = {name: index for index, name in enumerate(classes)}
    root = folder.rstrip("/")
    entries = [
        ImageEntry(name.rpartition(".")[0], f"{root}/{name}", label=number[name.partition("/")[0]]) for name in names
    ]
    return classes, entries
