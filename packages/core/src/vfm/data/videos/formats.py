"""Layouts of video datasets, given or recognised by the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from vfm.base import UserError
from vfm.data.prompts.clip_benchmark import CLASS_NAMES_FILE, lines_beside
from vfm.data.samples.images import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from vfm.data.samples.sample import BadSample, Sample
from vfm.data.samples.shards import Shard
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.image_list import printable
from vfm.data.tar.webdataset import TarShard
from vfm.data.videos.annotations import ANNOTATION_READERS, recognise_annotations
from vfm.data.videos.listing import Listed, Listing
from vfm.data.videos.media import Media, frame_folder
from vfm.data.videos.stages import Videos
from vfm.storage import files

EXPECTED = (
    "expected folders of videos by class, folders of frames by class, tars with mp4 and cls or json, or `annotations`:"
    " a csv of Kinetics, a list of `path label`, a split of UCF or a folder of splits of HMDB, a json of Something"
)


def list_videos(config: Videos) -> Listing:
    """Return the videos of a dataset.

    Raises:
        UserError: the layout is not recognised, or files are missing.
    """
    kind = config.format if config.format != "auto" else recognise(config)
    if reader := READERS.get(kind):
        return reader(config)
    if not config.annotations:
        raise UserError(f"{config.path}: the format {kind} needs annotations: its file or folder")
    return ANNOTATION_READERS[kind](config, _root(config))


def recognise(config: Videos) -> str:
    """Return the name of a layout.

    Raises:
        UserError: the files have none of the layouts.
    """
    if config.annotations:
        return recognise_annotations(config.annotations)
    paths = files.expand_paths(config.path)
    if all(path.endswith(".tar") for path in paths):
        return "webdataset"
    root = _root(config)
    for name in files.walk(root):
        extension = _extension(name)
        if extension == "tar":
            return "webdataset"
        depth = len(PurePosixPath(name).parts)
        if extension in VIDEO_EXTENSIONS and depth > 1:
            return "class_folders"
        if extension in IMAGE_EXTENSIONS and depth > 2:
            return "frame_folders"
    raise UserError(f"{root}: no videos found; {EXPECTED}")


def class_folders(config: Videos) -> Listing:
    """Return the videos in one folder for each class, `archery/clip.mp4`; the class names are the folders'."""
    root = _root(config)
    names = [name for name in files.walk(root) if _extension(name) in VIDEO_EXTENSIONS and "/" in name]
    videos = [_in_class(root, name, Media(f"{root}/{name}")) for name in names]
    return Listing("class_folders", videos)


def frame_folders(config: Videos) -> Listing:
    """Return the folders of frames in one folder for each class, `archery/clip/00001.jpg`."""
    root = _root(config)
    names = (name for name in files.walk(root) if _extension(name) in IMAGE_EXTENSIONS)
    clips = dict.fromkeys(name.rpartition("/")[0] for name in names if name.count("/") >= 2)
    return Listing("frame_folders", [_in_class(root, name, frame_folder(f"{root}/{name}")) for name in clips])


def _in_class(root: str, name: str, media: Media) -> Listed:
    stem = name if media.is_folder else name.rpartition(".")[0]
    label, key = printable(name.partition("/")[0]), printable(stem)
    bad = BadSample("wrong_encoding", printable(f"{root}/{name}")) if key != stem else None
    return Listed(key, media, label, key.rpartition("/")[2], bad)


def webdataset(config: Videos) -> Listing:
    """Return the videos of tars: members `mp4`, `webm`, ... and the class in `cls` or a field of `json`."""
    paths = files.expand_paths(config.path)
    if len(paths) == 1 and files.is_directory(paths[0]):
        root = paths[0].rstrip("/")
        paths = [f"{root}/{name}" for name in files.names_in(root) if name.endswith(".tar")]
    names = list(config.class_names) or lines_beside(paths[0], CLASS_NAMES_FILE)
    found = {"label_key": config.label_key} if names else {"texts": {"label": config.label_key}}
    spec = DatasetSpec(image_key=",".join(VIDEO_EXTENSIONS), class_names=names, **found)
    videos = [one for path in paths for one in list_tar(path, spec)]
    if not names and all(str(one.label).isdecimal() for one in videos):  # the numbers of classes, and not their names
        videos = [replace(one, label=int(one.label)) for one in videos]
    return Listing("webdataset", videos, names)


def list_tar(path: str, spec: DatasetSpec) -> Iterator[Listed]:
    """Yield the videos of a tar with their classes; what cannot be used has a problem."""
    shard = TarShard(path, Shard.of(path, 0).size, spec)
    for row in range(len(shard)):
        start, size = shard.places(row)[0]
        media = Media(path, max(start, 0), size)
        key = printable(shard.key(row))
        try:
            if start < 0:
                raise BadSample("missing_video", shard.where(row))
            if start + size > shard.size:
                raise BadSample("truncated_shard", shard.where(row))
            yield Listed(key, media, _label(shard.read(row, with_image=False), shard.where(row)), key)
        except BadSample as bad:
            yield Listed(key, media, 0, key, bad)
    for reason, where in shard.lost:
        yield Listed(where, Media(path, 0, 0), 0, where, BadSample(reason, where))
    if not shard.complete:
        yield Listed(path, Media(path, 0, 0), 0, path, BadSample("truncated_shard", path))


def _label(sample: Sample, where: str) -> int | str:
    """Return the class of a sample, by number, or as it is written where the names are not known before."""
    if sample.label is not None:
        return sample.label
    text = next((texts[0] for texts in sample.texts.values() if texts), "")
    if not text:
        raise BadSample("missing_label", where)
    return text


READERS: dict[str, Callable[[Videos], Listing]] = {
    "class_folders": class_folders, "frame_folders": frame_folders, "webdataset": webdataset,
}  # fmt: skip


def _root(config: Videos) -> str:
    paths = files.expand_paths(config.path)
    if len(paths) != 1 or not files.is_directory(paths[0]):
        raise UserError(f"{paths[0]}: expected one folder with the videos; {EXPECTED}")
    return paths[0].rstrip("/")


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()
