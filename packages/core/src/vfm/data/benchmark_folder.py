"""CLIP_benchmark's folders of a data set: the tars of each split, and beside the splits what they hold.

    SET/test/nshards.txt, SET/test/{0..n-1}.tar     perhaps SET/train/ likewise
    SET/classnames.txt, SET/zeroshot_classification_templates.txt
    SET/dataset_type.txt                            `retrieval` or `multilabel`; else one class an image

Source: github.com/LAION-AI/CLIP_benchmark, whose sets the hub keeps in this layout.
"""

from __future__ import annotations

from vfm.config import UserError
from vfm.data import files

COUNT_FILE, TYPE_FILE = "nshards.txt", "dataset_type.txt"
CLASS_NAMES_FILE, TEMPLATES_FILE = "classnames.txt", "zeroshot_classification_templates.txt"
SPLITS = ("test", "train", "val", "validation")


def splits_of(folder: str) -> list[str]:
    """The splits of such a folder; none where it is no such one."""
    return [split for split in SPLITS if files.exists(f"{folder}/{split}/{COUNT_FILE}")]


def benchmark_shards(folder: str, split: str) -> list[str]:
    """The tars of a split, or of the folder itself where it is a split; none where it is neither.

    Raises:
        UserError: there are other splits only, or a tar that is counted is not there.
    """
    known = splits_of(folder)
    if known and split not in known:
        raise UserError(f"{folder}: no split {split!r} here; there is: {', '.join(known)}")
    place = f"{folder}/{split}" if known else folder
    if not files.exists(f"{place}/{COUNT_FILE}"):
        return []
    count = files.read_text(f"{place}/{COUNT_FILE}").strip()
    if not count.isdigit() or count == "0":
        raise UserError(f"{place}/{COUNT_FILE}: a number of shards is wanted, not {count[:20]!r}")
    shards = [f"{place}/{number}.tar" for number in range(int(count))]
    for shard in shards:
        if not files.exists(shard):
            raise UserError(f"{shard}: no such file; {COUNT_FILE} counts {count} shards")
    return shards


def file_beside(path: str, name: str) -> str | None:
    """The file of a name in the data's folder or the one above; None where there is none."""
    folder = path.rpartition("/")[0] or "."
    places = (folder, folder.rpartition("/")[0] or ".")
    return next((f"{place}/{name}" for place in places if files.exists(f"{place}/{name}")), None)


def lines_beside(path: str, name: str) -> list[str]:
    """Lines of a file in the data's folder or the one above, stripped; what is empty at the end is left out.

    An empty line among them stays: by their places the lines belong to labels. None where there is no file.
    """
    file = file_beside(path, name)
    return [line.strip() for line in files.read_text(file).rstrip().splitlines()] if file else []


def type_beside(path: str) -> str:
    """`retrieval`, `multilabel` or `classification`, as told beside a tar; empty where nothing is told."""
    return "".join(lines_beside(path, TYPE_FILE)).lower()
