"""Choose a `t` for each language, because languages with separate entries have separate heads and tails.

Source: Chuang et al. 2025, MetaCLIP 2 (arXiv:2507.22062): the t of English gives a fraction of matches in the tail, and
the same fraction gives every other language its t. In its code t may be 0, which loses a whole language. Here it is at
least 1. `tail_rule` chooses between the rule of its code and a finer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfm.plugin import UserError, did_you_mean
from vfm_curation.counts.probabilities import (
    Floats,
    Integers,
    nearest_t_for_tail_share,
    t_for_tail_share,
    tail_share,
)
from vfm_curation.runtime import TailRule

Thresholds = Mapping[str, float]  # language of entries -> t
TAIL_RULES = {"interpolated": t_for_tail_share, "nearest": nearest_t_for_tail_share}


@dataclass(frozen=True)
class EntryLanguages:
    """The languages of a metadata's entries, and the index of each entry's language, (num_entries,)."""

    names: list[str]
    places: NDArray[np.int64]

    def of(self, values: Integers, language: str) -> Integers:
        """Select the values of the entries of a language."""
        chosen: Integers = values[self.places == self.names.index(language)]
        return chosen

    def t_of_entries(self, thresholds: Thresholds) -> Floats:
        """Look up the t of each entry, (num_entries,)."""
        t: Floats = np.array([thresholds[name] for name in self.names])[self.places]
        return t


def t_by_language(languages: EntryLanguages, t: float | Mapping[str, float]) -> dict[str, float]:
    """Complete a user's setting to the t of each language. A single number is for all languages.

    Raises:
        UserError: If a language has no t, or a t is given for a language without entries.
    """
    if not isinstance(t, Mapping):
        return dict.fromkeys(languages.names, t)
    check_languages(t, languages.names, "t")
    missing = [name for name in languages.names if name not in t]
    if missing:
        raise UserError(f"t: give one for {', '.join(map(repr, missing))} too")
    return dict(t)


def by_tail_share(
    languages: EntryLanguages, counts: Integers, share: float, rule: TailRule = "interpolated"
) -> dict[str, float]:
    """Compute the t of each language below which `share` of its matches are. It is 1 if nothing matched."""
    thresholds: dict[str, float] = {}
    for name in languages.names:
        group = languages.of(counts, name)
        # A language without a match has no head, so any t gives the same.
        thresholds[name] = TAIL_RULES[rule](group, share) if group.any() else 1.0
    return thresholds


def by_reference(
    languages: EntryLanguages, counts: Integers, t: float, reference: str, rule: TailRule = "interpolated"
) -> dict[str, float]:
    """Use `t` for the reference language, and for all others the t of the same tail share.

    Raises:
        UserError: If the reference language has no entries.
    """
    check_languages([reference], languages.names, "reference_language")
    share = tail_share(languages.of(counts, reference), t)
    return by_tail_share(languages, counts, share, rule) | {reference: t}


def check_languages(languages: Mapping[str, float] | list[str], names: list[str], field: str) -> None:
    """Check that languages have entries.

    Raises:
        UserError: If a language has none. The line names the languages that have entries.
    """
    for language in languages:
        if language not in names:
            if names != [""]:
                hint = did_you_mean(language, [name for name in names if name])
            else:
                hint = ""
            kind = "one list for all languages" if names == [""] else "entries by language"
            raise UserError(f"{field}: the metadata has no entries of {language!r}, it has {kind}{hint}")
