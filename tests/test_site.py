"""The documentation site: built with warnings as errors, every link followed, and a place for all that can be used."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import tomllib
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urldefrag, urlencode

import nbformat
import pytest
import typer
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from selenium import webdriver
from selenium.common import WebDriverException
from selenium.webdriver.support.ui import WebDriverWait

from outside import ROOT, checked, made_once
from test_architecture import PUBLIC, STAGES
from vfm.cli import app
from vfm.flow.recipe.shipped import PURPOSES, shipped_files

FETCHED = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src"}
NOT_FETCHED = {"canonical", "next", "prev"}  # kinds of <link> that no browser loads


@dataclass
class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it."""

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if FETCHED.get(tag, "") in values and values.get("rel") not in NOT_FETCHED:
            self.loaded.append(values[FETCHED[tag]])


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(folder: Path) -> None:
        command = [sys.executable, ROOT / "docs/site/build.py", "--out", folder]
        checked(subprocess.run(command, cwd=folder, capture_output=True, text=True))

    return made_once(tmp_path_factory, "site", build) / "html"


@pytest.fixture(scope="module")
def pages(html: Path) -> dict[Path, Page]:
    found = {}
    for file in html.rglob("*.html"):
        found[file] = Page()
        found[file].feed(file.read_text(encoding="utf-8"))
    return found


def is_outside(link: str) -> bool:
    return link.startswith(("http://", "https://", "mailto:", "data:"))


def test_every_link_leads_to_a_file_and_a_place_in_it(html: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        for link in page.links + page.loaded:
            path, anchor = urldefrag(unquote(link))
            if is_outside(link):
                continue
            target = (html / path[1:] if path.startswith("/") else file.parent / path) if path else file
            target = target.resolve() / "index.html" if target.is_dir() else target.resolve()
            if not target.is_file() or (anchor and anchor not in pages[target].anchors):
                broken.append(f"{file.relative_to(html)}: {link}")
    assert sum(len(page.links) for page in pages.values()) > 10_000
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(html: Path, pages: dict[Path, Page]) -> None:
    assert {link for page in pages.values() for link in page.loaded if is_outside(link)} == set()
    assert "@import" not in (html / "extra.css").read_text()


def test_every_recipe_has_its_page_with_all_of_its_lines(html: Path, pages: dict[Path, Page]) -> None:
    for name, file in shipped_files("recipes").items():
        page = html / f"recipes/{name}.html"
        assert f"{name}.html" in pages[html / "recipes/index.html"].links
        last = file.read_text().splitlines()[-1]
        assert last.split()[-1] in text_of(page), name


def test_every_notebook_has_its_page(html: Path, pages: dict[Path, Page]) -> None:
    for file in (ROOT / "examples/notebooks").glob("*.ipynb"):
        page = html / f"examples/notebooks/{file.stem}.html"
        assert file.name in pages[page].links
        assert any(link.endswith(f"notebooks/{file.stem}.html") for link in pages[html / "docs/python.html"].links)


@pytest.mark.parametrize("name", ["metaclip", "eva", "clip", "diva"])
def test_each_method_in_one_file_has_its_page_with_all_of_its_lines_and_equations(
    name: str, html: Path, pages: dict[Path, Page]
) -> None:
    page = html / f"examples/plain/{name}.py.html"
    text = text_of(page)
    lines = (ROOT / f"examples/plain/{name}.py").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line not in text] == []
    equations = tomllib.loads((ROOT / "docs/site/equations.toml").read_text(encoding="utf-8"))[name]
    assert page.read_text(encoding="utf-8").count("<math") == sum(len(entry["latex"]) for entry in equations.values())
    for source in ("examples/plain/index", f"papers/{name}"):
        assert any(link.endswith(f"{name}.py.html") for link in pages[html / f"{source}.html"].links), source


@pytest.mark.parametrize("kind", STAGES)
def test_every_stage_has_its_page_with_all_of_its_fields(kind: str, html: Path) -> None:
    text = text_of(html / f"stages/{kind}.html")
    fields = set(STAGES[kind].model_fields) - {"kind"}
    assert {name for name in fields if name not in text} == set()


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_described(module: str, html: Path, pages: dict[Path, Page]) -> None:
    """On the page of its module, or by a link to the page of another one that exports it too."""
    places = {link.rpartition(".")[2] for link in pages[html / f"reference/{module}.html"].links if "#vfm" in link}
    assert set(import_module(module).__all__) - places == set()


@pytest.fixture(scope="module")
def browser(html: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[webdriver.Chrome, str]]:
    """A browser without a network, and the address of the site."""
    profile = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "no-first-run", "window-size=1280,900",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield chromium, f"http://127.0.0.1:{server.server_port}/"
    finally:
        chromium.quit()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def search(browser: tuple[webdriver.Chrome, str]) -> Callable[[str], list[str]]:
    """A function that types words into the search and returns the pages and sections that it finds, best first."""
    chromium, address = browser
    root = "document.activeElement.shadowRoot"  # the search has a root of its own
    wait = WebDriverWait(chromium, 60, ignored_exceptions=[WebDriverException])

    def is_open(_: object) -> bool:
        if chromium.execute_script(f"return {root} ?? null") is None:  # not yet, or clicked before the script was ready
            chromium.find_element("class name", "md-search__button").click()
        return chromium.execute_script(f"return {root} ?? null") is not None

    def found(words: str) -> list[str]:
        chromium.get(f"{address}index.html")
        wait.until(is_open)
        chromium.switch_to.active_element.send_keys(words)
        marked = urlencode({"h": words})  # a link has the words, by which the page marks them
        wait.until(
            lambda _: chromium.execute_script(f"return {root}.querySelector('ol a[href*=\"{marked}\"]') !== null")
        )
        links = chromium.execute_script(f"return [...{root}.querySelectorAll('ol a')].map(link => link.href)")
        return [link.removeprefix(address).replace(f"?{marked}", "") for link in links]

    return found


@pytest.mark.needs("chromium", "chromedriver")
def test_the_site_follows_the_mode_of_the_system(browser: tuple[webdriver.Chrome, str]) -> None:
    chromium, address = browser
    wait = WebDriverWait(chromium, 60)
    chromium.get(f"{address}index.html")
    for mode, scheme in (("light", "default"), ("dark", "slate"), ("light", "default"), ("dark", "slate")):
        features = [{"name": "prefers-color-scheme", "value": mode}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        # A second visit in another mode was the fault: the choice of the first one was kept.
        for page in ("index.html", "docs/install.html"):
            chromium.get(f"{address}{page}")
            script = f"return document.body.getAttribute('data-md-color-scheme') === '{scheme}'"
            wait.until(lambda _, script=script: chromium.execute_script(script), f"{page}, {mode}")


@pytest.mark.needs("chromium", "chromedriver")
def test_the_search_finds_a_field_without_a_network(search: Callable[[str], list[str]]) -> None:
    assert any(link.startswith("stages/curation.balance.html") for link in search("reference_language"))


GUIDES = {
    "resume": "troubleshooting.html#resume-an-interrupted-run",
    "out of memory": "troubleshooting.html#out-of-memory",
    "my own pictures": "troubleshooting.html#my-own-images",
    "my own images": "troubleshooting.html#my-own-images",
    "my labels": "troubleshooting.html#my-own-labels",
    "lora": "troubleshooting.html#lora",
    "nan": "troubleshooting.html#the-loss-is-nan",
    "loss not decreasing": "troubleshooting.html#the-loss-does-not-fall",
    "no gpu": "troubleshooting.html#no-gpu",
    "multiple gpus": "troubleshooting.html#several-gpus",
    "slow": "troubleshooting.html#slow-data-loading",
    "how long": "troubleshooting.html#how-long-will-it-take",
    "offline": "troubleshooting.html#without-internet",
    "disk full": "troubleshooting.html#the-disk-is-full",
    "tensorboard": "runs.html#trackers",
    "onnx": "serving.html#with-onnxruntime",
    "export onnx": "troubleshooting.html#export-to-onnx",
    "train on two gpus": "troubleshooting.html#several-gpus",
    "batch size": "troubleshooting.html#batch-size-and-learning-rate",
    "learning rate": "troubleshooting.html#batch-size-and-learning-rate",
    "my csv": "troubleshooting.html#my-own-csv",
    "continue after crash": "troubleshooting.html#resume-an-interrupted-run",
    "cuda out of memory": "troubleshooting.html#out-of-memory",
    "remove cache": "troubleshooting.html#remove-the-cache-and-old-runs",
    "use my own model": "troubleshooting.html#use-my-own-model",
    "change image size": "troubleshooting.html#change-the-image-size",
    "early stopping": "troubleshooting.html#validation-loss-and-early-stopping",
    "validation loss": "troubleshooting.html#validation-loss-and-early-stopping",
    "save checkpoints": "troubleshooting.html#save-checkpoints",
    "class imbalance": "troubleshooting.html#class-imbalance",
    "huggingface dataset": "troubleshooting.html#a-hugging-face-dataset",
    "jupyter notebook": "troubleshooting.html#jupyter-notebook",
    "docker": "troubleshooting.html#docker",
    "mixed precision": "troubleshooting.html#mixed-precision",
    "image embeddings": "troubleshooting.html#image-embeddings",
    "reproducible": "troubleshooting.html#results-differ-between-runs",
}


@pytest.mark.needs("chromium", "chromedriver")
@pytest.mark.parametrize("words", GUIDES)
def test_the_search_of_a_newcomer_finds_the_guide_first(words: str, search: Callable[[str], list[str]]) -> None:
    assert search(words)[0] == f"docs/{GUIDES[words]}"


@pytest.mark.needs("chromium", "chromedriver")
def test_the_search_finds_an_option_on_the_page_of_commands(search: Callable[[str], list[str]]) -> None:
    assert "commands/index.html#vfm-predict" in search("min-score")


def test_the_landing_page_has_commands_cards_and_numbers_of_the_results(html: Path, pages: dict[Path, Page]) -> None:
    page = html / "index.html"
    text = text_of(page)
    for line in ("from raw image-text pairs to a measured checkpoint", "pip install uv && uv run vfm run quickstart"):
        assert line in text
    assert "docs/report.png" in pages[page].loaded
    assert {"docs/clip_training.html", "docs/pretraining.html", "docs/curation.html", "docs/evaluation.html"} <= set(
        pages[page].links
    )
    answers = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert len(shown := re.findall(r"[+]\d[\d.]* points|\d+ random kills", text)) >= 4
    assert [number for number in shown if number not in answers] == []


def options_of(command: Any, words: tuple[str, ...] = ("vfm",)) -> Iterator[tuple[str, str]]:
    """Yield each command with each of its options, those of a group's commands included."""
    for param in command.params:
        yield from ((" ".join(words), option) for option in (*param.opts, *param.secondary_opts) if option[0] == "-")
    for name, inner in getattr(command, "commands", {}).items():
        yield from options_of(inner, (*words, name))


def test_every_command_and_option_stands_on_the_page_of_commands(html: Path) -> None:
    first, *sections = (html / "commands/index.html").read_text(encoding="utf-8").split('<h2 id="')
    parts = {"vfm": first} | {section.partition('"')[0]: section for section in sections}
    words = {name: unescape(re.sub(r"<[^>]*>", " ", part)).split() for name, part in parts.items()}
    wanted = list(options_of(typer.main.get_command(app)))
    assert ("vfm predict", "--min-score") in wanted
    assert [line for line in wanted if line[1] not in words.get(line[0].replace(" ", "-"), [])] == []


def test_recipes_stand_in_groups_by_purpose(html: Path, pages: dict[Path, Page]) -> None:
    text = (html / "recipes/index.html").read_text(encoding="utf-8")
    places = [text.index(f">{title}<a") for title in PURPOSES.values()]
    assert places == sorted(places)


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that collects documents, for a repository with a few of each kind."""
    monkeypatch.syspath_prepend(ROOT / "docs/site")
    module = import_module("documents")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "plugin/src").mkdir(parents=True)
    (tmp_path / "plugin/loss.py").write_text("LOSS = 1\n")
    (tmp_path / "plugin/src/work.py.jinja").write_text("WORK = {{ name }}\n")
    (tmp_path / "table.json").write_text("{}")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    outputs = [new_output("display_data", {"image/png": b64encode((tmp_path / "red.png").read_bytes()).decode()})]
    cells = [new_markdown_cell("# Red\n\n[Back](docs/a.md)"), new_code_cell("show()", outputs=outputs)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "red.ipynb")
    (tmp_path / "README.md").write_text("# All\n\n```sh\n# [no](link)\n```\n")
    links = "[1](../plugin) [2](../plugin/loss.py) [3](../table.json) [4](../red.ipynb#x) [5](..) [6](https://a.b/c.md)"
    (tmp_path / "docs/a.md").write_text(f"# A\n\n{links}\n")
    return module


def test_documents_bring_what_they_link_to_and_lead_to_its_pages(documents: ModuleType, tmp_path: Path) -> None:
    pages = documents.Pages()
    pages.add_documents([tmp_path / "docs/a.md"])
    assert set(pages.texts) == {"docs/a.md", "plugin/index.md", "plugin/loss.py.md", "red.md", "README.md"}
    assert set(pages.files) == {"table.json", "red.ipynb", "red_files/red_1_0.png"}
    assert pages.texts["docs/a.md"].split("\n\n")[1].split() == [
        "[1](../plugin/index.md)", "[2](../plugin/loss.py.md)", "[3](../table.json)", "[4](../red.md#x)",
        "[5](../README.md)", "[6](https://a.b/c.md)",
    ]  # fmt: skip
    assert re.findall("^## `(.+)`$", pages.texts["plugin/index.md"], re.M) == ["loss.py", "src/work.py.jinja"]
    assert "](red_files/red_1_0.png)" in pages.texts["red.md"]
    assert pages.texts["README.md"] == (tmp_path / "README.md").read_text()


def test_a_link_to_nothing_is_named(documents: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs/a.md").write_text("[1](b.md)")
    with pytest.raises(ValueError, match=r"docs/a.md: a link leads to docs/b.md, which does not exist"):
        documents.Pages().add_documents([tmp_path / "docs/a.md"])


def test_results_that_are_not_there_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/site")
    results = import_module("results")
    assert results.block("metaclip_claim", "| matched - raw").count("\n") == 6
    with pytest.raises(ValueError, match=r"metaclip_claim.md: expected one block .* begins with 'Better than', got 0"):
        results.block("metaclip_claim", "Better than")


def text_of(page: Path) -> str:
    """The words of a page, those of its code included."""
    words: list[str] = []
    parser = HTMLParser()
    parser.handle_data = words.append  # type: ignore[assignment]
    parser.feed(page.read_text(encoding="utf-8"))
    return unescape("".join(words))
