"""Plugin of vfm with the stages of this package."""

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_curation.balance.stages import MetaclipBalance, RandomSubset
from vfm_curation.crawl.stages import ExtractLinks, RetryLinks
from vfm_curation.export.stages import ExportSubset
from vfm_curation.filters.stages import FilterPool
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """List the stages in the order of a curation: from links of a crawl to a curated subset."""
    before = (ExtractLinks, RetryLinks, FilterPool)
    return *before, BuildMetadata, MatchTexts, MetaclipBalance, RandomSubset, ExportSubset


@hookimpl
def vfm_statistics() -> Iterable[str]:
    """Name the statistics of samples that `vfm data` prints."""
    return "vfm_curation.statistics:Languages", "vfm_curation.statistics:NearDuplicates"
