"""Installed plugins: load them from the entry points `vfm`, and list their stages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points, requires
from typing import Any, cast

import pluggy

from vfm.base import UserError, did_you_mean, how_to_install, load_function
from vfm.interfaces import hookspecs
from vfm.interfaces.artifacts import DenseCheckpoint, VideoClassifier
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


def stage_types(manager: pluggy.PluginManager) -> dict[str, type[Stage]]:
    """Collect every stage type by its kind.

    Raises:
        UserError: If two plugins have the same kind, or the hook of a plugin fails.
    """
    owners: dict[str, tuple[str, type[Stage]]] = {}
    for implementation in manager.hook.vfm_stages.get_hookimpls():
        plugin = implementation.plugin_name
        try:
            types = cast("Iterable[type[Stage]]", implementation.function())
            kinds = [(stage.kind_name(), stage) for stage in types]
        except Exception as error:
            raise UserError(
                f"plugin {plugin!r}: vfm_stages must return stage types, each with its kind as a Literal:"
                f" {type(error).__name__}: {error}"
            ) from error
        for kind, stage in kinds:
            if kind in owners and owners[kind][1] is not stage:
                raise UserError(f"two plugins have stage kind {kind!r}: {owners[kind][0]} and {plugin}")
            owners[kind] = (plugin, stage)
    return {kind: stage for kind, (_, stage) in sorted(owners.items())}


def find_predictor(artifact: DenseCheckpoint | VideoClassifier) -> Callable[..., Any]:
    """Import the function (checkpoint, device) that loads a model.

    Raises:
        UserError: If the artifact, whose author need not be trusted, names a function that no installed stage declares.
    """
    load_plugins()  # defines the stages, which fills PREDICTORS
    if artifact.predictor not in PREDICTORS:
        raise UserError(
            f"{artifact.path}: predictor: expected one that an installed stage declares"
            f" ({', '.join(sorted(PREDICTORS)) or 'there is none'}), got {artifact.predictor!r}; install the plugin"
            " that made the model"
        )
    return load_function(artifact.predictor)


def extra_of(module: str) -> str | None:
    """Find the extra that installs a missing module, such as `vfm-core[torch]`, or None if there is none."""
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


def unknown_kind(kind: str, known: dict[str, type[Stage]]) -> str:
    """Write the error message for a kind that no installed plugin has."""
    domain = kind.split(".", 1)[0]
    package = PACKAGES.get(domain)
    if package and not any(other.split(".", 1)[0] == domain for other in known):
        return f"stage kind {kind!r} needs a package that is not installed: {how_to_install(package)}"
    return f"unknown stage kind {kind!r}{did_you_mean(kind, known)}"
