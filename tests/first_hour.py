"""Write the files of docs/first_hour.md into a folder: Parquet with labels, a csv of captions, and a file of timm."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image

NAMES = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}


def image(number: int) -> bytes:
    """Draw an image of a colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (48 + number, 48), list(NAMES.values())[number % 4]).save(buffer, "JPEG")
    return buffer.getvalue()


def main(folder: Path) -> None:
    """Write the files."""
    rows = []
    for number in range(48):
        about = {"label": number % 4, "names": list(NAMES)[number % 4], "site": ["north", "south"][number % 3 == 0]}
        rows.append({"image": {"bytes": image(number), "path": None}, **about})
    for name, part in (("train", rows[:32]), ("val", rows[32:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")
    (folder / "photos").mkdir(exist_ok=True)
    with (folder / "captions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["photo", "title"])
        for number in range(24):
            (folder / "photos" / f"{number:03d}.jpg").write_bytes(image(number))
            writer.writerow([f"{number:03d}.jpg", f"a photo of something {list(NAMES)[number % 4]}, number {number}"])
    torch.save(timm.create_model("resnet10t", num_classes=4).state_dict(), folder / "resnet.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
