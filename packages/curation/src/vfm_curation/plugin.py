"""Plugin of vfm with the stages of this package."""

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_curation.stages import (
    BuildMetadata,
    ExportSubset,
    ExtractLinks,
    FilterPool,
    MatchTexts,
    MetaclipBalance,
    RandomSubset,
    RetryLinks,
)


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Return the stages in the order of a curation: from links of a crawl to a curated subset."""
    before = (ExtractLinks, RetryLinks, FilterPool)
    return *before, BuildMetadata, MatchTexts, MetaclipBalance, RandomSubset, ExportSubset
