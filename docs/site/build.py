"""Build the documentation site: write its pages, and let Zensical make HTML of them, warnings being errors.

python docs/site/build.py [--serve] [--out FOLDER]

The pages are documents of the repository as they are, and others that are generated from recipes, configurations,
docstrings and results. None is kept: `build/site/pages` has them, `build/site/html` is the site.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import api_pages
import command_pages
import home
import paper_pages
import recipe_pages
import stage_pages
from documents import ROOT, Pages

from vfm.flow.recipe.shipped import PURPOSES

HERE = Path(__file__).parent
HOME, OVERVIEW, COMING, CHANGES = "README.md", "overview.md", "docs/coming_from.md", "CHANGELOG.md"
CONTRIBUTING = "CONTRIBUTING.md"
USING, METHODS = (
    [f"docs/{name}.md" for name in names.split()]
    for names in (
        "install first_hour data classifiers recipes runs models serving python scaling troubleshooting",
        "curation pretraining clip_training feedback detection video language_models evaluation kernels",
    )
)
RESULTS = "docs/results.md"
MEASURED = ["docs/performance.md", "docs/faults.md"]
PACKAGES = [f"packages/{name}/README.md" for name in ("core", "curation", "eva", "clip", "diva", "kernels")]
NOTEBOOKS, PLAIN = "examples/notebooks", "examples/plain"
Navigation = list[tuple[str, "str | Navigation"]]


def main() -> int:
    """Write the pages and the settings, and build or serve them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="Serve the site instead, with its search.")
    parser.add_argument("--out", type=Path, default=ROOT / "build/site", help="Folder of the pages and of the site.")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    for made in ("pages", "html", ".cache"):
        shutil.rmtree(out / made, ignore_errors=True)
    try:
        pages = collect()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in pages.texts.items():
        _place(out / "pages" / path).write_text(text, encoding="utf-8")
    for path, content in pages.files.items():
        _place(out / "pages" / path).write_bytes(content)
    (out / "zensical.toml").write_text(settings(pages), encoding="utf-8")
    action = ["serve"] if arguments.serve else ["build", "--strict"]
    return subprocess.run([sys.executable, "-m", "zensical", *action], cwd=out).returncode


def collect() -> Pages:
    """Return all pages of the site.

    Raises:
        ValueError: a link, a name of `__all__` or the results that a page on a paper names do not exist.
    """
    pages = Pages(files={"extra.css": (HERE / "extra.css").read_bytes()})
    pages.add_documents(ROOT / path for path in ("README.md", CONTRIBUTING, CHANGES, *PACKAGES))
    pages.add_documents(sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/results").glob("*.md")]))
    pages.add_documents(sorted((ROOT / NOTEBOOKS).glob("*.ipynb")))
    for generated in (recipe_pages, stage_pages, command_pages, api_pages, paper_pages):
        pages.texts.update(generated.pages())
    pages.texts[OVERVIEW] = pages.texts.pop("README.md")
    pages.texts[HOME] = home.text()
    for path in (COMING, command_pages.PAGE):  # no page beside them: the text takes the place of the list
        pages.texts[path] = f"---\nhide: [navigation]\n---\n\n{pages.texts[path]}"
    return pages


def settings(pages: Pages) -> str:
    """Return Zensical's settings with the navigation in them."""
    text = (HERE / "zensical.toml").read_text(encoding="utf-8")
    paths = json.dumps(api_pages.SOURCES)
    return (
        text.replace("[project]\n", f"[project]\nnav = {_toml(navigation(pages))}\n", 1)
        + f"\n[project.plugins.mkdocstrings.handlers.python]\npaths = {paths}\n"
    )


def navigation(pages: Pages) -> Navigation:
    """Return the tree of titles and pages."""
    elsewhere = {*USING, *METHODS, *MEASURED, RESULTS, COMING}
    others = sorted(path for path in pages.texts if Path(path).parent == Path("docs") and path not in elsewhere)
    notebooks = sorted(path for path in pages.texts if Path(path).parent == Path(NOTEBOOKS))
    claims = sorted(path for path in pages.texts if Path(path).parent == Path(RESULTS).with_suffix(""))
    guides: Navigation = [("Using vfm", _titled(pages, USING)), ("Methods", _titled(pages, METHODS))]
    if notebooks:
        guides.append(("Notebooks", _titled(pages, notebooks)))
    guides += [("Extending", _titled(pages, [*others, CONTRIBUTING])), ("Packages", _titled(pages, PACKAGES))]
    return [
        ("Start", HOME),
        ("Guides", [("Overview", OVERVIEW), *guides, ("Changelog", CHANGES)]),
        (
            "In one file",
            _titled(pages, [f"{PLAIN}/README.md", *(f"{PLAIN}/{name}.py.md" for name in paper_pages.METHODS)]),
        ),
        ("Recipes", [*_titled(pages, [recipe_pages.INDEX]), *_recipe_groups(pages)]),
        ("Stages", [*_titled(pages, [stage_pages.INDEX]), *_stage_groups(pages)]),
        ("Commands", command_pages.PAGE),
        ("API", _titled(pages, _under(pages, api_pages.INDEX))),
        ("Papers", _titled(pages, _under(pages, paper_pages.INDEX))),
        ("Coming from", COMING),
        (
            "Results & performance",
            [
                *_titled(pages, [RESULTS]),
                ("Claims", _titled(pages, claims)),
                *_titled(pages, MEASURED),
                ("Benchmarks", list(_benchmarks(pages))),
            ],
        ),
    ]


def _recipe_groups(pages: Pages) -> Iterator[tuple[str, Navigation]]:
    for purpose, title in PURPOSES.items():
        yield title, _titled(pages, recipe_pages.paths(purpose))


def _stage_groups(pages: Pages) -> Iterator[tuple[str, Navigation]]:
    kinds = [path for path in _under(pages, stage_pages.INDEX) if path != stage_pages.INDEX]
    for family, members in groupby(kinds, key=lambda path: Path(path).name.partition(".")[0]):
        yield family, _titled(pages, list(members))


def _benchmarks(pages: Pages) -> Iterator[tuple[str, str]]:
    """Yield the pages of the benchmarks that documents link to; many have no heading."""
    for path in sorted(pages.texts):
        if "/benchmarks/" in path:
            yield f"{Path(path).parts[1]}: {Path(path).stem.removesuffix('README') or 'about'}", path


def _under(pages: Pages, index: str) -> list[str]:
    """Return the pages in the folder of a list, the list first."""
    return [path for path in pages.texts if Path(path).parent == Path(index).parent]


def _titled(pages: Pages, paths: list[str]) -> Navigation:
    return [(pages.title(path), path) for path in paths]


def _toml(tree: Navigation) -> str:
    """Return a tree as TOML; a JSON string is one of TOML."""
    items = (f"{{{json.dumps(title)} = {json.dumps(to) if isinstance(to, str) else _toml(to)}}}" for title, to in tree)
    return f"[{', '.join(items)}]"


def _place(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


if __name__ == "__main__":
    sys.exit(main())
