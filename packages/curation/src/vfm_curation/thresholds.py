"""One `t` a language: where languages have entries of their own, each has its own head and tail.

Source: Chuang et al. 2025, MetaCLIP 2 (arXiv:2507.22062): t of English gives the share of matches in the tail, and the
same share gives every other language its t. There t may be 0, which loses a whole language; here it never is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfm.config import UserError, did_you_mean
from vfm_curation.balance import Floats, Integers, t_for_tail_share, tail_share

Thresholds = Mapping[str, float]  # language of entries -> t


@dataclass(frozen=True)
class EntryLanguages:
    """The languages of a metadata's entries, and of each entry its place among them, (num_entries,)."""

    names: list[str]
    places: NDArray[np.int64]

    def of(self, values: Integers, language: str) -> Integers:
        """Those of the entries' values that are of a language."""
        chosen: Integers = values[self.places == self.names.index(language)]
        return chosen

    def t_of_entries(self, thresholds: Thresholds) -> Floats:
        """The t of each entry, (num_entries,)."""
        t: Floats = np.array([thresholds[name] for name in self.names])[self.places]
        return t


def given(languages: EntryLanguages, t: float | Mapping[str, float]) -> dict[str, float]:
    """One t for all languages, or the one that the user gives each.

    Raises:
        UserError: a language has no t, or one is named that has no entries.
    """
    if not isinstance(t, Mapping):
        return dict.fromkeys(languages.names, t)
    check_languages(t, languages.names, "t")
    if missing := [name for name in languages.names if name not in t]:
        raise UserError(f"t: give one for {', '.join(map(_shown, missing))} too")
    return dict(t)


def by_tail_share(languages: EntryLanguages, counts: Integers, share: float) -> dict[str, float]:
    """The t of each language below which `share` of its matches lie; 1 where nothing matched."""
    groups = {name: languages.of(counts, name) for name in languages.names}
    return {name: t_for_tail_share(group, share) if group.any() else 1.0 for name, group in groups.items()}


def by_reference(languages: EntryLanguages, counts: Integers, t: float, reference: str) -> dict[str, float]:
    """The reference language keeps `t`; all others get theirs by the share of its matches that lie below `t`.

    Raises:
        UserError: the reference language has no entries.
    """
    check_languages([reference], languages.names, "reference_language")
    share = tail_share(languages.of(counts, reference), t)
    return by_tail_share(languages, counts, share) | {reference: t}


def check_languages(wanted: Mapping[str, float] | list[str], names: list[str], field: str) -> None:
    """Refuses languages that have no entries.

    Raises:
        UserError: one line with what there is.
    """
    for language in wanted:
        if language not in names:
            hint = did_you_mean(language, [name for name in names if name]) if names != [""] else ""
            whose = "one list for all languages" if names == [""] else "entries by language"
            raise UserError(f"{field}: the metadata has no entries of {_shown(language)}, it has {whose}{hint}")


def _shown(language: str) -> str:
    return repr(language)
