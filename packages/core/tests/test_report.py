"""The report of a run: built from real panels with odd content, read as text and in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vfm.artifacts import Artifact, Comparison, CuratedSubset, Metric, Pool, Report
from vfm.config import UserError
from vfm.flow.report import RunSummary, StageEntry, write_report
from vfm.flow.results import over_seeds
from vfm.panels import BarsPanel, ImagesPanel, LinesPanel, Picture, Series, TablePanel, TextPanel
from vfm.visible import visible

ODD = [
    "</svg></style><script>alert(1)</script>",
    '<img src="https://example.org/x.png" onerror="alert(2)">',
    "\" onmouseover='alert(3)' x=\"",
    "{{ 7 * 7 }} {% raw %} $x_1$ \\frac -->",
    "日本語 🎉 العربية e\u0301 \u202e",
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


def accuracies(directory: Path, **values: float) -> Report:
    """A report of models' accuracies alone."""
    metrics = [
        Metric(name="acc1", model=model, value=value, n=100, low=value, high=value, unit="%")
        for model, value in values.items()
    ]
    return Report.create(directory, task="zeroshot_classification", dataset="val", metrics=metrics)


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
        title="Bars", note=ODD[1], labels=ODD, values=[0, -3, 5.5, 2, 1e6, 4], reference=1.0, x_label=ODD[0]
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
        Picture(file="pictures/small.png", caption=ODD[0]),
        Picture(file="pictures/wide.jpg", caption=ODD[4] * 50),
    ]
    ImagesPanel(title=ODD[1], note=ODD[3], pictures=[*pictures, Picture(file="pictures/small.png")]).save(directory)
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
        self.text += data + " " if self.tags[-1:] != [("style", {})] else ""

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())


def test_words_of_the_data_never_become_markup(run: RunSummary, tmp_path: Path) -> None:
    page = Elements(written(run, tmp_path / "report.html"))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "form", "base"}
    assert all(not key.startswith("on") for _, attributes in page.tags for key in attributes)
    addresses = [attributes.get(key) for _, attributes in page.tags for key in ("src", "href") if attributes.get(key)]
    assert addresses
    assert all(str(address).startswith(("#", "data:")) for address in addresses)
    for words in ODD:
        assert visible(words) in page.text


def test_ids_are_unique_and_links_lead_somewhere(run: RunSummary, tmp_path: Path) -> None:
    page = Elements(written(run, tmp_path / "report.html"))
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert max(ids.values()) == 1
    targets = {str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"}
    assert targets <= set(ids)
    assert set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', (tmp_path / "report.html").read_text())) <= set(ids)


def test_the_same_run_gives_the_same_bytes(run: RunSummary, tmp_path: Path) -> None:
    assert written(run, tmp_path / "one.html") == written(run, tmp_path / "two.html")
    assert not list(tmp_path.glob("*.part"))


def test_before_and_after_carry_interval_chance_and_paired_test(run: RunSummary, tmp_path: Path) -> None:
    text = Elements(written(run, tmp_path / "report.html")).words
    assert "acc1 n = 1,200 · chance 10.0 % clip 40.0 % 35.0 – 45.0 %" in text
    assert "diva 50.0 % 45.0 – 55.0 % ▲ +10.0 [+4.0, +16.0], p < 0.001 against clip" in text
    assert "logit n = 1,200 clip −3 nats −3.05 – −2.95 nats" in text
    assert "Tests: exact McNemar." in text


def test_provenance_leads_to_the_fingerprints_of_the_shards(run: RunSummary, tmp_path: Path) -> None:
    text = Elements(written(run, tmp_path / "report.html")).text
    for fact in (
        "/data/00000.tar: f1a9e2",
        "commit: 8f3c1e7d",
        "curation.balance-0123abcd",
        "/else/where",
        "torch: 2.10.0",
    ):
        assert fact in text


def test_bad_samples_are_counted_by_reason_with_their_places(run: RunSummary, tmp_path: Path) -> None:
    text = Elements(written(run, tmp_path / "report.html")).words
    assert "curated unreadable image 3 00000.tar: a.png" in text
    assert "Nothing to show." in text
    clean = replace(run, stages=[run.stages[0]])
    assert "No bad samples." in written(clean, tmp_path / "clean.html")


def test_models_that_lack_a_value_of_different_seeds_are_not_paired(tmp_path: Path) -> None:
    of_seeds: list[dict[str, float]] = [{"clip": 0.6, "diva": 0.7}, {"clip": 0.5}, {"diva": 0.9}]
    reports = {f"zero_shot@{seed}": accuracies(tmp_path / str(seed), **got) for seed, got in enumerate(of_seeds)}
    assert [(found.model, found.values, found.comparison) for found in over_seeds(reports)] == [
        ("clip", (0.6, 0.5), None),
        ("diva", (0.7, 0.9), None),
    ]


def test_means_over_seeds_stand_in_the_headline_for_their_reports(run: RunSummary, tmp_path: Path) -> None:
    judged = run.stages[2]
    stages = [*run.stages[:2], *(replace(judged, name=f"zero_shot@{seed}") for seed in (0, 1))]
    reports = {
        f"zero_shot@{seed}": accuracies(tmp_path / str(seed), clip=clip, diva=diva)
        for seed, (clip, diva) in enumerate([(0.60, 0.63), (0.62, 0.64)])
    }
    seeds = over_seeds(reports)
    page = written(replace(run, stages=stages, seeds=seeds), tmp_path / "report.html")
    headline = Elements(page[page.index('id="results"') : page.index('id="stages"')]).words
    assert "mean over 2 seeds" in headline
    assert "clip 61.0 % 48.3 – 73.7 % 60.0, 62.0 %" in headline
    assert "Against clip; each seed" in headline
    assert "diva 63.5 % 57.1 – 69.9 % ≈ +2.5 [−3.9, +8.9], p = 0.13 against clip 63.0, 64.0 %" in headline
    assert "paired t over seeds" in headline
    assert "zero_shot@1" not in headline
    assert "40.0 %" not in headline
    assert Elements(page).words.count("clip 40.0 %") == 2


def test_a_bad_panel_costs_only_itself(run: RunSummary, tmp_path: Path) -> None:
    directory = run.stages[0].directory
    (tmp_path / "secret.png").write_bytes(photo(tmp_path / "s.png", 8, 8).read_bytes())
    (directory / "torn.png").write_bytes((tmp_path / "s.png").read_bytes()[:60])
    files = ["gone.png", "../secret.png", "torn.png", "artifact.json"]
    ImagesPanel(title="Lost pictures", pictures=[Picture(file=file, caption="kept words") for file in files]).save(
        directory
    )
    curves = LinesPanel(title="Curve", series=[Series(name="a", x=[1, 2], y=[1, 2])], x_label="", y_label="")
    torn = json.loads(curves.model_dump_json())
    torn["series"][0]["y"] = [1]
    (directory / "panels/60-torn.json").write_text(json.dumps(torn))
    (run.stages[2].directory / "panels/00-broken.json").write_text("{")
    (run.stages[2].directory / "panels/01-locked.json").mkdir()
    text = Elements(written(run, tmp_path / "report.html")).text
    assert text.count("kept words") == 4
    assert "../secret.png is outside the artifact's folder" in text
    assert "gone.png is missing" in text
    for file in ("torn.png", "artifact.json"):
        assert f"{file} is not a readable PNG or JPEG" in text
    assert text.count("this panel cannot be drawn") == 3
    assert "60-torn.json: series.0: series 'a': expected equal lengths, got 2 x, 1 y" in text
    assert "00-broken.json: b'{': invalid JSON" in text
    assert "01-locked.json: Is a directory" in text
    assert "What was asked" in text
    assert "acc1" in text


def test_photographs_are_shrunk_so_that_the_page_stays_small(run: RunSummary, tmp_path: Path) -> None:
    directory = run.stages[0].directory
    large = [photo(directory / f"{i}.png", 1000, 800).stat().st_size for i in range(4)]
    ImagesPanel(title="Photographs", pictures=[Picture(file=f"{i}.png") for i in range(4)], width=128).save(directory)
    assert sum(large) > 4_000_000
    assert len(written(run, tmp_path / "report.html")) < 1_000_000


def test_a_huge_manifest_is_cut_and_says_so(run: RunSummary, tmp_path: Path) -> None:
    sources = {f"/data/{shard:05d}.tar": "f1a9e2" for shard in range(10_000)}
    pool = replace(run.stages[0], manifest={"sources": sources})
    page = written(replace(run, stages=[pool]), tmp_path / "report.html")
    assert "9701 more lines" in page
    assert len(page) < 100_000


def test_artifacts_that_are_gone_or_unknown_still_give_a_page(run: RunSummary, tmp_path: Path) -> None:
    (run.stages[0].directory / "artifact.json").write_text(json.dumps({"type": "OfAnotherPackage"}))
    shutil.rmtree(run.stages[2].directory)
    assert "eval.zero_shot-0123abcd" in written(run, tmp_path / "report.html")


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(
    run: RunSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in [
        name for name in sys.modules if name.partition(".")[0] == missing or name.startswith("vfm.flow.report.")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("vfm.flow.report.charts", raising=False)  # where `from vfm.flow.report import charts` finds it
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{missing}: pip install 'vfm-core\[report\]'"):
        write_report(run, tmp_path / "report.html")
    assert not list(tmp_path.glob("report.html*"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium that logs its console and its requests. Where it is absent: a skip here, a failure in CI."""
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        binary = None
    if not (binary and driver):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "no chromium with chromedriver and selenium here"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


def test_a_browser_shows_all_of_it_and_fetches_nothing(run: RunSummary, tmp_path: Path, browser: Any) -> None:
    path = tmp_path / "report.html"
    write_report(run, path)
    browser.get_log("performance")
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert path.as_uri() in asked
    assert [
        url for url in asked if url != path.as_uri() and not url.startswith(("data:", "chrome:", "chrome-untrusted:"))
    ] == []  # its own icons
    headings = browser.execute_script("return [...document.querySelectorAll('h2')].map(h => h.innerText)")
    assert headings == ["Results", "Stages", "curated", "zero_shot", "Bad samples", "Warnings", "Provenance"]
    titles = browser.execute_script("return [...document.querySelectorAll('h4')].map(h => h.textContent)")
    assert {"Few curves", "Bars", "Table", ODD[1], "Text", "What was asked"} <= set(titles)
    widths = browser.execute_script("return [...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert widths == [32, 256, 32]
    boxes = browser.execute_script("return [...document.querySelectorAll('.chart svg')].map(s => s.getBBox().width)")
    assert len(boxes) == 3
    assert min(boxes) > 100


def test_a_phone_needs_no_sideways_scrolling(run: RunSummary, tmp_path: Path, browser: Any) -> None:
    write_report(run, tmp_path / "report.html")
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((tmp_path / "report.html").as_uri())
    width = browser.execute_script("return document.documentElement.scrollWidth")
    links = browser.execute_script("return [...document.querySelectorAll('nav a')].map(a => a.offsetTop)")
    above = (
        "return [...document.querySelectorAll('summary .head')].map(h => h.parentElement.offsetHeight - h.offsetHeight)"
    )
    heights = browser.execute_script(above)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width == 390
    assert links[:4] == [links[0]] * 4  # sections and stages flow in one row
    assert max(heights) < 10  # the triangle has no line of its own


def test_a_link_to_a_folded_artifact_unfolds_it(run: RunSummary, tmp_path: Path, browser: Any) -> None:
    write_report(run, tmp_path / "report.html")
    browser.get((tmp_path / "report.html").as_uri())
    is_open = "return document.querySelector('#made-stage-curated').parentElement.open"
    assert not browser.execute_script(is_open)
    browser.find_element("css selector", "a[href='#made-stage-curated']").click()
    assert browser.execute_script(is_open)
