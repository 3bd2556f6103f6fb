"""curation.random: as many texts as asked for, each with the same chance, whatever its entries."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from vfm.data import read_subset
from vfm.plugin import Preflight, UserError
from vfm_curation.balance.random_subset import kept_texts
from vfm_curation.balance.stages import MetaclipBalance, RandomSubset
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata

NUM_TEXTS = 4000


@pytest.fixture
def matches(make_pool: Any, run_stage: Any) -> Any:
    """Texts of which a tenth has a rare entry too."""
    texts = [(f"u{i}", {"en": [f"cat okapi{i % 40}" if i % 10 == 0 else "cat"]}) for i in range(NUM_TEXTS)]
    words = [{"type": "words", "words": ["cat", *(f"okapi{i}" for i in range(40))]}]
    entries = run_stage(BuildMetadata(name="entries", merge=words))
    return run_stage(MatchTexts(name="matches", pool="p", metadata="m"), p=make_pool("pool", texts), m=entries)


def test_a_subset_as_large_as_a_balanced_one_keeps_no_more_of_rare_entries(run_stage: Any, matches: Any) -> None:
    balanced = run_stage(MetaclipBalance(name="balanced", matches="x", t=200), x=matches)
    drawn = run_stage(RandomSubset(name="drawn", matches="x", like="b"), x=matches, b=balanced)
    size, rows = kept_texts(balanced), read_subset(drawn.path)
    assert len(rows) == matches.num_matched == NUM_TEXTS
    assert len(rows["probability"].unique()) == 1
    chance, kept = size / NUM_TEXTS, rows["kept"].to_numpy()
    assert kept_texts(drawn) == kept.sum() == pytest.approx(size, abs=5 * np.sqrt(size * (1 - chance)))
    rare = np.array([int(uid[1:]) % 10 == 0 for uid in rows["uid"].to_pylist()])
    spread = np.sqrt(chance * (1 - chance) / rare.sum())
    assert kept[rare].mean() == pytest.approx(chance, abs=5 * spread)
    assert read_subset(balanced.path)["kept"].to_numpy()[rare].mean() > chance + 5 * spread  # what the control is for


def test_the_draw_depends_only_on_seed_and_text(run_stage: Any, matches: Any) -> None:
    def kept(name: str, **settings: Any) -> set[str]:
        made = run_stage(RandomSubset(name=name, matches="x", target_size=400, **settings), x=matches)
        rows = read_subset(made.path)
        return set(rows.filter(rows["kept"])["uid"].to_pylist())

    assert kept("one") == kept("again", runtime={"workers": 2}) != kept("other", seed=1)


def test_one_size_is_given_and_enough_texts_matched(run_stage: Any, matches: Any) -> None:
    for sizes in ({}, {"target_size": 3, "like": "b"}):
        with pytest.raises(ValidationError, match="exactly one of target_size and like"):
            RandomSubset(name="drawn", matches="x", **sizes)  # type: ignore[arg-type]
    stage = RandomSubset(name="drawn", matches="x", target_size=NUM_TEXTS + 1)
    with pytest.raises(UserError, match="target_size 4001 is not possible, but 4000 texts matched"):
        stage.preflight(Preflight({}, {"x": matches.path}))
