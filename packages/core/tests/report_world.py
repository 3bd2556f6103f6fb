"""A run with every panel and odd words, its page, and what a reader finds in it: for the tests of the report."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vfm.interfaces import (
    Artifact,
    BarsPanel,
    Comparison,
    CuratedSubset,
    ImagesPanel,
    LinesPanel,
    Metric,
    PanelImage,
    Pool,
    Report,
    Series,
    TablePanel,
    TextPanel,
)
from vfm.report import RunSummary, StageEntry, write_report

ODD = [
    "</svg></style><script>alert(1)</script>",
    '<img src="https://example.org/x.png" onerror="alert(2)">',
    "\" onmouseover='alert(3)' x=\"",
    "{{ 7 * 7 }} {% raw %} $x_1$ \\frac -->",
    "日本語 🎉 العربية e\u0301 \u202e",
    "'</script><script>document.title = 'taken'</script><!--<script>",
    "_begins_with_an_underscore & has a very long name " + "without_any_space" * 20,
]


def photo(path: Path, width: int, height: int, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)
    return path


def entry(
    directory: Path, name: str, kind: str, artifact: type[Artifact], facts: dict[str, Any], **manifest: Any
) -> StageEntry:
    artifact.create(directory, **facts)
    inputs = manifest.pop("inputs", {})
    full = {"kind": kind, "config": {"t": 40, "note": ODD[0]}, "seconds": 2.5, "commit": "8f3c1e7d", **manifest}
    return StageEntry(name, kind, f"{kind}-0123abcd", "new", 2.5, directory, inputs, full)


def save_every_panel(directory: Path) -> None:
    """Each type of panel with odd words, gaps and empty parts."""
    steps = [float(step) for step in range(40)]
    fall = [2.0 - step / 40 for step in steps]
    gap: list[float | None] = [None if 10 < step < 20 else value for step, value in zip(steps, fall, strict=True)]
    band = Series(name="short", x=steps, y=gap, low=[v - 0.1 for v in fall], high=[v + 0.1 for v in fall])
    LinesPanel(
        title="Few curves", series=[band, Series(name="日本語", x=steps, y=fall[::-1])], x_label=ODD[4], y_label=ODD[0]
    ).save(directory)
    LinesPanel(
        title="Many curves", series=[Series(name=name, x=steps, y=fall) for name in ODD], x_label="x", y_label="y"
    ).save(directory)
    LinesPanel(
        title="Empty curves",
        series=[Series(name="a", x=[], y=[]), Series(name="b", x=[1], y=[None])],
        x_label="x",
        y_label="y",
        x_log=True,
        y_log=True,
    ).save(directory)
    LinesPanel(
        title="Below zero on a log axis",
        series=[Series(name="a", x=[-1, 0], y=[-1, 0])],
        x_label="x",
        y_label="y",
        x_log=True,
        y_log=True,
    ).save(directory)
    BarsPanel(
        title="Bars", note=ODD[1], labels=ODD, values=[0, -3, 5.5, 2, 1e6, 4, 3], reference=1.0, x_label=ODD[0]
    ).save(directory)
    BarsPanel(title="No bars", labels=[], values=[]).save(directory)
    BarsPanel(title="Bars with intervals", labels=["a", "b"], values=[3, 4], low=[1, 2], high=[5, 6]).save(directory)
    TablePanel(title="Table", columns=[*ODD[:3], "number"], rows=[[None, ODD[3], 1, 0.5], [ODD[4], None, 2], []]).save(
        directory
    )
    TablePanel(title="Empty table", columns=["a"], rows=[]).save(directory)
    photo(directory / "pictures/small.png", 32, 32)
    photo(directory / "pictures/wide.jpg", 900, 300, "JPEG")
    pictures = [
        PanelImage(file="pictures/small.png", caption=ODD[0]),
        PanelImage(file="pictures/wide.jpg", caption=ODD[4] * 50),
    ]
    ImagesPanel(title=ODD[1], note=ODD[3], pictures=[*pictures, PanelImage(file="pictures/small.png")]).save(directory)
    ImagesPanel(title="No pictures", pictures=[]).save(directory)
    TextPanel(title="Text", text="\n".join(ODD)).save(directory)


def metric(name: str, model: str, value: float, **more: Any) -> Metric:
    return Metric(
        **{
            "name": name,
            "model": model,
            "value": value,
            "low": value - 0.05,
            "high": value + 0.05,
            "n": 1200,
            "chance": 0.1,
            **more,
        }
    )


@pytest.fixture
def run(tmp_path: Path) -> RunSummary:
    """A small run: a pool, a curated set with every panel, and an evaluation before and after."""
    pool = entry(
        tmp_path / "pool", "pool", "shapes.pool", Pool, {"num_samples": 20}, sources={"/data/00000.tar": "f1a9e2"}
    )
    bad = {"unreadable image": 3, ODD[0]: 1}
    curated = entry(
        tmp_path / "curated", "curated", "curation.balance", CuratedSubset, {"num_samples": 9, "pool": "../pool"},
        inputs={"pool": pool.id}, bad_samples=bad, warnings=[ODD[1]],
    )  # fmt: skip
    examples = {"unreadable image": ["00000.tar: a.png", ODD[0]]}
    curated = replace(curated, manifest={**curated.manifest, "bad_examples": examples})
    save_every_panel(curated.directory)
    test = {"difference": 0.1, "low": 0.04, "high": 0.16, "p_value": 0.0004, "test": "exact McNemar"}
    nats = metric("logit", "clip", -3.0, unit="nats", chance=None)
    facts = {
        "task": "zero-shot",
        "dataset": ODD[0],
        "metrics": [metric("acc1", "clip", 0.4), metric("acc1", "diva", 0.5), nats],
        "comparisons": [Comparison(metric="acc1", model="diva", baseline="clip", **test)],
    }
    judged = entry(
        tmp_path / "zero_shot",
        "zero_shot",
        "eval.zero_shot",
        Report,
        facts,
        inputs={"curated": curated.id, "/else/where": "x-1"},
    )
    TextPanel(title="What was asked", text="a photo of a {}.").save(judged.directory)
    return RunSummary(
        "odd <b>run</b>", datetime(2026, 3, 12, 14, 3), 75.0, f"vfm run '{ODD[1]}'", {"torch": "2.10.0"},
        [replace(pool, status="cached", seconds=0.0), curated, judged], description=ODD[0], recipe_text="stages: []",
    )  # fmt: skip


def written(run: RunSummary, path: Path) -> str:
    write_report(run, path)
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """The start tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " " if self.tags[-1:] not in ([("style", {})], [("script", {})]) else ""

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())
