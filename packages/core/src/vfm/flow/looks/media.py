"""Look at a single image or video."""

from __future__ import annotations

import shlex
from pathlib import Path

from vfm.base import load_function
from vfm.data.samples.images import open_image
from vfm.data.samples.sample import BadSample
from vfm.data.videos.media import Media
from vfm.flow.looks.facts import Look
from vfm.storage import files


def look_at_image(path: str) -> Look:
    """Decode an image, and report its size."""
    look = Look("an image")
    try:
        image = open_image(files.read_bytes(path), path)
        look.facts += [f"format: {image.format}, {image.width} x {image.height} pixels, {image.mode}"]
        image.load()
    except (BadSample, OSError) as error:
        look.problems.append(f"it cannot be decoded: {error}")
        return look
    classes = shlex.quote("a photo,a drawing,a page of text")
    look.commands.append(f"vfm predict ViT-B-32 {shlex.quote(path)} --pretrained openai --classes {classes}")
    return look


def look_at_video(path: str) -> Look:
    """Open a video, and report its length. Its folder is the dataset."""
    probe = load_function("vfm.data.videos.probing:probe")  # needs vfm-core[video]
    look = Look("a video", commands=[f"vfm data {shlex.quote(str(Path(path).parent))} --kind data.videos"])
    try:
        facts = probe(Media(path))
        look.facts.append(
            f"{facts.num_frames} frames at {facts.rate:.3g} per second, {facts.width} x {facts.height} pixels"
        )
    except BadSample as error:
        look.problems.append(f"it cannot be decoded: {error.reason}")
        look.commands.clear()
    return look
