"""Read files that list videos, from Kinetics, UCF, HMDB, Something-Something and lists of `path label`.

Sources: the formats of Kinetics (arXiv:1705.06950), UCF101 (arXiv:1212.0402), HMDB51 (Kuehne et al. 2011) and
Something-Something V2 (arXiv:1706.04261), as their authors and mmaction distribute them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vfm.base import UserError, stripped
from vfm.data.ledger.account import Account
from vfm.data.samples.images import VIDEO_EXTENSIONS
from vfm.data.samples.sample import BadSample
from vfm.data.tables.csv_rows import csv_rows
from vfm.data.videos.listing import ListedVideo, Listing
from vfm.data.videos.media import Media, frame_folder
from vfm.data.videos.stages import Videos
from vfm.storage import files

UCF_CLASSES = "classInd.txt"
HMDB_FILE = re.compile(r"(.+)_test_split(\d)\.txt")
HMDB_SPLIT = re.compile(r"(train|test)(\d?)")
HMDB_SPLITS = {"train": "1", "test": "2"}  # 0: the video is in neither
SOMETHING_CLASSES = "labels.json"
KINETICS_COLUMNS = {"label", "youtube_id", "time_start", "time_end"}


def recognise_annotations(path: str) -> str:
    """Recognise the format of a file or folder of annotations.

    Raises:
        UserError: If the format is unknown.
    """
    if files.is_directory(path):
        if any(map(HMDB_FILE.fullmatch, files.names_in(path))):
            return "hmdb"
        raise UserError(f"{path}: expected files CLASS_test_split1.txt of HMDB in a folder of annotations")
    if files.without_query(path).endswith(".json"):
        return "something"
    text = files.read_text(path)
    if set(text.split("\n", 1)[0].strip().split(",")) >= KINETICS_COLUMNS:
        return "kinetics"
    name = path.rsplit("/", 1)[-1]
    return "ucf" if re.fullmatch(r"(train|test|val)list\d+\.txt", name) else "list"


def kinetics(config: Videos, root: str) -> Listing:
    """List the videos of a csv `label,youtube_id,time_start,time_end,split`, with files `ID_000010_000020.mp4`."""
    files_by_stem = _by_stem(root)
    videos: list[ListedVideo] = []
    account = Account(str(config.annotations), "lines")
    for row in _csv_rows(account):
        try:
            start, end = int(float(row["time_start"])), int(float(row["time_end"]))
            identity = row["youtube_id"]
            label = row["label"].strip()
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            expected = ", ".join(sorted(KINETICS_COLUMNS))
            raise UserError(f"{config.annotations}: expected {expected}, got {row}") from None
        stem = f"{identity}_{start:06d}_{end:06d}"
        file = files_by_stem.get(stem) or files_by_stem.get(identity)
        videos.append(_listed(stem, file and f"{root}/{file}", label, f"{root}/{stem}", identity))
    return Listing("kinetics", videos, _names(config), [account])


def path_label_list(config: Videos, root: str) -> Listing:
    """List the videos of lines `path label`, or frames `folder count label` (mmaction), separated by space or comma."""
    videos: list[ListedVideo] = []
    account = Account(str(config.annotations), "lines")
    for number, line in _numbered_lines(account):
        account.give(number - 1, number, sample=len(videos))
        words = re.split(r"[\s,]+(?=\d+$)", line)
        if len(words) != 2:
            raise UserError(f"{config.annotations}: line {number}: expected `path label`, got {line[:80]!r}")
        path = words[0]
        counted = re.fullmatch(r"(.+?)[\s,]+\d+", path)
        if counted and not files.exists(f"{root}/{path}"):
            path = counted[1]
        videos.append(_of_path(root, path, int(words[1])))
    return Listing("list", videos, _names(config), [account])


def ucf(config: Videos, root: str) -> Listing:
    """List the videos of a UCF split, `Archery/v_1.avi 2` or without the number, with `classInd.txt` next to it."""
    path = str(config.annotations)
    class_file = f"{path.rpartition('/')[0] or '.'}/{UCF_CLASSES}"
    names = []
    if files.exists(class_file):
        names = [line.split(maxsplit=1)[-1] for line in _lines(class_file)]
    account = Account(path, "lines")
    videos: list[ListedVideo] = []
    for number, line in _numbered_lines(account):
        account.give(number - 1, number, sample=len(videos))
        videos.append(_of_path(root, line.split()[0], line.split("/")[0]))
    return Listing("ucf", videos, _names(config) or names, [account])


def hmdb(config: Videos, root: str) -> Listing:
    """List the videos of an HMDB split.

    Files `CLASS_test_split1.txt` have lines `name.avi 1` (train) or 2 (test).
    """
    folder = str(config.annotations)
    name = config.split
    match = HMDB_SPLIT.fullmatch(name)
    if not match:
        raise UserError(f"split: expected train1 to train3 or test1 to test3 of HMDB, got {name!r}")
    part = match[1]
    number = match[2] or "1"
    videos: list[ListedVideo] = []
    accounts = []
    for file in files.names_in(folder):
        match = HMDB_FILE.fullmatch(file)
        if not match or match[2] != number:
            continue
        account = Account(f"{folder}/{file}", "lines")
        accounts.append(account)
        for place, line in _numbered_lines(account):
            words = line.split()
            if len(words) == 2 and words[1] == HMDB_SPLITS[part]:
                account.give(place - 1, place, sample=len(videos))
                videos.append(_of_path(root, f"{match[1]}/{words[0]}", match[1]))
            else:
                account.leave(place - 1, place, "other_split")
    return Listing("hmdb", videos, _names(config), accounts)


def something(config: Videos, root: str) -> Listing:
    """List the videos of a Something-Something JSON file.

    Its entries have `id` and `template` or `label`.
    """
    path = str(config.annotations)
    names = _template_names(f"{path.rpartition('/')[0] or '.'}/{SOMETHING_CLASSES}")
    entries = _json(path)
    videos = []
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of videos with `id` and `template`")
    files_by_stem = _by_stem(root)
    for entry in entries:
        if not isinstance(entry, Mapping) or "id" not in entry or not (entry.get("template") or entry.get("label")):
            raise UserError(f"{path}: expected videos with `id` and `template` or `label`, got {str(entry)[:80]}")
        label = str(entry.get("template") or entry["label"]).replace("[", "").replace("]", "")
        stem = str(entry["id"])
        file = files_by_stem.get(stem)
        videos.append(_listed(stem, file and f"{root}/{file}", label, f"{root}/{stem}"))
    return Listing("something", videos, _names(config) or names, [Account.of_rows(path, len(videos), "records")])


def _template_names(path: str) -> list[str]:
    """Read the templates in the order of their numbers, if there is such a file."""
    numbers: Any = _json(path) if files.exists(path) else {}
    if not isinstance(numbers, dict):
        return []
    try:
        return sorted(numbers, key=lambda name: int(numbers[name]))
    except (TypeError, ValueError):
        raise UserError(f"{path}: expected the number of each template") from None


ANNOTATION_READERS: dict[str, Callable[[Videos, str], Listing]] = {
    "kinetics": kinetics, "list": path_label_list, "ucf": ucf, "hmdb": hmdb, "something": something,
}  # fmt: skip


def _of_path(root: str, path: str, label: int | str) -> ListedVideo:
    """Find a video by its path below the root. It is a file, or a folder of frames."""
    inside = files.join_inside(root, path)
    if inside is None:
        return ListedVideo(path, Media(root), label, "", BadSample("unsafe_path", path))
    stem, _, extension = path.rpartition(".")
    if extension.lower() not in VIDEO_EXTENSIONS:
        stem = path
    file = inside if files.exists(inside) else None
    return _listed(stem, file, label, inside)


def _listed(key: str, path: str | None, label: int | str, where: str, identity: str = "") -> ListedVideo:
    identity = identity or key.rsplit("/", 1)[-1]
    if path is None:
        return ListedVideo(key, Media(where), label, identity, BadSample("missing_video", where))
    media = frame_folder(path) if files.is_directory(path) else Media(path)
    return ListedVideo(key, media, label, identity)


def _by_stem(root: str) -> dict[str, str]:
    """Map the name of each video below a folder, without extension, to its path."""
    paths = {}
    for path in files.walk(root):
        if path.rsplit(".", 1)[-1].lower() in VIDEO_EXTENSIONS:
            stem = path.rsplit("/", 1)[-1].rpartition(".")[0]
            paths[stem] = path
    return paths


def _names(config: Videos) -> list[str]:
    """Read the configured class names.

    They are a list, a file with a name in each line, or a csv with `id,name`.
    """
    if not config.names:
        return list(config.class_names)
    lines = _lines(config.names)
    if lines and re.fullmatch(r"id\s*,\s*name", lines[0]):
        name_of: dict[int, str] = {}
        for row, line in enumerate(lines[1:], 2):
            number, name = _numbered(config.names, row, line)
            name_of[number] = name
        if sorted(name_of) != list(range(len(lines) - 1)):
            raise UserError(f"{config.names}: expected the numbers 0 to {len(lines) - 2}, each once")
        return [name_of[number] for number in sorted(name_of)]
    return lines


def _numbered(path: str, row: int, line: str) -> tuple[int, str]:
    number, _, name = line.partition(",")
    if not number.strip().isdecimal() or not name.strip():
        raise UserError(f"{path}: line {row}: expected `id,name`, got {line[:80]!r}")
    return int(number), name.strip()


def _csv_rows(account: Account) -> Iterator[dict[str, str]]:
    """Yield the rows of a csv below its header, each given to the next sample."""
    header: list[str] = []
    account.size = 0
    for start, stop, row in csv_rows(account.source):
        if not row:
            account.leave(start, stop, "blank")
        elif not header:
            header = row
            account.leave(start, stop, "header")
        else:
            account.give(start, stop)
            account.sample += 1
            yield dict(zip(header, row, strict=False))
        account.size = stop


def _numbered_lines(account: Account) -> Iterator[tuple[int, str]]:
    """Yield the lines of a list that are not blank, with their numbers from 1 on."""
    lines = files.read_text(account.source).splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.strip()
        else:
            account.leave(number - 1, number, "blank")
    account.size = len(lines)


def _lines(path: str) -> list[str]:
    return stripped(files.read_text(path).splitlines())


def _json(path: str) -> Any:
    try:
        return json.loads(files.read_text(path))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not readable as JSON") from None
