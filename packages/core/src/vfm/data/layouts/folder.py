"""List folders of images, with captions in text files of the same name, or with one subfolder per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vfm.base import UserError
from vfm.data.samples.caption_templates import columns_of
from vfm.data.samples.captions import captions_at, captions_in, captions_of, decode_json, field_of
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import CURES, BadSample
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.image_list import ImageEntry, printable
from vfm.storage import files

CLASS_FOLDER = "label"  # location of the name of an image's class folder, for captions
# Names of text files, and extensions of files, that may be among images. A file with any other extension counts as an
# unsupported image.
DOCUMENTATION = {"readme", "license", "notice", "classnames", "classes", "labels", "captions", "metadata", "index"}
NOT_IMAGES = {
    "txt", "json", "jsonl", "csv", "tsv", "parquet", "xml", "md", "rst", "html", "pdf", "yaml", "yml", "toml", "db",
    "ini", "cfg", "log", "py", "ipynb", "sh", "npy", "npz", "pt", "mat", "tar", "gz", "zip", "lock", "tmp", "part",
}  # fmt: skip


def image_names(folder: str) -> list[str]:
    """List the paths of the images below a folder, relative to it, sorted, without hidden files.

    Raises:
        UserError: If there are no images.
    """
    return _images(folder, *_visible(folder))


def _images(folder: str, visible: list[str], links: list[str]) -> list[str]:
    """Select the images among the files of a folder, of which there must be at least one."""
    names = [name for name in visible if _extension(name) in IMAGE_EXTENSIONS]
    if not names and links:
        more = f"{links[0]} is a link to a folder{CURES['linked_folder']}"
        raise UserError(f"{folder}: no images found; {more}")
    if not names:
        raise UserError(f"{folder}: no images found ({', '.join(IMAGE_EXTENSIONS)})")
    return names


def image_folder(folder: str, spec: DatasetSpec) -> Iterator[ImageEntry]:
    """Yield the images below a folder, then the files with an unknown extension. The keys are the file names.

    If the spec has optional captions, they are read from the text files next to the images.
    """
    visible, links = _visible(folder)
    listed, columns = set(visible), columns_of(spec.texts.values())
    for name in _images(folder, visible, links):
        path = f"{folder.rstrip('/')}/{name}"
        texts = {}
        if CLASS_FOLDER in columns or any(f"{_stem(name)}.{column}" in listed for column in columns):
            texts = _captions(folder, name, spec)
        yield ImageEntry(name, path, texts)
    yield from _unknown(folder, visible, columns)
    yield from _linked(folder, links)


def caption_folder(folder: str, spec: DatasetSpec) -> Iterator[ImageEntry]:
    """Yield images with the captions next to them: `a.jpg` with `a.txt`, or with `a.json` if `texts` is `json.FIELD`.

    Then yield files with an unknown extension and captions without an image.
    """
    stems = set()
    visible, links = _visible(folder)
    for name in _images(folder, visible, links):
        path = f"{folder.rstrip('/')}/{name}"
        stems.add(_stem(name))
        try:
            yield ImageEntry(_stem(name), path, _captions(folder, name, spec))
        except BadSample as bad:  # its address is the image, or the caption that cannot be read
            yield ImageEntry(_stem(name), bad.where, problem=bad)
    extensions = columns_of(spec.texts.values())
    for entry in _unknown(folder, visible, extensions):
        stems.add(entry.key)
        yield entry
    folders = {stem.rpartition("/")[0] for stem in stems}
    for name in visible:
        if _extension(name) in extensions and _stem(name) not in stems and _is_beside_images(_stem(name), folders):
            stems.add(_stem(name))
            path = f"{folder.rstrip('/')}/{name}"
            yield ImageEntry(_stem(name), path, problem=BadSample("missing_image", path))
    yield from _linked(folder, links)


def _is_beside_images(stem: str, folders: set[str]) -> bool:
    """Check whether a text file is in a folder with images, and does not have a name of documentation."""
    folder, _, name = stem.rpartition("/")
    return folder in folders and name.lower() not in DOCUMENTATION


def _unknown(folder: str, names: list[str], texts: Sequence[str] = ()) -> Iterator[ImageEntry]:
    known = {*IMAGE_EXTENSIONS, *NOT_IMAGES, *texts}
    for name in names:
        extension = _extension(name)
        if extension and extension not in known:
            path = f"{folder.rstrip('/')}/{name}"
            yield ImageEntry(_stem(name), path, problem=BadSample("unknown_extension", path))


def _linked(folder: str, links: list[str]) -> Iterator[ImageEntry]:
    """Yield the links to folders, whose images are not read, since a link may lead out of the folder."""
    for name in links:
        path = f"{folder.rstrip('/')}/{name}"
        yield ImageEntry(name, path, problem=BadSample("linked_folder", path))


def _visible(folder: str) -> tuple[list[str], list[str]]:
    """List the files below a folder, and the links to folders, without hidden ones."""
    links: list[str] = []
    names = [name for name in files.walk(folder, links) if "/." not in f"/{name}"]
    return names, [name for name in links if "/." not in f"/{name}"]


def _extension(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    if not dot or not stem or "/" in extension:
        return ""
    return extension.lower()


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _captions(folder: str, name: str, spec: DatasetSpec) -> dict[str, list[str]]:
    """Read the captions of an image. In a template, `{label}` is the name of its class folder."""
    image = f"{folder.rstrip('/')}/{name}"

    def value_at(location: str) -> object:
        if location == CLASS_FOLDER:
            return printable(name.rpartition("/")[0].partition("/")[0])
        return _text_beside(image, location)

    return captions_of(spec, lambda location: captions_at(location, value_at, spec, image), image)


def _text_beside(image: str, location: str) -> object:
    """Read a text file, or a field of a json file, with the name of an image. None if there is no such file."""
    extension, _, rest = location.partition(".")
    path = f"{image.rpartition('.')[0]}.{extension}"
    try:
        data = files.read_bytes(path)
    except OSError:
        return None
    if extension == "json":
        return field_of(decode_json(data, path), rest)
    return captions_in(data, rest, path)


def class_folders(folder: str, class_names: Sequence[str] = ()) -> tuple[list[str], list[ImageEntry]]:
    """List class names (the sorted subfolders) and images, as torchvision's ImageFolder does.

    If `class_names` has the names of all subfolders, it gives their labels, and some of its classes may have no images.

    Raises:
        UserError: If an image is not in a class folder.
    """
    visible, links = _visible(folder)
    names = _images(folder, visible, links)
    class_of = {}
    for name in names:
        subfolder, slash, _ = name.partition("/")
        if not slash:
            raise UserError(f"{folder}: expected one folder per class, but {name} is in none")
        class_of[name] = printable(subfolder)
    classes = sorted(set(class_of.values()))
    numbered = class_names if set(classes) <= set(class_names) else classes
    label_of = {name: label for label, name in enumerate(numbered)}
    root = folder.rstrip("/")
    entries = [ImageEntry(_stem(name), f"{root}/{name}", label=label_of[class_of[name]]) for name in names]
    in_subfolders = [name for name in visible if "/" in name]
    return classes, [*entries, *_unknown(folder, in_subfolders), *_linked(folder, links)]
