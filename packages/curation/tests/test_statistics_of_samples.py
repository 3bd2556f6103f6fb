"""The languages and near duplicates that `vfm data` prints, on the page too."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from typer.testing import CliRunner

import vfm.cli.commands  # noqa: F401  (registers the commands)
from vfm.cli import app
from vfm_curation.statistics import NearDuplicates, near_earlier

GERMAN = ["ein brauner Hund auf der Wiese", "zwei Kinder spielen am Strand", "eine Katze schläft auf dem Sofa"]
ENGLISH = ["a brown dog on the meadow", "two children play on the beach", "a cat sleeps on the sofa"]


def scene(seed: int) -> Image.Image:
    """Draw smooth random colours, which a perceptual hash tells apart."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((96, 96), Image.Resampling.BICUBIC)


def test_near_earlier_hashes_are_those_of_a_plain_comparison() -> None:
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 1 << 63, 700, dtype=np.uint64)
    for copy, original in ((300, 10), (699, 300), (2, 1)):
        hashes[copy] = hashes[original] ^ np.uint64(0b101)
    hashes[[5, 6]] = 0  # flat images
    expected = {}
    for later in range(700):
        for earlier in range(later):
            flat = 0 in (hashes[later], hashes[earlier])
            if not flat and bin(int(hashes[later]) ^ int(hashes[earlier])).count("1") <= 4:
                expected.setdefault(later, earlier)
    assert near_earlier(hashes) == expected
    assert set(expected) >= {2, 300, 699}


def test_images_without_pairs_and_images_of_one_colour_have_no_line() -> None:
    statistic = NearDuplicates()
    for seed in range(20):
        statistic.add(None, scene(seed), str(seed))  # type: ignore[arg-type]
    for colour in ("red", "blue", "white"):
        statistic.add(None, Image.new("RGB", (64, 64), colour), colour)  # type: ignore[arg-type]
    assert list(statistic.lines()) == []


def test_the_command_prints_languages_and_near_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Path("t.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        for number, caption in enumerate([*GERMAN * 3, *ENGLISH]):
            scene(number).save(f"{number}.png")
            writer.writerow([f"{number}.png", caption])
        ImageEnhance.Brightness(scene(4).resize((64, 64))).enhance(1.05).save("copy.jpg", quality=80)
        writer.writerow(["copy.jpg", "noch ein Bild von einer Wiese"])
    done = CliRunner().invoke(app, ["data", "t.csv", "--page", "page.html"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "detected languages (fastText lid.176, 13 captions): de 77%, en 23%" in lines
    near = next(line for line in lines if line.startswith("near duplicates"))
    assert "1 images look like an earlier one" in near
    assert "copy.jpg" in near
    assert near.rstrip().endswith("4.png")
    page = Path("page.html").read_text()
    assert "de 77%" in page
    assert "near duplicates" in page
