"""What this package adds to vfm."""

from collections.abc import Iterable

from vfm import Stage, hookimpl
from vfm_curation.balance_stage import MetaclipBalance
from vfm_curation.export_stage import ExportSubset
from vfm_curation.extract_stage import ExtractLinks
from vfm_curation.filter_stage import FilterPool
from vfm_curation.match_stage import MatchTexts
from vfm_curation.metadata_stage import BuildMetadata
from vfm_curation.retry_stage import RetryLinks


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """From links in a crawl to a curated subset: `curation.extract`, `.retry`, `.filter`, `.metadata`, ..."""
    return ExtractLinks, RetryLinks, FilterPool, BuildMetadata, MatchTexts, MetaclipBalance, ExportSubset
