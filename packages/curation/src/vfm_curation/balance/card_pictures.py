"""Pictures of the data card: images whose texts were kept, from the head, the middle and the tail of the entries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from vfm.data import BadSample, Source, decode_image
from vfm.plugin import ImagesPanel, Picture
from vfm_curation.balance.card_panels import caption_of, deciles, identities, rarest_tenths
from vfm_curation.balance.data_card import DataCard
from vfm_curation.balance.subset import BalancedShard

GROUPS = (("head", 0, 3), ("middle", 3, 7), ("tail", 7, 10))  # tenths of all matches, most frequent entries first
NUM_PICTURES, NUM_TRIED = 4, 20  # for each group; images tried in each shard
SIDE = 160  # pixels of the longer side


def picture_panel(
    card: DataCard, shards: Iterable[tuple[BalancedShard, pa.Table]], source: Source, directory: Path
) -> ImagesPanel | None:
    """Save small copies of images with kept texts in an artifact's folder; None if no image can be read.

    Args:
        card: the counts.
        shards: balanced shards, each with all its texts; read until every group has its pictures.
        source: the pool or subset.
        directory: folder of the artifact.
    """
    decile = deciles(card.matched)
    found: dict[str, list[Picture]] = {name: [] for name, _, _ in GROUPS}
    (directory / "panels").mkdir(parents=True, exist_ok=True)
    for shard, texts in shards:
        reader, tenths = source.index.open(shard.matches.table["shard"][0].as_py()), rarest_tenths(decile, shard)
        for name, first, stop in GROUPS:
            chosen = np.flatnonzero(shard.kept & (first <= tenths) & (tenths < stop))
            rows = shard.matches.table["row"].to_numpy()[chosen]
            for text in chosen[np.unique(rows, return_index=True)[1]][:NUM_TRIED].tolist():
                if len(found[name]) == NUM_PICTURES:
                    break
                (identity,) = identities(shard.matches.table.slice(text, 1))
                try:
                    image = decode_image(reader.read(identity[0]).image, name)
                except BadSample:  # matching read only the texts
                    continue
                image.thumbnail((SIDE, SIDE))
                file = f"panels/{name}-{len(found[name])}.jpg"
                image.save(directory / file, quality=90)
                found[name].append(Picture(file=file, caption=f"{name}: {caption_of(texts, identity)}"))
        if all(len(pictures) == NUM_PICTURES for pictures in found.values()):
            break
    pictures = [picture for group in found.values() for picture in group]
    note = "Images of kept texts, by a text's rarest entry: in the first three, the middle four, the last three tenths."
    title = "Pictures of head, middle and tail"
    return ImagesPanel(title=title, note=note, order=41, pictures=pictures) if pictures else None
