"""Import timm and open_clip without the libraries that most models never use.

torchvision's operators import torch's compiler, and timm's optimizers import distributed tensors. Where they are
installed, timm imports wandb, and open_clip imports transformers. Together they take half of the CPU seconds of a short
command. Of torchvision itself most models use the transforms alone.

While timm, open_clip and torchvision are imported, these libraries are replaced by stand-ins. A name that was taken
from a stand-in imports the real module when it is first used. Only the command line does this, for commands that train
nothing.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

IMPORTERS = ("torchvision", "timm", "timm.optim", "open_clip")
DEFERRED = (
    "torch._dynamo", "torch.distributed.tensor", "wandb", "transformers", "scipy.stats",
    "torchvision.datasets", "torchvision.io", "torchvision.models", "torchvision.ops",
)  # fmt: skip


def defer_unused_imports() -> None:
    """Speed up later imports of the importers. A second call does nothing."""
    if not any(isinstance(finder, _Importers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Importers())


class _Importers(MetaPathFinder):
    """Finds timm, open_clip and torchvision, and imports them while stand-ins replace the deferred libraries."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in IMPORTERS else None
        if spec and spec.loader:
            spec.loader.exec_module = functools.partial(_execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _execute(load: Callable[[ModuleType], None], module: ModuleType) -> None:
    with _stand_ins():
        load(module)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Replace the deferred modules by stand-ins within the context. Modules that are already imported are unchanged."""
    names = [name for name in DEFERRED if name not in sys.modules and _is_installed(name)]
    finder = _StandIns(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module in finder.modules:
            _forget(module)


def _forget(module: str) -> None:
    """Remove a stand-in from the loaded modules, and from its package, unless the package itself always imports it."""
    stand_in = sys.modules.pop(module, None)
    package, _, name = module.rpartition(".")
    if package not in IMPORTERS and vars(sys.modules.get(package, sys)).get(name) is stand_in:
        delattr(sys.modules[package], name)


def _is_installed(name: str) -> bool:
    return PathFinder.find_spec(name.split(".", 1)[0]) is not None


class _StandIns(MetaPathFinder, Loader):
    """Finds stand-ins for modules and all their submodules."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.modules: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(name == deferred or name.startswith(f"{deferred}.") for deferred in self.names):
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.modules.append(spec.name)
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in needs no code."""


class _StandIn(ModuleType):
    """A module that stands in for a deferred library.

    While it is in `sys.modules`, its names are placeholders. Afterwards they are looked up in the real module.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if sys.modules.get(self.__name__) is not self:
            return getattr(importlib.import_module(self.__name__), name)
        return (
            _not_compiled if (self.__name__, name) == ("torch._dynamo", "disable") else _Deferred(self.__name__, name)
        )


def _not_compiled(function: Any, *_: Any, **__: Any) -> Any:
    """Mark a function as `torch._dynamo.disable` does, so that the compiler leaves it alone."""
    function._torchdynamo_disable = True
    return function


class _Deferred:
    """A function or class of a deferred module."""

    def __init__(self, module: str, name: str) -> None:
        self._of_module = module
        self._with_name = name

    def _import(self) -> Any:
        return getattr(importlib.import_module(self._of_module), self._with_name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._import()(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by type hints and decorators during the import
            raise AttributeError(name)
        return getattr(self._import(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._import(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._import())
