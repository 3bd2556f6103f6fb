"""Configurations of this package: its stages, and the slots `Filter`, `EntrySource` and `Tokenizer` for plugins.

Nothing here imports the work, which each configuration names by its address.
"""

from vfm_curation.stages.crawl import ExtractLinks, RetryLinks
from vfm_curation.stages.filters import (
    CaptionLength,
    Duplicates,
    Filter,
    FilterPool,
    ImageSize,
    Language,
    NearDuplicates,
    RowFilter,
)
from vfm_curation.stages.head_filters import ImageClusters, MlpScore
from vfm_curation.stages.list_filters import BlockedUrls, BlockedWords, NearDuplicateTexts, Synsets, Uids
from vfm_curation.stages.metadata import (
    BuildMetadata,
    Captions,
    EntrySource,
    Lists,
    Numbers,
    Pageviews,
    Wikipedia,
    WordNet,
    Words,
)
from vfm_curation.stages.model_filters import ClipScore, Decontaminate, LinearScore, ScoreFilter, SemanticDuplicates
from vfm_curation.stages.runtime import CurationRuntime
from vfm_curation.stages.subset import ExportSubset, MatchTexts, MetaclipBalance, RandomSubset
from vfm_curation.stages.tokenizers import Tokenizer

__all__ = [
    "BlockedUrls", "BlockedWords", "BuildMetadata", "CaptionLength", "Captions", "ClipScore", "CurationRuntime",
    "Decontaminate", "Duplicates", "EntrySource", "ExportSubset", "ExtractLinks", "Filter", "FilterPool",
    "ImageClusters", "ImageSize", "Language", "LinearScore", "Lists", "MatchTexts", "MetaclipBalance", "MlpScore",
    "NearDuplicateTexts", "NearDuplicates", "Numbers", "Pageviews", "RandomSubset", "RetryLinks", "RowFilter",
    "ScoreFilter", "SemanticDuplicates", "Synsets", "Tokenizer", "Uids", "Wikipedia", "WordNet", "Words",
]  # fmt: skip
