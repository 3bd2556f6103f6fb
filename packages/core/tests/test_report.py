"""The report of a run: built from real panels with odd content, and read as text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from report_world import ODD, Elements, photo, run, written
from vfm.base import UserError, visible
from vfm.interfaces import BarsPanel, ImagesPanel, LinesPanel, Metric, PanelImage, Report, Series
from vfm.plugin import Artifact, Record
from vfm.report import RunSummary, write_report
from vfm.report.results import over_seeds

__all__ = ["run"]


class Fold(Record):
    """Measured values within an artifact of a plugin."""

    loss: float


class Folds(Artifact):
    folds: list[Fold]


def accuracies(directory: Path, **values: float) -> Report:
    """A report of models' accuracies alone."""
    metrics = [
        Metric(name="acc1", model=model, value=value, n=100, low=value, high=value, unit="%")
        for model, value in values.items()
    ]
    return Report.create(directory, task="zeroshot_classification", dataset="val", metrics=metrics)


def test_a_measured_value_may_be_nan(tmp_path: Path) -> None:
    accuracies(tmp_path, clip=math.nan)
    assert math.isnan(Report.load(tmp_path).metrics[0].value)


def test_records_in_artifacts_of_plugins_may_have_nan(tmp_path: Path) -> None:
    Folds.create(tmp_path, folds=[Fold(loss=math.nan)])
    assert math.isnan(Folds.load(tmp_path).folds[0].loss)


def test_words_of_the_data_never_become_markup(run: RunSummary, tmp_path: Path) -> None:
    text = written(run, tmp_path / "report.html")
    page = Elements(text)
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "embed", "form", "base"}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}], "the page's own, and no other"
    assert all(not key.startswith("on") for _, attributes in page.tags for key in attributes)
    addresses = [attributes.get(key) for _, attributes in page.tags for key in ("src", "href") if attributes.get(key)]
    assert addresses
    assert all(str(address).startswith(("#", "data:")) for address in addresses)
    for words in ODD:
        assert visible(words) in page.text
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


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
    assert "top-1 accuracy n = 1,200 · chance 10.0 % clip 40.0 % 35.0 – 45.0 %" in text
    assert "diva 50.0 % 45.0 – 55.0 % ≠ +10.0 [+4.0, +16.0], p < 0.001 against clip" in text
    assert "logit n = 1,200 clip −3 nats −3.05 – −2.95 nats" in text
    assert "Tests: exact McNemar." in text
    first = "zero_shot: diva is better than clip on these 1,200 items: top-1 accuracy +10.0 points (+4.0 to +16.0)."
    assert -1 < text.find(first) < text.find("top-1 accuracy n = 1,200")
    assert "Difference that would be seen With these 1,200 items a difference of 8.6 points is seen" in text
    assert "Whether a method makes the difference needs several seeds." in text
    assert "are corrected for 1 main comparison on the same items (Holm)" in text
    assert "▲ +" not in text, "one seed shows no gain of a method"


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


def test_a_value_that_is_not_a_number_loses_no_panel(run: RunSummary, tmp_path: Path) -> None:
    directory, nan = run.stages[0].directory, math.nan
    band = Series(name="a", x=[1, 2, 3], y=[1, nan, 1], low=[0, nan, 0], high=[nan, 2, 2])
    LinesPanel(title="Band", series=[band], x_label="x", y_label="y").save(directory)
    BarsPanel(title="Bars", labels=["a", "b"], values=[nan, 1.0], low=[nan, 0.5], high=[nan, 1.5]).save(directory)
    page = Elements(written(replace(run, stages=run.stages[:1]), tmp_path / "report.html"))
    assert "cannot be drawn" not in page.text
    assert sum(attributes.get("data-curve") == "0" for tag, attributes in page.tags if tag == "g") == 2, "with its band"
    assert sum(attributes.get("class") == "interval" for _, attributes in page.tags) == 1
    assert "a – b 1" in page.words


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
    assert "diva 63.5 % 57.1 – 69.9 % +2.5 [−3.9, +8.9], p = 0.13 against clip 63.0, 64.0 %" in headline
    assert "paired t over seeds" in headline
    assert "zero_shot: 2 seeds do not distinguish diva from clip: top-1 accuracy +2.5 points (−3.9 to +8.9)." in page
    assert "for 2 main comparisons on the same items, which count as 1 and, apart, for 1 main comparison" in headline
    assert "zero_shot@1" not in headline
    assert "40.0 %" not in headline
    assert Elements(page).words.count("clip 40.0 %") == 2


def test_a_bad_panel_costs_only_itself(run: RunSummary, tmp_path: Path) -> None:
    directory = run.stages[0].directory
    (tmp_path / "secret.png").write_bytes(photo(tmp_path / "s.png", 8, 8).read_bytes())
    (directory / "torn.png").write_bytes((tmp_path / "s.png").read_bytes()[:60])
    files = ["gone.png", "../secret.png", "torn.png", "artifact.json"]
    ImagesPanel(title="Lost pictures", pictures=[PanelImage(file=file, caption="kept words") for file in files]).save(
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
    assert "top-1 accuracy" in text


def test_photographs_are_shrunk_so_that_the_page_stays_small(run: RunSummary, tmp_path: Path) -> None:
    directory = run.stages[0].directory
    large = [photo(directory / f"{i}.png", 1000, 800).stat().st_size for i in range(4)]
    ImagesPanel(title="Photographs", pictures=[PanelImage(file=f"{i}.png") for i in range(4)], width=128).save(
        directory
    )
    assert sum(large) > 4_000_000
    assert len(written(run, tmp_path / "report.html")) < 1_000_000


def test_a_huge_manifest_is_cut_and_says_so(run: RunSummary, tmp_path: Path) -> None:
    sources = {f"/data/{shard:05d}.tar": "f1a9e2" for shard in range(10_000)}
    pool = replace(run.stages[0], manifest={"sources": sources})
    page = written(replace(run, stages=[pool]), tmp_path / "report.html")
    assert "9701 more lines" in page
    assert len(page) < 110_000


def test_artifacts_that_are_gone_or_unknown_still_give_a_page(run: RunSummary, tmp_path: Path) -> None:
    (run.stages[0].directory / "artifact.json").write_text(json.dumps({"type": "OfAnotherPackage"}))
    shutil.rmtree(run.stages[2].directory)
    assert "eval.zero_shot-0123abcd" in written(run, tmp_path / "report.html")


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(
    run: RunSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == missing or name.startswith("vfm.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("vfm.report.charts", raising=False)  # where `from vfm.report import charts` finds it
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{missing}: uv pip install -e 'packages/core\[report\]'"):
        write_report(run, tmp_path / "report.html")
    assert not list(tmp_path.glob("report.html*"))


def test_every_stage_is_folded_under_a_line_that_says_what_it_holds(run: RunSummary, tmp_path: Path) -> None:
    page = written(run, tmp_path / "report.html")
    assert page.count('<details class="stage"><summary>') == 2
    assert "2 tables, 7 charts, 1 text" in page  # the images are at the top


def test_outcomes_of_answers_are_on_the_page(run: RunSummary, tmp_path: Path) -> None:
    directory = run.stages[0].directory
    photo(directory / "a.png", 8, 8)
    pictures = [PanelImage(file="a.png", caption=str(right), right=right) for right in (True, False, None)]
    ImagesPanel(title="Answers", pictures=pictures).save(directory)
    page = Elements(written(run, tmp_path / "report.html"))
    figures = [attributes.get("data-outcome") for tag, attributes in page.tags if tag == "figure"]
    assert figures[:3] == ["right", "wrong", None]
