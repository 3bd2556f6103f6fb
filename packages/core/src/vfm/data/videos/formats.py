"""List the videos of a dataset, in a given layout or one that is recognised by the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from vfm.base import UserError
from vfm.data.layouts.folder_listing import FolderListing, shards_in_folder
from vfm.data.ledger.account import Account
from vfm.data.prompts.clip_benchmark import CLASS_NAMES_FILE, lines_beside
from vfm.data.samples.images import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from vfm.data.samples.sample import BadSample, Sample
from vfm.data.samples.shards import Shard
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.image_list import printable
from vfm.data.tar.webdataset import TarShard
from vfm.data.videos.annotations import ANNOTATION_READERS, recognise_annotations
from vfm.data.videos.listing import ListedVideo, Listing
from vfm.data.videos.media import Media, frame_folder
from vfm.data.videos.stages import Videos
from vfm.storage import files
from vfm.storage.path_patterns import expand_paths

EXPECTED = (
    "expected folders of videos by class, folders of frames by class, tars with mp4 and cls or json, or `annotations`:"
    " a csv of Kinetics, a list of `path label`, a split of UCF or a folder of splits of HMDB, a json of Something"
)


def list_videos(config: Videos) -> Listing:
    """List the videos of a dataset.

    Raises:
        UserError: If the layout is not recognised, or files are missing.
    """
    kind = config.format if config.format != "auto" else recognise(config)
    reader = READERS.get(kind)
    if reader:
        return reader(config)
    if not config.annotations:
        raise UserError(f"{config.path}: the format {kind} needs annotations: its file or folder")
    return ANNOTATION_READERS[kind](config, _root(config))


def recognise(config: Videos) -> str:
    """Recognise the layout by the files.

    Raises:
        UserError: If the files have none of the layouts.
    """
    if config.annotations:
        return recognise_annotations(config.annotations)
    paths = expand_paths(config.path)
    if all(files.without_query(path).endswith(".tar") for path in paths):
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
    """List the videos in one folder per class, `archery/clip.mp4`. The class names are the names of the folders."""
    listing = FolderListing(_root(config))
    videos = []
    for index, name in enumerate(listing.names):
        if _extension(name) in VIDEO_EXTENSIONS and "/" in name:
            listing.give([index])
            listing.account.sample += 1
            videos.append(_in_class(listing.root, name, Media(listing.path(name))))
    return Listing("class_folders", [*videos, *_linked(listing)], accounts=[listing.account])


def frame_folders(config: Videos) -> Listing:
    """List the folders of frames in one folder per class, `archery/clip/00001.jpg`."""
    listing = FolderListing(_root(config))
    frames: dict[str, list[int]] = {}
    for index, name in enumerate(listing.names):
        if _extension(name) in IMAGE_EXTENSIONS and name.count("/") >= 2:
            frames.setdefault(name.rpartition("/")[0], []).append(index)
    videos = []
    for clip, indices in frames.items():
        listing.give(indices)
        listing.account.sample += 1
        videos.append(_in_class(listing.root, clip, frame_folder(listing.path(clip))))
    return Listing("frame_folders", [*videos, *_linked(listing)], accounts=[listing.account])


def _linked(listing: FolderListing) -> Iterator[ListedVideo]:
    """Yield the links to folders as unusable videos, and complete the account."""
    for index, name in enumerate(listing.links):
        listing.give_link(index)
        listing.account.sample += 1
        media = Media(listing.path(name))
        label, problem = printable(name.partition("/")[0]), BadSample("linked_folder", printable(media.path))
        yield ListedVideo(printable(name), media, label, problem=problem)
    listing.finish()


def _in_class(root: str, name: str, media: Media) -> ListedVideo:
    stem = name if media.is_folder else name.rpartition(".")[0]
    label = printable(name.split("/", 1)[0])
    key = printable(stem)
    bad = BadSample("wrong_encoding", printable(f"{root}/{name}")) if key != stem else None
    return ListedVideo(key, media, label, key.rsplit("/", 1)[-1], bad)


def webdataset(config: Videos) -> Listing:
    """List the videos in tars.

    Members are `mp4`, `webm`, ... with the class in `cls` or a field of `json`.
    """
    paths = expand_paths(config.path)
    accounts = []
    if len(paths) == 1 and files.is_directory(paths[0]):
        root = paths[0].rstrip("/")
        paths = [f"{root}/{name}" for name in files.names_in(root) if name.endswith(".tar")]
        accounts.append(shards_in_folder(root, paths))
    names = list(config.class_names) or lines_beside(paths[0], CLASS_NAMES_FILE)
    # Without class names, labels are read as texts, because they may be names.
    spec = DatasetSpec(image_key=",".join(VIDEO_EXTENSIONS), class_names=names, label_key=config.label_key)
    if not names:
        spec = spec.model_copy(update={"label_key": None, "texts": {"label": config.label_key}})
    videos: list[ListedVideo] = []
    for path in paths:
        videos += list_tar(path, spec, accounts, len(videos))
    if not names and all(str(video.label).isdecimal() for video in videos):  # numbers of classes, not names
        videos = [replace(video, label=int(video.label)) for video in videos]
    return Listing("webdataset", videos, names, accounts)


def list_tar(
    path: str, spec: DatasetSpec, accounts: list[Account] | None = None, first: int = 0
) -> Iterator[ListedVideo]:
    """Yield the videos of a tar with their classes. Unusable videos have a `problem`.

    Args:
        path: The tar.
        spec: Parts to read of each sample.
        accounts: Receives the account of the tar's bytes.
        first: Number of the tar's first video among all videos.
    """
    shard = TarShard(path, Shard.of(path, 0).size, spec)
    if accounts is not None:
        accounts.append(shard.account().shifted(first))
    for row in range(len(shard)):
        start, size = shard.places(row)[0]
        media = Media(path, max(start, 0), size)
        key = printable(shard.key(row))
        try:
            if start < 0:
                raise BadSample("missing_video", shard.where(row))
            if start + size > shard.size:
                raise BadSample("truncated_shard", shard.where(row))
            yield ListedVideo(key, media, _label(shard.read(row, with_image=False), shard.where(row)), key)
        except BadSample as bad:
            yield ListedVideo(key, media, 0, key, bad)
    for reason, where in shard.lost:
        yield ListedVideo(where, Media(path, 0, 0), 0, where, BadSample(reason, where))
    if not shard.complete:
        yield ListedVideo(path, Media(path, 0, 0), 0, path, BadSample("truncated_shard", path))


def _label(sample: Sample, where: str) -> int | str:
    """Get the class of a sample as a number, or as text if the class names are not known in advance."""
    if sample.label is not None:
        return sample.label
    for texts in sample.texts.values():
        if texts and texts[0]:
            return texts[0]
    raise BadSample("missing_label", where)


READERS: dict[str, Callable[[Videos], Listing]] = {
    "class_folders": class_folders, "frame_folders": frame_folders, "webdataset": webdataset,
}  # fmt: skip


def _root(config: Videos) -> str:
    paths = expand_paths(config.path)
    if len(paths) != 1 or not files.is_directory(paths[0]):
        raise UserError(f"{paths[0]}: expected one folder with the videos; {EXPECTED}")
    return paths[0].rstrip("/")


def _extension(name: str) -> str:
    return name.rsplit(".", 1)[-1].lower()
