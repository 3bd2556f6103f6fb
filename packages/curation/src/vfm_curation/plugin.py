"""What this package adds to vfm."""

from collections.abc import Iterable

from vfm import Stage, hookimpl
from vfm_curation.stages import BuildMetadata, MatchTexts, MetaclipBalance


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """`curation.metadata`, `curation.match` and `curation.balance`."""
    return BuildMetadata, MatchTexts, MetaclipBalance
