"""What this package adds to vfm."""

from collections.abc import Iterable

from vfm import Stage, hookimpl
from vfm_curation.balance_stage import MetaclipBalance
from vfm_curation.match_stage import MatchTexts
from vfm_curation.metadata_stage import BuildMetadata


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """`curation.metadata`, `curation.match` and `curation.balance`."""
    return BuildMetadata, MatchTexts, MetaclipBalance
