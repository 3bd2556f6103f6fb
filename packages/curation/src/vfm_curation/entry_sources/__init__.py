"""Where entries come from, as a recipe writes it: `{type: wikipedia, dump: enwiki.xml.bz2}`. Light: for plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from vfm.config import did_you_mean, readable
from vfm_curation.entry_sources.base import EntrySource
from vfm_curation.entry_sources.captions import Captions, CaptionSettings
from vfm_curation.entry_sources.lists import Lists, Numbers, WordNet, Words
from vfm_curation.entry_sources.wikipedia import Pageviews, Wikipedia

__all__ = [
    "AnySource", "CaptionSettings", "Captions", "EntrySource", "Lists", "Numbers", "Pageviews", "Wikipedia", "WordNet",
    "Words",
]  # fmt: skip

TYPES: dict[str, type[EntrySource]] = {
    "captions": Captions,
    "list": Lists,
    "numbers": Numbers,
    "pageviews": Pageviews,
    "wikipedia": Wikipedia,
    "wordnet": WordNet,
    "words": Words,
}


def _of_its_type(value: Any) -> Any:
    """The source that a mapping describes, so that a mistake in it is told without the noise of a union."""
    if not isinstance(value, Mapping):
        return value
    name = str(value.get("type"))
    if name not in TYPES:
        raise ValueError(f"{name!r} is no source of entries{did_you_mean(name, TYPES)}")
    try:
        return TYPES[name].model_validate(value)
    except ValidationError as error:
        raise readable(error, TYPES[name]) from None


AnySource = Annotated[
    Captions | Lists | Numbers | Pageviews | Wikipedia | WordNet | Words,
    Field(discriminator="type"),
    BeforeValidator(_of_its_type),
]
