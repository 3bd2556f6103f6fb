from .entries import (
    EntryList as EntryList,
    entries_sha256 as entries_sha256,
    ids_for as ids_for,
    load_entries as load_entries,
    save_entries as save_entries,
)
from .files import read_entries as read_entries, read_lists as read_lists
from .lint import EntryFinding as EntryFinding, lint as lint
from .vocabulary import Vocabulary as Vocabulary
from .wikipedia import Corpus as Corpus
from .wordnet import wordnet_entries as wordnet_entries
