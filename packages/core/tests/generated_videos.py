"""Lists and tars of videos, drawn from a seed, with missing and damaged videos, blank lines and other files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

from generated_layouts import Drawn, damaged, tar_with
from video_files import encode, grey_frames

Lines = list[str]


@cache
def clip() -> bytes:
    """Encode a short video."""
    return encode(grey_frames(3))


def write_videos(root: Path) -> list[str]:
    """Write two good videos and a damaged one, and list their paths and that of a missing one."""
    (root / "run").mkdir(parents=True)
    for name, content in (("a", clip()), ("b", clip()), ("c", clip()[:200])):
        (root / f"run/{name}.mp4").write_bytes(content)
    return ["run/a.mp4", "run/b.mp4", "run/c.mp4", "run/missing.mp4", "../outside.mp4"]


def _save(file: Path, lines: Lines, rng: random.Random) -> int:
    """Write lines with blank ones between them, and count all."""
    mixed = [text for line in lines for text in (*rng.choice([[], [], ["", "  "]]), line)]
    file.write_text("\n".join(mixed))
    return len(mixed)


def path_label(folder: Path, paths: list[str], rng: random.Random) -> dict[str, int]:
    """Write a list of `path label`."""
    lines = [f"{path} {rng.randrange(3)}" for path in [paths[0], *rng.sample(paths[1:], rng.randrange(5))]]
    return {"list.txt": _save(folder / "list.txt", lines, rng)}


def ucf(folder: Path, paths: list[str], rng: random.Random) -> dict[str, int]:
    """Write a split of UCF."""
    lines = [paths[0], *rng.sample(paths[1:4], rng.randrange(4))]
    return {"trainlist01.txt": _save(folder / "trainlist01.txt", lines, rng)}


def hmdb(folder: Path, paths: list[str], rng: random.Random) -> dict[str, int]:
    """Write a folder of splits of HMDB, which names videos of all parts."""
    names = [path.rpartition("/")[2] for path in paths[:4]]
    lines = [f"{name} {rng.randrange(3)}" for name in rng.sample(names[1:], rng.randrange(4))]
    (folder / "splits").mkdir()
    name = "splits/run_test_split1.txt"
    return {name: _save(folder / name, ["a.mp4 1", *lines], rng)}


def kinetics(folder: Path, paths: list[str], rng: random.Random) -> dict[str, int]:
    """Write a csv of Kinetics, with quoted line breaks."""
    lines = ["label,youtube_id,time_start,time_end,split"]
    for stem in ["a", *rng.choices("abcde", k=rng.randrange(1, 9))]:
        lines += rng.choice(
            [[f"run,{stem},0,10,train"], [f'"run\n  fast",{stem},0,10,train'], ["", f"run,{stem},0,1,x"]]
        )
    text = "\n".join(lines)
    (folder / "train.csv").write_text(text)
    return {"train.csv": len(text.split("\n"))}


def something(folder: Path, paths: list[str], rng: random.Random) -> dict[str, int]:
    """Write the JSON of Something-Something."""
    entries = [{"id": stem, "template": "Moving [something]"} for stem in ["a", *rng.sample("bcde", rng.randrange(5))]]
    (folder / "train.json").write_text(json.dumps(entries))
    return {"train.json": len(entries)}


LISTS: tuple[Callable[[Path, list[str], random.Random], dict[str, int]], ...] = (
    path_label, ucf, hmdb, kinetics, something,
)  # fmt: skip


def video_list(path: Path, rng: random.Random) -> Drawn:
    """Draw videos and a list of them."""
    root = path / "videos"
    paths = write_videos(root)
    sizes = rng.choice(LISTS)(path, paths, rng)
    (name,) = sizes
    annotations = path / name.split("/")[0]
    fields: dict[str, object] = {"path": str(root), "annotations": str(annotations)}
    return Drawn("data.videos", fields, {str(path / name): sizes[name]})


def video_tars(path: Path, rng: random.Random) -> Drawn:
    """Draw a folder with tars of videos and other files."""
    root = path / "videos"
    root.mkdir()
    sizes: dict[str, int | None] = {}
    for number in range(rng.randrange(1, 3)):
        members = []
        for video in range(rng.randrange(1, 4)):
            members.append((f"{number}{video}.mp4", rng.choice([clip(), clip(), clip()[:99], b""])))
            members += rng.choice([[(f"{number}{video}.cls", b"run")], [(f"{number}{video}.cls", b"run")], []])
            members += rng.choice([[], [("README.md", b"x")], [(".hidden", b"x")]])
        data = tar_with(members)
        if rng.random() < 0.5:
            data = damaged(data, rng)
        file = root / f"{number}.tar"
        file.write_bytes(data)
        sizes[str(file)] = len(data)
    others = rng.sample(["notes.txt", ".DS_Store", "deep/x.mp4"], rng.randrange(4))
    for name in others:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    return Drawn(
        "data.videos", {"path": str(root), "format": "webdataset"}, {str(root): len(sizes) + len(others), **sizes}
    )
