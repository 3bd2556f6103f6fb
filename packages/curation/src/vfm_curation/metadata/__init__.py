"""The metadata: an ordered list of entries for each language, from captions, files, WordNet and Wikipedia."""

from vfm_curation.metadata.entries import EntryList, entries_sha256, ids_for, load_entries, save_entries
from vfm_curation.metadata.files import read_entries, read_lists
from vfm_curation.metadata.lint import Finding, lint
from vfm_curation.metadata.vocabulary import Vocabulary
from vfm_curation.metadata.wikipedia import Corpus
from vfm_curation.metadata.wordnet import wordnet_entries

__all__ = [
    "Corpus", "EntryList", "Finding", "Vocabulary", "entries_sha256", "ids_for", "lint", "load_entries",
    "read_entries", "read_lists", "save_entries", "wordnet_entries",
]  # fmt: skip
