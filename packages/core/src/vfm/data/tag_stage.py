"""The stage `data.caption_labels`: the commonest words of captions become labels of their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import PairDataset, TaggedImages
from vfm.config import UserError
from vfm.stage import Context, Preflight, Ref, Stage


class CaptionLabels(Stage):
    """Labels of images, several each, for probing: the commonest nouns of their captions."""

    kind: Literal["data.caption_labels"] = "data.caption_labels"
    data: Ref[PairDataset] = Field(description="images with captions; an image has the words that any of them says")
    language: str | None = Field(None, description="key of the captions; default: the data set's first language")
    num_labels: int = Field(20, ge=1, description="so many of the commonest words, by images")
    wordnet: str | None = Field(
        None, description="folder of WordNet's index.noun, noun.exc, verb.exc and cntlist.rev: nouns, in the singular"
    )
    words: list[str] = Field([], description="words to choose from, in place of WordNet's nouns")
    like: Ref[TaggedImages] | None = Field(
        None, description="take the labels of these, whatever is common here: for the images to judge on"
    )

    version: ClassVar[int] = 2

    @model_validator(mode="after")
    def _one_list(self) -> CaptionLabels:
        if bool(self.wordnet) == bool(self.words):
            raise ValueError("give exactly one of wordnet and words")
        return self

    def sources(self) -> Iterable[str]:
        """WordNet's folder."""
        return [self.wordnet] if self.wordnet else []

    def preflight(self, ctx: Preflight) -> None:
        """Checks the language, where the data are there already."""
        if data := ctx.artifact(self.data):
            data.check_languages([self.language], self.data)

    def run(self, ctx: Context) -> TaggedImages:
        """Counts words over all captions, and writes which of the commonest each image has."""
        from vfm.data.source import open_dataset
        from vfm.data.tags import TAGS_FILE, Listed, Nouns, words_of, write_tags

        data = ctx.load(self.data)
        data.check_languages([self.language], self.data)
        language, source = self.language or data.languages[0], open_dataset(data)
        like = ctx.load(self.like) if self.like else None
        noun = Nouns(Path(self.wordnet)) if self.wordnet else Listed(self.words)
        said: list[set[str]] = [set() for _ in range(len(source))]
        places = {source.locate(number): number for number in range(len(source))}
        for shard in range(len(source.shard_sizes)):
            for text in source.texts_of_shard(shard, ctx.skip).to_pylist():
                if text["language"] == language:
                    found = (noun(word) for word in words_of(text["text"]))
                    said[places[shard, text["row"]]].update(word for word in found if word)
            ctx.progress(shard + 1, len(source.shard_sizes), "shards")
        counts = Counter(word for words in said for word in words)
        commonest = sorted(counts, key=lambda word: (-counts[word], word))  # sets have no order to fall back on
        names = like.class_names if like else commonest[: self.num_labels]
        if len(names) < 2:
            raise UserError(
                f"{self.name}: {len(names)} of the words occur in the captions of {self.data}; 2 are needed"
            )
        label = {name: place for place, name in enumerate(names)}
        ctx.directory.mkdir(parents=True, exist_ok=True)
        write_tags(
            ctx.directory / TAGS_FILE, [sorted(label[word] for word in words if word in label) for words in said]
        )
        return TaggedImages.create(
            ctx.directory,
            data=data.reference(ctx.directory),
            num_samples=len(said),
            class_names=names,
            num_images=[counts[name] for name in names],
        )
