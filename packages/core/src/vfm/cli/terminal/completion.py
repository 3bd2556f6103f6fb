"""Complete recipes, kinds of stages, models, runs and suites on Tab. Nothing here imports torch.

`vfm --install-completion` sets it up for bash, zsh, fish or PowerShell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from glob import escape
from importlib.util import find_spec
from pathlib import Path

from vfm.flow.plan.store import LINKS
from vfm.flow.recipe.shipped import shipped_files
from vfm.interfaces import load_plugins, stage_types

Complete = Callable[[str], list[str]]
STORE = Path("store")


def words(*allowed: str) -> Complete:
    """Complete one of a few words."""

    def complete(incomplete: str) -> list[str]:
        return _beginning(incomplete, allowed)

    return complete


def recipes(incomplete: str) -> list[str]:
    """Complete a shipped recipe, or a YAML file."""
    return _beginning(incomplete, shipped_files("recipes")) + paths(incomplete, (".yaml", ".yml"))


def shipped_recipes(incomplete: str) -> list[str]:
    """Complete a shipped recipe."""
    return _beginning(incomplete, shipped_files("recipes"))


def suites(incomplete: str) -> list[str]:
    """Complete a shipped suite, or a YAML file."""
    return _beginning(incomplete, shipped_files("suites")) + paths(incomplete, (".yaml", ".yml"))


def kinds(incomplete: str) -> list[str]:
    """Complete a kind of stage."""
    return _beginning(incomplete, stage_types(load_plugins()))


def runs(incomplete: str) -> list[str]:
    """Complete a run of the store `store`, as `vfm runs` lists it, or its name."""
    folders = sorted(STORE.glob("runs/[!.]*"))
    return _beginning(incomplete, [folder.name for folder in folders if folder.is_dir()])


def models(incomplete: str) -> list[str]:
    """Complete a model of the store `store`, a name of open_clip, or a path."""
    saved = sorted(str(folder) for folder in STORE.glob(f"runs/*/{LINKS}/[!.]*") if "@" not in folder.parts[2])
    package = find_spec("open_clip")
    names: list[str] = []
    for folder in (package.submodule_search_locations if package else None) or ():
        names += sorted(file.stem for file in Path(folder).glob("model_configs/*.json"))
    return _beginning(incomplete, saved + names) + paths(incomplete, ("",))


def paths(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    """Complete folders, with a slash at the end, and files with one of the endings."""
    found = sorted(Path().glob(f"{escape(incomplete)}*") if not incomplete.startswith("/") else ())
    folders = []
    files = []
    for path in found:
        if path.is_dir() and not path.name.startswith("."):
            folders.append(f"{path}/")
        elif path.is_file() and path.name.endswith(endings):
            files.append(str(path))
    return folders + files


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
