"""A tokenizer is a part: a plugin adds one, and the type alone is enough in a recipe."""

from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from vfm_curation.metadata import load_entries, tokenizers
from vfm_curation.metadata.stages import BuildMetadata
from vfm_curation.metadata.tokenizer_parts import Tokenizer
from vfm_curation.metadata.tokenizers import find_tokenizer


class Pieces(Tokenizer):
    """Split at a character."""

    type: Literal["pieces"] = Field("pieces", description="pieces between a character")
    at: str = Field("-", description="the character")

    work: ClassVar[str] = f"{__name__}:pieces"


def pieces(config: Pieces, language: str, *, prose: bool) -> tokenizers.WordSplitter:
    return tokenizers.WordSplitter(lambda text: text.split(config.at), joiner=config.at)


def build(run_stage: Any, pool: Any, **settings: Any) -> list[str]:
    stage = BuildMetadata(name="entries", captions="p", min_count=1, bigram_min_count=100, **settings)
    return sorted(load_entries(run_stage(stage, p=pool))["entry"].to_pylist())


def test_a_plugins_tokenizer_splits_the_captions(run_stage: Any, make_pool: Any) -> None:
    pool = make_pool("pool", [(str(i), {"en": ["red-dog-snow", "red-cat"]}) for i in range(4)])
    assert build(run_stage, pool, tokenizer="pieces") == ["cat", "dog", "red", "snow"]
    assert build(run_stage, pool, tokenizer={"type": "pieces", "at": " "}) == ["red-cat", "red-dog-snow"]
    assert build(run_stage, pool, tokenizer="words") == ["red-cat", "red-dog-snow"]


@pytest.mark.parametrize("name", ["auto", "words", "characters"])
@pytest.mark.parametrize("prose", [True, False])
def test_a_built_in_tokenizer_is_found_by_its_type(name: str, prose: bool) -> None:
    stage = BuildMetadata(name="entries", captions="p", tokenizer=name)
    assert stage.tokenizer.build("zh", prose=prose) == find_tokenizer(name, "zh", prose=prose)


def test_a_configuration_keeps_the_short_form_so_that_its_identity_does_not_change() -> None:
    dumped = [
        BuildMetadata(name="e", captions="p", **settings).model_dump()["tokenizer"]
        for settings in ({}, {"tokenizer": "icu"}, {"tokenizer": {"type": "words"}}, {"tokenizer": "pieces"})
    ]
    assert dumped == ["auto", "icu", "words", {"type": "pieces", "at": "-"}]
    with pytest.raises(ValidationError, match="type 'wrods' is not known; did you mean 'words'"):
        BuildMetadata(name="e", captions="p", tokenizer="wrods")
