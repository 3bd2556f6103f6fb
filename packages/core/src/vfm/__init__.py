"""vfm: one toolkit for the whole life of a vision foundation model.

A script or a notebook calls `vfm.run`, `vfm.curate`, `vfm.fit`, `vfm.embed`, `vfm.predict` and `vfm.evaluate`, each of
which is imported when it is first used. A plugin file starts with `import vfm` and uses `@vfm.hookimpl`, `vfm.Stage`,
`vfm.Ref` and the artifact types.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import a name on its first use.

    Raises:
        AttributeError: If there is no such name.
        UserError: If it needs a package that is not installed.
    """
    if name not in __all__:  # lazy_loader would say it in its own words
        raise AttributeError(f"module 'vfm' has no attribute {name!r}")
    from vfm.interfaces.plugins import naming_extras

    with naming_extras(f"vfm.{name}"):
        return _load(name)
