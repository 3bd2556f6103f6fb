"""Documents of the repository as pages of the site, at the paths that they have there, with all that they link to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import beside
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
SHOWN = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}  # files that become pages of their text
FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)")


@dataclass
class Pages:
    """The site before it is built.

    Attributes:
        texts: Markdown by path within the site.
        files: other files by path.
    """

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def title(self, path: str) -> str:
        """Return the first heading of a page, or the name of its file."""
        lines = FENCE.sub("", self.texts[path]).splitlines()
        return next((line for line in lines if line.startswith("# ")), Path(path).stem).removeprefix("# ")

    def add_documents(self, documents: Iterable[Path]) -> None:
        """Add Markdown files and notebooks, and the files that they link to.

        Raises:
            ValueError: a link leads nowhere.
        """
        queue = list(documents)
        while queue:
            document = queue.pop()
            path = document.with_suffix(".md").relative_to(ROOT).as_posix()
            if path not in self.texts:
                text = self._notebook(document) if document.suffix == ".ipynb" else document.read_text(encoding="utf-8")
                self.texts[path] = self._followed(text, document, queue)

    def _notebook(self, file: Path) -> str:
        """Return a notebook with its saved outputs as Markdown, and add their pictures and the notebook itself."""
        text, resources = MarkdownExporter().from_filename(
            str(file), {"output_files_dir": f"{file.stem}_files", "unique_key": file.stem}
        )
        folder = file.parent.relative_to(ROOT)
        pictures: dict[str, bytes] = resources["outputs"]
        self.files |= {(folder / name).as_posix(): content for name, content in pictures.items()}
        self.files[(folder / file.name).as_posix()] = file.read_bytes()
        return f'{text}\n\n<a href="{file.name}" download>The notebook as a file</a>\n'

    def _followed(self, text: str, document: Path, queue: list[Path]) -> str:
        """Return a text with its links leading to pages; other documents are added to the queue."""

        def page(link: re.Match[str]) -> str:
            if ":" in link[1]:  # an address
                return link[0]
            return f"]({os.path.relpath(self._page_of(document.parent / link[1], document, queue), document.parent)}"

        parts = FENCE.split(text)
        return "".join(part if part.startswith("```") else LINK.sub(page, part) for part in parts)

    def _page_of(self, target: Path, document: Path, queue: list[Path]) -> Path:
        """Return the file that stands on the site for what a document links to, and add it.

        Raises:
            ValueError: the link leads nowhere.
        """
        target = Path(os.path.normpath(target))
        path = target.relative_to(ROOT).as_posix()
        if path in self.files and target.suffix != ".ipynb":
            return target
        if (target / "README.md").is_file():
            return self._page_of(target / "README.md", document, queue)
        if target.is_dir():
            files = [file for file in sorted(target.rglob("*")) if _suffix(file) in SHOWN]
            parts = [f"## `{file.relative_to(target)}`\n\n{_fenced(file)}" for file in files]
            self.texts[f"{path}/index.md"] = "\n".join([f"# {path}\n", *parts])
            return target / "index.md"
        if not target.is_file():
            raise ValueError(f"{document.relative_to(ROOT)}: a link leads to {path}, which does not exist")
        if target.suffix in (".md", ".ipynb"):
            queue.append(target)
            return target.with_suffix(".md")
        if _suffix(target) in SHOWN:
            self.texts[f"{path}.md"] = _page(target, path)
            return target.with_name(f"{target.name}.md")
        self.files[path] = target.read_bytes()
        return target


def _suffix(file: Path) -> str:
    """Return the end of a file's name, that of what a template makes."""
    return Path(file.name.removesuffix(".jinja")).suffix


def _page(file: Path, path: str) -> str:
    """Return the page of a file's text, with equations if it has some."""
    return beside.page(file) if beside.has_equations(file) else f"# {path}\n\n{_fenced(file)}"


def _fenced(file: Path) -> str:
    return f"```{SHOWN[_suffix(file)]}\n{file.read_text(encoding='utf-8')}```\n"
