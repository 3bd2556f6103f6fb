"""Data: what lies in a user's files, by an index over shards, and its way into a training step.

`transforms` and `loader` use torch; all the rest does without. Names are loaded when first used, so a recipe can be
planned without numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfm.data.draws import drawn, text_key, text_keys, uniform
    from vfm.data.index import BadRow, Shard, read_index, write_index
    from vfm.data.mixture import Mixture
    from vfm.data.sample import REASONS, BadSample, Sample, uid_of
    from vfm.data.source import Source, open_balanced, open_dataset
    from vfm.data.spec import DatasetSpec
    from vfm.data.subset import SUBSET_FILE, subset_schema
    from vfm.data.tar_write import write_tar

_HOMES = {
    "draws": ("drawn", "text_key", "text_keys", "uniform"),
    "index": ("BadRow", "Shard", "read_index", "write_index"),
    "mixture": ("Mixture",),
    "sample": ("REASONS", "BadSample", "Sample", "uid_of"),
    "source": ("Source", "open_balanced", "open_dataset"),
    "spec": ("DatasetSpec",),
    "subset": ("SUBSET_FILE", "subset_schema"),
    "tar_write": ("write_tar",),
}

__all__ = [
    "REASONS", "SUBSET_FILE", "BadRow", "BadSample", "DatasetSpec", "Mixture", "Sample", "Shard", "Source", "drawn",
    "open_balanced", "open_dataset", "read_index", "subset_schema", "text_key", "text_keys", "uid_of", "uniform",
    "write_index", "write_tar",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
