"""Plugin of vfm with the stages of this package."""

from collections.abc import Iterable, Mapping

from vfm.plugin import hookimpl

# In the order of a curation: from links of a crawl to a curated subset.
STAGES = {
    "curation.extract": "vfm_curation.crawl.stages:ExtractLinks",
    "curation.retry": "vfm_curation.crawl.stages:RetryLinks",
    "curation.filter": "vfm_curation.filters.stages:FilterPool",
    "curation.metadata": "vfm_curation.metadata.stages:BuildMetadata",
    "curation.match": "vfm_curation.match.stages:MatchTexts",
    "curation.balance": "vfm_curation.balance.stages:MetaclipBalance",
    "curation.random": "vfm_curation.balance.stages:RandomSubset",
    "curation.export": "vfm_curation.export.stages:ExportSubset",
}


@hookimpl
def vfm_stages() -> Mapping[str, str]:
    """List the stages by kind."""
    return STAGES


@hookimpl
def vfm_statistics() -> Iterable[str]:
    """Name the statistics of samples that `vfm data` prints."""
    return "vfm_curation.statistics:Languages", "vfm_curation.statistics:NearDuplicates"
