"""Configurations of filters by the user's own lists, and of the filter of texts that are nearly the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from vfm.plugin import Preflight, Ref
from vfm_curation.filters.stages import Filter, Measure, RowFilter, Unit

MINHASH_SEED = 1


class ListFilter(RowFilter):
    """Filter by a list in a text file with one item a line. Empty lines and lines that begin with # are ignored."""

    path: str = Field(min_length=1, description="text file with one item a line (# begins a comment)")

    @property
    def files(self) -> tuple[str, ...]:
        """File of the list."""
        return (self.path,)

    def errors(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """Yield a line if the list is missing."""
        if not Path(self.path).is_file():
            yield f"{self.path}: no such file"


class BlockedUrls(ListFilter):
    """Drop images by the host of their URL, or by the beginning of its path.

    An item is a host, a host with the beginning of a path (`example.com/ads/`), or a line of a hosts file (`0.0.0.0
    example.com`). The host `example.com` includes `img.example.com`. Images without a URL pass.
    """

    type: Literal["blocked_urls"] = Field("blocked_urls", description="a URL of a blocked host or folder")

    unit: ClassVar[Unit] = "image"
    measures: ClassVar[tuple[Measure, ...]] = ("images",)
    columns: ClassVar[frozenset[str]] = frozenset({"address"})
    work: ClassVar[str] = "vfm_curation.filters.lists.lists:url_passes"

    @property
    def reads_images(self) -> bool:
        """False: a URL is known without its image."""
        return False


class BlockedWords(ListFilter):
    """Drop texts with a word or phrase of a list, whatever its case.

    Words are runs of letters and digits. An item in a script without spaces between words matches anywhere.
    """

    type: Literal["blocked_words"] = Field("blocked_words", description="a blocked word or phrase")
    max_count: int = Field(0, ge=0, description="largest number of different items that a text may contain")

    columns: ClassVar[frozenset[str]] = frozenset({"caption"})
    work: ClassVar[str] = "vfm_curation.filters.lists.lists:word_passes"


class BlockedImages(ListFilter):
    """Drop images that look like one of a list of PDQ hashes, as safety lists come: 64 hexadecimal digits a line.

    An image of too little detail has no hash, and passes. Each image is compared with the whole list.

    Source: Facebook 2019, PDQ, github.com/facebook/ThreatExchange, whose distance for a match is 31.
    """

    type: Literal["blocked_images"] = Field("blocked_images", description="an image like one of a list")
    path: str = Field(min_length=1, description="text file with a PDQ hash a line, 64 hexadecimal digits")
    max_distance: int = Field(31, ge=0, le=128, description="bits of 256 that may differ")

    unit: ClassVar[Unit] = "image"
    measures: ClassVar[tuple[Measure, ...]] = ("images",)
    columns: ClassVar[frozenset[str]] = frozenset({"pdq"})
    work: ClassVar[str] = "vfm_curation.filters.lists.lists:look_passes"

    @property
    def package(self) -> tuple[str, str]:
        """Module of PDQ, and its extra."""
        return "pdqhash", "pdq"


class Uids(ListFilter):
    """Keep the samples whose uid is in a list, such as a subset of DataComp or the `uids.npy` of `curation.export`.

    Source: Gadre et al. 2023, DataComp (arXiv:2304.14108).
    """

    type: Literal["uids"] = Field("uids", description="a uid that is not in the list")
    path: str = Field(min_length=1, description="npy file of uids as pairs of 64-bit halves (u8, u8), like DataComp's")

    work: ClassVar[str] = "vfm_curation.filters.lists.lists:uid_passes"


class Synsets(ListFilter):
    """Keep texts with a noun whose first sense in WordNet is in a list of synsets, such as ImageNet-21k's.

    Source: Gadre et al. 2023, DataComp (arXiv:2304.14108), text-based filtering.
    """

    type: Literal["synsets"] = Field("synsets", description="no noun among the listed synsets")
    path: str = Field(min_length=1, description="text file with one WordNet ID a line, such as n02084071")
    wordnet: str = Field(
        "/usr/share/wordnet", description="folder with index.noun of the WordNet that the IDs are from"
    )

    columns: ClassVar[frozenset[str]] = frozenset({"caption"})
    work: ClassVar[str] = "vfm_curation.filters.lists.synsets:synset_passes"

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the list and of WordNet's index of nouns."""
        return (self.path, str(Path(self.wordnet) / "index.noun"))

    def errors(self, ctx: Preflight, pool: Ref[Any]) -> Iterator[str]:
        """Yield a line for each missing file."""
        yield from (f"{file}: no such file" for file in self.files if not Path(file).is_file())


class NearDuplicateTexts(Filter):
    """Drop a text that is nearly the same as a text with a smaller uid, by MinHash.

    Texts are sets of runs of characters. Candidates agree on all rows of some band of their MinHash. At a Jaccard
    similarity of s, a share 1 - (1 - s^rows)^bands of pairs is compared, 95 % at s = 0.8 with the defaults. A candidate
    is dropped if its exact similarity with the first of them is at least `min_similarity`.

    Source: Broder 1997, On the resemblance and containment of documents.
    """

    type: Literal["near_duplicate_texts"] = Field("near_duplicate_texts", description="nearly the same text")
    min_similarity: float = Field(0.8, gt=0, le=1, description="smallest Jaccard similarity of near duplicates")
    ngram: int = Field(5, ge=1, le=50, description="characters of a run, after lower-casing and joining spaces")
    bands: int = Field(16, ge=1, le=256, description="bands: more find more, at a proportional cost")
    rows: int = Field(8, ge=1, le=64, description="MinHash values of a band: more mean fewer candidates")

    columns: ClassVar[frozenset[str]] = frozenset({"caption"})
    work: ClassVar[str] = "vfm_curation.filters.copies.near_texts:distinct_texts"

    @property
    def package(self) -> tuple[str, str]:
        """Package with MinHash, and its extra."""
        return "datasketch", "minhash"
