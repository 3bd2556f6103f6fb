"""A plugin of your own: a stage that counts the words of captions, and a listener that beeps when a run ends."""

from collections import Counter
from typing import Literal

import vfm
from vfm.plugin import BarsPanel


class WordCounts(vfm.Artifact):
    counts: dict[str, int]


class CountWords(vfm.Stage):
    """Count the words in the captions of a dataset."""

    kind: Literal["words.count"] = "words.count"
    data: vfm.Ref[vfm.PairDataset]
    top: int = 20

    def run(self, ctx: vfm.Context) -> WordCounts:
        from vfm.data import open_dataset  # imported here, so that `vfm plan` stays quick

        source, words = open_dataset(ctx.load(self.data)), Counter[str]()
        for shard in range(len(source.shard_sizes)):
            words.update(" ".join(source.texts_of_shard(shard, ctx.skip)["text"].to_pylist()).lower().split())
        counts = dict(words.most_common(self.top))
        ctx.panel(BarsPanel(title="Common words", labels=list(counts), values=list(counts.values())))
        return WordCounts.create(ctx.directory, counts=counts)


@vfm.hookimpl
def vfm_stages() -> list[type[vfm.Stage]]:
    return [CountWords]


@vfm.hookimpl
def vfm_event(event: vfm.Event) -> None:
    print("\a" if event.type in ("run_finished", "run_failed") else "", end="", flush=True)
