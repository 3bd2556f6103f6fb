"""Decoding and sampling of clips, beside decord and torchcodec on the same files, one core each.

    uv run --with decord --with "torchcodec<0.11" python packages/core/benchmarks/video_decoding.py [--out FILE.json]

torchcodec loads FFmpeg's libraries from the system; a reader that does not load is left out. Videos are made at run
time: blocks that move, H.264. All readers take frames at equal distances over the whole video, resize its shorter side
to 224 pixels and keep the centre, in one thread. They take turns; times are of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from vfm.data.videos import ClipSampling, Media, fixed_views, read_clips
from vfm.data.videos.probing import probe

SIDE, SAMPLING = 224, ClipSampling(8)
CASES = {
    "150 frames of 160 x 120": (150, 160, 120, 250),
    "300 frames of 340 x 256": (300, 340, 256, 250),
    "300 frames of 340 x 256, key frames every 12": (300, 340, 256, 12),
}


def make(path: Path, frames: int, width: int, height: int, key_every: int) -> None:
    """Write a video in which smooth noise moves, so that there is motion to code."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8 + 60, width // 8 + 60, 3), dtype=np.uint8)
    field = np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = key_every
        for number in range(frames):
            start = number % 400
            pixels = np.ascontiguousarray(field[start : start + height, start : start + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def ours(path: str) -> Callable[[], Any]:
    media = Media(path)
    facts = probe(media)  # once, when a dataset is indexed
    (view,) = fixed_views(SAMPLING.fixed(facts.num_frames, 0, 1), (facts.width, facts.height), SIDE, 1)
    return lambda: read_clips(media, facts, [view])[0]


def resized(path: str) -> tuple[int, int, int, int]:
    """Return width and height with the shorter side resized, and the left and upper edge of the central square."""
    facts = probe(Media(path))
    scale = SIDE / min(facts.width, facts.height)
    width, height = round(facts.width * scale), round(facts.height * scale)
    return width, height, (width - SIDE) // 2, (height - SIDE) // 2


def decords(path: str) -> Callable[[], Any] | None:
    try:
        import decord
    except ImportError:
        return None
    width, height, left, top = resized(path)

    def read() -> Any:
        reader = decord.VideoReader(path, width=width, height=height, num_threads=1)
        clip = reader.get_batch(list(SAMPLING.fixed(len(reader), 0, 1))).asnumpy()
        return np.ascontiguousarray(clip[:, top : top + SIDE, left : left + SIDE])

    return read


def torchcodecs(path: str) -> Callable[[], Any] | None:
    try:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize
    except (ImportError, RuntimeError):  # RuntimeError: no FFmpeg of a version that it knows
        return None
    width, height, left, top = resized(path)

    def read() -> Any:
        decoder = VideoDecoder(
            path,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="approximate",
            transforms=[Resize((height, width))],
        )
        clip = decoder.get_frames_at(list(SAMPLING.fixed(len(decoder), 0, 1))).data.numpy()
        return np.ascontiguousarray(clip[:, top : top + SIDE, left : left + SIDE])

    return read


def measure(path: str, rounds: int) -> dict[str, float]:
    """Return milliseconds of the processor for a clip, and the median of the ratios of neighbouring turns."""
    readers = {"vfm": ours(path), "decord": decords(path), "torchcodec": torchcodecs(path)}
    found = {name: reader for name, reader in readers.items() if reader}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 2):
        for name, reader in found.items():
            start = time.process_time()
            reader()
            if turn >= 2:  # the first ones warm up
                seconds[name].append(time.process_time() - start)
    row = {f"{name}, ms": 1e3 * statistics.median(values) for name, values in seconds.items()}
    for peer in list(found)[1:]:
        pairs = zip(seconds[peer], seconds["vfm"], strict=True)
        row[f"{peer} / vfm"] = statistics.median(theirs / own for theirs, own in pairs)
        row[f"mean difference of pixels, {peer}"] = float(np.abs(found["vfm"]().astype(int) - found[peer]()).mean())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="the smallest case, two rounds")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cases = dict(list(CASES.items())[:1]) if given.quick else CASES
    rows = {}
    with TemporaryDirectory() as folder:
        for name, sizes in cases.items():
            make(Path(folder) / "a.mp4", *sizes)
            rows[name] = measure(f"{folder}/a.mp4", 2 if given.quick else given.rounds)
            print(name, ", ".join(f"{key}: {value:.2f}" for key, value in rows[name].items()), flush=True)
    if given.out:
        facts = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "av": version("av")}
        for peer in ("decord", "torchcodec"):
            with suppress(PackageNotFoundError):
                facts[peer] = version(peer)
        given.out.write_text(json.dumps({"facts": facts, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
