"""List folders of images, with captions in text files of the same name, or with one subfolder per class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vfm.base import UserError, positions
from vfm.data.layouts.folder_listing import FolderListing, extension, without_extension
from vfm.data.ledger.account import Account
from vfm.data.samples.caption_templates import columns_of
from vfm.data.samples.captions import captions_at, captions_in, captions_of, decode_json, field_of
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import BadSample
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
    return [name for _, name in FolderListing(folder).images()]


def image_folder(folder: str, spec: DatasetSpec, account: Account | None = None) -> Iterator[ImageEntry]:
    """Yield the images below a folder, then the files with an unknown extension. The keys are the file names.

    If the spec has optional captions, they are read from the text files next to the images.

    Args:
        folder: The folder.
        spec: Parts to read of each sample.
        account: Receives the sample of each entry of the folder.
    """
    listing = FolderListing(folder, account)
    columns = columns_of(spec.texts.values())
    captions = listing.beside(columns)
    for index, name in listing.images():
        texts = {}
        beside = _beside(name, columns, captions)
        if CLASS_FOLDER in columns or beside:
            texts = _captions(folder, name, spec)
        listing.give([index, *beside])
        yield ImageEntry(name, listing.path(name), texts)
    yield from _unknown(listing, columns)
    yield from _linked(listing)
    listing.finish()


def caption_folder(folder: str, spec: DatasetSpec, account: Account | None = None) -> Iterator[ImageEntry]:
    """Yield images with the captions next to them.

    The caption of `a.jpg` is in `a.txt`, or in `a.json` if `texts` is `json.FIELD`. Files with an unknown extension and
    captions without an image follow.

    Args:
        folder: As in `image_folder`.
        spec: As in `image_folder`.
        account: As in `image_folder`.
    """
    stems = set()
    listing = FolderListing(folder, account)
    columns = columns_of(spec.texts.values())
    captions = listing.beside(columns)
    for index, name in listing.images():
        stem = without_extension(name)
        stems.add(stem)
        listing.give([index, *_beside(name, columns, captions)])
        try:
            yield ImageEntry(stem, listing.path(name), _captions(folder, name, spec))
        except BadSample as bad:  # its address is the image, or the caption that cannot be read
            yield ImageEntry(stem, bad.where, problem=bad)
    for entry in _unknown(listing, columns):
        stems.add(entry.key)
        yield entry
    folders = {stem.rpartition("/")[0] for stem in stems}
    for name, index in captions.items():
        stem = without_extension(name)
        if stem not in stems and _is_beside_images(stem, folders):
            stems.add(stem)
            listing.give([index])
            path = listing.path(name)
            yield ImageEntry(stem, path, problem=BadSample("missing_image", path))
    yield from _linked(listing)
    listing.finish()


def _beside(image: str, columns: Sequence[str], captions: Mapping[str, int]) -> list[int]:
    """List the indices of the captions of an image."""
    indices = []
    for column in columns:
        name = f"{without_extension(image)}.{column}"
        if name in captions:
            indices.append(captions[name])
    return indices


def _is_beside_images(stem: str, folders: set[str]) -> bool:
    """Check whether a text file is in a folder with images, and does not have a name of documentation."""
    folder, _, name = stem.rpartition("/")
    return folder in folders and name.lower() not in DOCUMENTATION


def _unknown(listing: FolderListing, texts: Sequence[str] = (), *, in_subfolders: bool = False) -> Iterator[ImageEntry]:
    """Yield the files with an unknown extension. They are counted as images that cannot be read."""
    known = {*IMAGE_EXTENSIONS, *NOT_IMAGES, *texts, ""}
    for index, name in enumerate(listing.names):
        if extension(name) in known or (in_subfolders and "/" not in name):
            continue
        listing.give([index])
        path = listing.path(name)
        yield ImageEntry(without_extension(name), path, problem=BadSample("unknown_extension", path))


def _linked(listing: FolderListing) -> Iterator[ImageEntry]:
    """Yield the links to folders, whose images are not read, since a link may lead out of the folder."""
    for index, name in enumerate(listing.links):
        listing.give_link(index)
        path = listing.path(name)
        yield ImageEntry(name, path, problem=BadSample("linked_folder", path))


def _captions(folder: str, name: str, spec: DatasetSpec) -> dict[str, list[str]]:
    """Read the captions of an image. In a template, `{label}` is the name of its class folder."""
    image = f"{folder.rstrip('/')}/{name}"

    def value_at(location: str) -> object:
        if location == CLASS_FOLDER:
            return printable(name.rpartition("/")[0].split("/", 1)[0])
        return _text_beside(image, location)

    return captions_of(spec, lambda location: captions_at(location, value_at, spec, image), image)


def _text_beside(image: str, location: str) -> object:
    """Read a text file, or a field of a json file, with the name of an image, if there is such a file."""
    extension, _, rest = location.partition(".")
    path = f"{image.rpartition('.')[0]}.{extension}"
    try:
        data = files.read_bytes(path)
    except OSError:
        return None
    if extension == "json":
        return field_of(decode_json(data, path), rest)
    return captions_in(data, rest, path)


def class_folders(
    folder: str, class_names: Sequence[str] = (), account: Account | None = None
) -> tuple[list[str], Iterator[ImageEntry]]:
    """List class names (the sorted subfolders) and images, as torchvision's ImageFolder does.

    Args:
        folder: Folder with a subfolder for each class.
        class_names: If it has the names of all subfolders, it gives their labels. Some of its classes may have no
            images.
        account: Records the use of each file.

    Raises:
        UserError: If an image is not in a class folder.
    """
    listing = FolderListing(folder, account)
    class_of = {}
    for index, name in listing.images():
        subfolder, slash, _ = name.partition("/")
        if not slash:
            raise UserError(f"{folder}: expected one folder per class, but {name} is in none")
        class_of[index] = printable(subfolder)
    classes = sorted(set(class_of.values()))
    numbered = class_names if set(classes) <= set(class_names) else classes
    label_of = positions(numbered)
    return classes, _classified(listing, {index: label_of[name] for index, name in class_of.items()})


def _classified(listing: FolderListing, label_of: Mapping[int, int]) -> Iterator[ImageEntry]:
    """Yield the images with their labels, then the files with an unknown extension and the links in class folders."""
    for index, label in label_of.items():
        listing.give([index])
        name = listing.names[index]
        yield ImageEntry(without_extension(name), listing.path(name), label=label)
    yield from _unknown(listing, in_subfolders=True)
    yield from _linked(listing)
    listing.finish()
