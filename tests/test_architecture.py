"""The walls of the house: what may import what, and that every configuration's work exists and returns its artifact."""

from __future__ import annotations

import ast
import graphlib
import typing
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import grimp
import pytest

from vfm.base import Part, load_function
from vfm.interfaces import load_plugins, stage_types
from vfm.plugin import Stage

ROOT = Path(__file__).parent.parent
PACKAGES = ("vfm", "vfm_kernels", "vfm_curation", "vfm_eva", "vfm_clip", "vfm_diva")
PUBLIC = (
    "vfm",
    "vfm.plugin",
    "vfm.data",
    "vfm.data.annotated",
    "vfm.data.videos",
    "vfm.models",
    "vfm.train",
    "vfm.eval",
    "vfm.statistics",
    "vfm_kernels",
)
MAX_IMPORTS_IN_FUNCTIONS = 60  # optional extras, and what keeps `vfm plan` and `vfm --help` quick
MAX_TYPE_CHECKING_BLOCKS = 15

STAGES = dict(stage_types(load_plugins()))  # imports all


def parts_of(slot: type[Part]) -> Iterator[type[Part]]:
    for part in slot.__subclasses__():
        yield part
        yield from parts_of(part)


@pytest.mark.parametrize("kind", STAGES)
def test_the_work_of_a_stage_exists_and_returns_its_artifact(kind: str) -> None:
    stage = STAGES[kind]
    if stage.checks:
        assert callable(load_function(stage.checks))
    if stage.run is not Stage.run:
        return
    returned = typing.get_type_hints(load_function(stage.work)).get("return")
    assert isinstance(returned, type), f"{stage.work} has no return annotation"
    assert issubclass(returned, stage.makes)


def subclasses(base: type[Stage]) -> Iterator[type[Stage]]:
    for stage in base.__subclasses__():
        yield stage
        yield from subclasses(stage)


def test_every_stage_is_registered() -> None:
    defined = {
        stage
        for stage in subclasses(Stage)
        if typing.get_args(stage.model_fields["kind"].annotation) and stage.__module__.partition(".")[0] in PACKAGES
    }
    assert {stage.__name__ for stage in defined - set(STAGES.values())} == set()


@pytest.mark.parametrize("part", [part for part in parts_of(Part) if part.work], ids=lambda part: part.__name__)
def test_the_work_of_a_part_exists(part: type[Part]) -> None:
    assert callable(load_function(part.work))


CHECKSUMS = {
    "write_table": "write_page_checksum",
    "ParquetWriter": "write_page_checksum",
    "read_table": "page_checksum_verification",
    "ParquetFile": "page_checksum_verification",
}


def test_parquet_files_are_written_with_page_checksums_and_verified_when_read() -> None:
    calls = (
        (file, node)
        for file in sources("packages/*/src")
        if file.name != "parquet_files.py"  # the reader of the user's own files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "pq"
    )
    assert not [
        f"{file}:{node.lineno}"
        for file, node in calls
        if (key := CHECKSUMS.get(node.func.attr)) and key not in {word.arg for word in node.keywords}
    ]


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError with the circle


def folder_of(module: str, folders: set[str]) -> str:
    return module if module in folders else module.rpartition(".")[0]


# The doors: they import the stages of every folder, and nothing but entry points and users imports them.
DOORS = {"vfm.core", "vfm.plugin", "vfm_curation.plugin", "vfm_eva.plugin", "vfm_clip.plugin", "vfm_diva.plugin"}


def test_no_folder_imports_itself_in_a_circle() -> None:
    """An `__init__` only exports, so what it imports is not counted."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    folders = {module for module in graph.modules if graph.find_children(module)}
    imports: dict[str, set[str]] = {}
    for module in graph.modules - folders - DOORS:
        own = folder_of(module, folders)
        used = {folder_of(other, folders) for other in graph.find_modules_directly_imported_by(module)}
        imports.setdefault(own, set()).update(used - {own} - set(PACKAGES))
    graphlib.TopologicalSorter(imports).prepare()


MAX_FILES_IN_FOLDER = 20


def test_a_folder_can_be_seen_at_a_glance() -> None:
    counts = Counter(file.parent for file in sources("packages/*/src"))
    assert {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > MAX_FILES_IN_FOLDER} == {}


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in ROOT.glob(f"{folder}/**/*.py"))


def imports_in_functions(tree: ast.Module) -> int:
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    found = {id(node) for f in functions for node in ast.walk(f) if isinstance(node, (ast.Import, ast.ImportFrom))}
    return len(found)


def test_imports_are_at_the_top_of_a_module() -> None:
    trees = {file: ast.parse(file.read_text()) for file in sources("packages/*/src")}
    counts = {str(file.relative_to(ROOT)): imports_in_functions(tree) for file, tree in trees.items()}
    assert sum(counts.values()) < MAX_IMPORTS_IN_FUNCTIONS, {name: n for name, n in counts.items() if n}
    blocks = [file for file in trees if "if TYPE_CHECKING:" in file.read_text()]
    assert len(blocks) < MAX_TYPE_CHECKING_BLOCKS, blocks


def foreign_imports(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import from another of our packages."""
    own = file.relative_to(ROOT).parts[3] if file.is_relative_to(ROOT / "packages") else ""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            top = node.module.partition(".")[0]
            if top in PACKAGES and top != own:
                yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.partition(".")[0] not in PACKAGES or alias.name in PUBLIC, (file, alias.name)


@pytest.mark.parametrize("folder", ["curation", "eva", "clip", "diva"])
def test_plugins_use_only_the_public_surface(folder: str) -> None:
    check_public(sources(f"packages/{folder}/src"))


def test_examples_use_only_the_public_surface() -> None:
    check_public(sources("examples"))


def check_public(files: list[Path]) -> None:
    private = []
    for file in files:
        for module, name in foreign_imports(file):
            exported = getattr(import_module(module), "__all__", ())
            if name not in exported:
                private.append(f"{file.relative_to(ROOT)}: from {module} import {name}")
    assert files
    assert private == []
