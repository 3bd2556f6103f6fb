"""Load installed plugins from the entry points `vfm`, and list their stages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points, requires
from typing import Any

import pluggy

from vfm.base import UserError, did_you_mean, how_to_install, load_function
from vfm.interfaces import hookspecs
from vfm.interfaces.checkpoints import DenseCheckpoint, VideoClassifier
from vfm.interfaces.stage import PREDICTORS, Stage

PACKAGE_OF_MODULE = {"open_clip": "open-clip-torch", "sklearn": "scikit-learn"}  # where the names differ
PACKAGES = {"curation": "vfm-curation", "eva": "vfm-eva", "clip": "vfm-clip", "diva": "vfm-diva"}


def load_plugins() -> pluggy.PluginManager:
    """Load every installed plugin, including core's, into a plugin manager.

    Raises:
        UserError: If a plugin cannot be imported, implements an unknown hook, or has the name of another plugin.
    """
    manager = pluggy.PluginManager("vfm")
    manager.add_hookspecs(hookspecs)
    for entry in sorted(entry_points(group="vfm"), key=lambda entry: entry.name != "core"):  # core first
        package = entry.dist.name if entry.dist else "an unknown package"
        origin = f"plugin {entry.name!r} of {package}"
        try:
            manager.register(entry.load(), entry.name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise UserError(f"{origin}: {str(error).splitlines()[-1]}") from error
        except Exception as error:
            raise UserError(f"{origin} cannot be loaded: {type(error).__name__}: {error}") from error
    return manager


def origin_of(manager: pluggy.PluginManager, name: str) -> str:
    """Format name and version of the distribution that a plugin belongs to."""
    for entry in entry_points(group="vfm"):
        if entry.name == name and entry.dist:
            return f"{entry.dist.name} {entry.dist.version}"
    return "vfm-core"


class StageTypes(Mapping[str, type[Stage]]):
    """Stage types by kind, sorted. A type that its plugin names by an address is imported when it is first used.

    Args:
        owners: Name of the plugin, and the type or its address, by kind.
    """

    def __init__(self, owners: Mapping[str, tuple[str, type[Stage] | str]]) -> None:
        self._owners = dict(sorted(owners.items()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, kind: object) -> bool:
        return kind in self._owners

    def __getitem__(self, kind: str) -> type[Stage]:
        plugin, stage = self._owners[kind]
        if isinstance(stage, str):
            stage = _import_stage(stage, kind, plugin)
            self._owners[kind] = (plugin, stage)
        return stage

    def plugin_of(self, kind: str) -> str:
        """Look up the name of the plugin that has a kind."""
        return self._owners[kind][0]


def _import_stage(address: str, kind: str, plugin: str) -> type[Stage]:
    """Import the stage type at an address.

    Raises:
        UserError: If it cannot be imported, or has another kind.
    """
    try:
        stage: Any = load_function(address)
        name = stage.kind_name()
    except Exception as error:
        raise UserError(f"plugin {plugin!r}: {kind} cannot be loaded: {type(error).__name__}: {error}") from error
    if name != kind:
        raise UserError(f"plugin {plugin!r}: expected a stage of kind {kind} at {address}, got {name}")
    return stage  # type: ignore[no-any-return]


def stage_types(manager: pluggy.PluginManager) -> StageTypes:
    """Collect every stage type by its kind.

    Raises:
        UserError: If two plugins have the same kind, or the hook of a plugin fails.
    """
    owners: dict[str, tuple[str, type[Stage] | str]] = {}
    for implementation in manager.hook.vfm_stages.get_hookimpls():
        plugin = implementation.plugin_name
        try:
            stages: Any = implementation.function()
            if isinstance(stages, Mapping):
                kinds = list(stages.items())
            else:
                kinds = [(stage.kind_name(), stage) for stage in stages]
        except Exception as error:
            raise UserError(
                f"plugin {plugin!r}: vfm_stages must return stage types, each with its kind as a Literal:"
                f" {type(error).__name__}: {error}"
            ) from error
        for kind, stage in kinds:
            if kind in owners and owners[kind][1] != stage:
                raise UserError(f"two plugins have stage kind {kind!r}: {owners[kind][0]} and {plugin}")
            owners[kind] = (plugin, stage)
    return StageTypes(owners)


def import_stages() -> None:
    """Import all stages of installed plugins.

    This defines their types of artifacts and fills `PREDICTORS`.
    """
    list(stage_types(load_plugins()).values())  # each is imported when it is read


def find_predictor(artifact: DenseCheckpoint | VideoClassifier) -> Callable[..., Any]:
    """Import the function (checkpoint, device) that loads a model.

    Raises:
        UserError: If the artifact, whose author need not be trusted, names a function that no installed stage declares.
    """
    import_stages()
    if artifact.predictor not in PREDICTORS:
        raise UserError(
            f"{artifact.path}: predictor: expected one that an installed stage declares"
            f" ({', '.join(sorted(PREDICTORS)) or 'there is none'}), got {artifact.predictor!r}; install the plugin"
            " that made the model"
        )
    return load_function(artifact.predictor)


def extra_of(module: str) -> str | None:
    """Find the extra that installs a missing module, such as `vfm-core[torch]`.

    Modules of no extra give None.
    """
    top = module.split(".", 1)[0]
    package_name = PACKAGE_OF_MODULE.get(top, top.replace("_", "-"))
    plugins = {entry.dist.name for entry in entry_points(group="vfm") if entry.dist}
    for package in ("vfm-core", *sorted(plugins)):
        for requirement in requires(package) or ():
            match = re.match(rf"{re.escape(package_name)}\b[^;]*; *extra == ['\"](.+)['\"]", requirement)
            if match:
                return f"{package}[{match[1]}]"
    return None


@contextmanager
def naming_extras(what: str) -> Iterator[None]:
    """Turn a missing module into a UserError with the extra that installs it. `what` needs the module."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra:
            raise UserError(f"{what} needs {error.name}: {how_to_install(extra)}") from None
        raise


def unknown_kind(kind: str, known: Mapping[str, type[Stage]]) -> str:
    """Write the error message for a kind that no installed plugin has."""
    domain = kind.split(".", 1)[0]
    package = PACKAGES.get(domain)
    if package and not any(other.split(".", 1)[0] == domain for other in known):
        return f"stage kind {kind!r} needs a package that is not installed: {how_to_install(package)}"
    return f"unknown stage kind {kind!r}{did_you_mean(kind, known)}"
