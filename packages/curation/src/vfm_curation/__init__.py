"""MetaCLIP data curation: match texts against metadata, count, and balance the long tail. Needs no torch.

The names here are configurations: the stages, and the slots `Filter`, `EntrySource` and `Tokenizer` for plugins. Each
configuration gives the address of the code that does the work, which is imported when a stage runs. The mathematics is
usable without a recipe: `counts.probabilities`, `matching`, `match.token_table` and `metadata`.
"""

from vfm_curation.balance.stages import MetaclipBalance, RandomSubset
from vfm_curation.crawl.stages import ExtractLinks, RetryLinks
from vfm_curation.export.stages import ExportSubset
from vfm_curation.filters.head_filters import ImageClusters, MlpScore
from vfm_curation.filters.list_filters import (
    BlockedImages,
    BlockedUrls,
    BlockedWords,
    NearDuplicateTexts,
    Synsets,
    Uids,
)
from vfm_curation.filters.model_filters import ClipScore, Decontaminate, LinearScore, ScoreFilter, SemanticDuplicates
from vfm_curation.filters.stages import (
    CaptionLength,
    Duplicates,
    Filter,
    FilterPool,
    ImageSize,
    Language,
    NearDuplicates,
    Placeholders,
    RowFilter,
)
from vfm_curation.filters.where.stages import Where
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import (
    BuildMetadata,
    CaptionWords,
    EntrySource,
    Lists,
    Numbers,
    Pageviews,
    Wikipedia,
    WordNet,
    Words,
)
from vfm_curation.metadata.tokenizer_parts import Tokenizer
from vfm_curation.runtime import CurationRuntime

__all__ = [
    "BlockedImages", "BlockedUrls", "BlockedWords", "BuildMetadata", "CaptionLength", "CaptionWords", "ClipScore",
    "CurationRuntime", "Decontaminate", "Duplicates", "EntrySource", "ExportSubset", "ExtractLinks", "Filter",
    "FilterPool", "ImageClusters", "ImageSize", "Language", "LinearScore", "Lists", "MatchTexts", "MetaclipBalance",
    "MlpScore", "NearDuplicateTexts", "NearDuplicates", "Numbers", "Pageviews", "Placeholders", "RandomSubset",
    "RetryLinks", "RowFilter", "ScoreFilter", "SemanticDuplicates", "Synsets", "Tokenizer", "Uids", "Where",
    "Wikipedia", "WordNet", "Words",
]  # fmt: skip
