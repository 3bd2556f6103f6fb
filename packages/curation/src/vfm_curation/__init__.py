"""MetaCLIP data curation: match texts against metadata, count, and balance the long tail. Needs no torch.

Names are imported when they are first used, so that a plan, which only asks which stages there are, stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfm_curation.automaton import Automaton
    from vfm_curation.balance import (
        count_ids,
        cumulative_share,
        keep_probability,
        t_for_tail_share,
        t_for_target_size,
        tail_share,
        text_probability,
    )
    from vfm_curation.language import detect_languages
    from vfm_curation.matchers import Matchers
    from vfm_curation.matching import Matcher, dead_entries, match_plain, spacing, tokenize
    from vfm_curation.metadata import (
        EntryList,
        Vocabulary,
        entries_sha256,
        ids_for,
        load_entries,
        read_entries,
        wordnet_entries,
    )
    from vfm_curation.shards import read_shards
    from vfm_curation.subset import expected_size
    from vfm_curation.thresholds import EntryLanguages, by_reference, by_tail_share
    from vfm_curation.token_table import TokenTable

_MODULES = (
    "automaton", "balance", "language", "matchers", "matching", "metadata", "shards", "subset", "thresholds",
    "token_table",
)  # fmt: skip

__all__ = [
    "Automaton", "EntryLanguages", "EntryList", "Matcher", "Matchers", "TokenTable", "Vocabulary", "by_reference",
    "by_tail_share", "count_ids", "cumulative_share", "dead_entries", "detect_languages", "entries_sha256",
    "expected_size", "ids_for", "keep_probability", "load_entries", "match_plain", "read_entries", "read_shards",
    "spacing", "t_for_tail_share", "t_for_target_size", "tail_share", "text_probability", "tokenize",
    "wordnet_entries",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = vars(importlib.import_module(f"vfm_curation.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module 'vfm_curation' has no attribute {name!r}")
