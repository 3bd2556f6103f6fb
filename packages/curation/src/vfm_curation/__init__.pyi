from .balance.stages import (
    MetaclipBalance as MetaclipBalance,
    RandomSubset as RandomSubset,
)
from .crawl.stages import (
    ExtractLinks as ExtractLinks,
    RetryLinks as RetryLinks,
)
from .export.stages import (
    ExportSubset as ExportSubset,
)
from .filters.head_filters import (
    ImageClusters as ImageClusters,
    MlpScore as MlpScore,
)
from .filters.list_filters import (
    BlockedImages as BlockedImages,
    BlockedUrls as BlockedUrls,
    BlockedWords as BlockedWords,
    NearDuplicateTexts as NearDuplicateTexts,
    Synsets as Synsets,
    Uids as Uids,
)
from .filters.model_filters import (
    ClipScore as ClipScore,
    Decontaminate as Decontaminate,
    LinearScore as LinearScore,
    ScoreFilter as ScoreFilter,
    SemanticDuplicates as SemanticDuplicates,
)
from .filters.stages import (
    CaptionLength as CaptionLength,
    Duplicates as Duplicates,
    Filter as Filter,
    FilterPool as FilterPool,
    ImageSize as ImageSize,
    Language as Language,
    NearDuplicates as NearDuplicates,
    Placeholders as Placeholders,
    RowFilter as RowFilter,
)
from .filters.where.stages import (
    Where as Where,
)
from .match.stages import (
    MatchTexts as MatchTexts,
)
from .metadata.stages import (
    BuildMetadata as BuildMetadata,
    CaptionWords as CaptionWords,
    EntrySource as EntrySource,
    Lists as Lists,
    Numbers as Numbers,
    Pageviews as Pageviews,
    Wikipedia as Wikipedia,
    WordNet as WordNet,
    Words as Words,
)
from .metadata.tokenizer_parts import (
    Tokenizer as Tokenizer,
)
from .runtime import (
    CurationRuntime as CurationRuntime,
)
