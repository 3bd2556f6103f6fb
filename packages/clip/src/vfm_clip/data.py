"""What a training reads: data sets that suit it, mixed by weight, and how pairs are made of their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vfm.artifacts import CuratedSubset, LinkTable, PairDataset
from vfm.config import UserError, did_you_mean
from vfm.data.loader import TrainingData
from vfm.data.mixture import Mixture
from vfm.data.source import Source, check_balanced, open_balanced, open_dataset
from vfm.data.transforms import ImageTransform
from vfm.models.clip import ClipModel
from vfm.stage import Preflight, Stage
from vfm_clip.pairs import EvalTransform, MakePair

if TYPE_CHECKING:
    from vfm_clip.stage import ClipTrain

SHARDS_LOOKED_AT = 8  # for captions that differ


def training_data(plan: ClipTrain, datasets: Sequence[PairDataset], clip: ClipModel) -> tuple[TrainingData, MakePair]:
    """The batches of a training, and what makes its pairs.

    Args:
        plan: the training.
        datasets: one for each of `plan.portions`.
        clip: the model; it says how it wants pictures and texts.
    """
    chances = chances_of(plan, datasets)
    make = MakePair(_transform(plan, clip), clip.tokenizer, chances)
    if plan.sampler == "balanced":
        sources = [open_balanced(data, seed=plan.seed, language=next(iter(chances))) for data in datasets]
    else:
        sources = [open_dataset(data) for data in datasets]
    weights = [portion.weight for portion in plan.portions]
    return TrainingData.of(plan, sources[0] if len(sources) == 1 else Mixture(sources, weights), make), make


def _transform(plan: ClipTrain, clip: ClipModel) -> ImageTransform | EvalTransform:
    """A random crop, or what an evaluation sees."""
    facts = clip.preprocess
    if not plan.crop_scale:
        return EvalTransform(facts)
    return ImageTransform(
        facts.image_size, scale=plan.crop_scale, ratio=plan.crop_ratio, interpolation=facts.interpolation
    )


def chances_of(plan: ClipTrain, datasets: Sequence[PairDataset]) -> dict[str, float]:
    """The languages that captions are drawn from, each with its weight; by default the first data set's first."""
    if isinstance(plan.language, Mapping):
        return dict(plan.language)
    return {plan.language or datasets[0].languages[0]: 1.0}


def check_datasets(plan: ClipTrain, datasets: Mapping[str, PairDataset]) -> None:
    """Refuses data that cannot be trained on, as far as their facts, their index and their first captions tell.

    Args:
        plan: the training.
        datasets: by our names; in a preflight perhaps not all of them.

    Raises:
        UserError: too few pairs for a batch, no captions, none in the language, no pictures, or one caption for all.
    """
    for name, data in datasets.items():
        if not data.languages:
            raise UserError(f"'{name}' has no captions; data.pairs' `texts` says where they stand")
        if plan.sampler == "balanced":
            check_balanced(data)
        source = open_dataset(data)
        if isinstance(data, LinkTable) or not source.index.spec.images:
            raise UserError(f"'{name}' has captions alone, no pictures: there is nothing to train on")
        first = datasets.get(str(plan.portions[0].data), data)  # whose language is the default for all
        _check_captions(source, _languages(list(chances_of(plan, [first])), name, data), name)
    num_samples = sum(data.num_samples for data in datasets.values())
    if len(datasets) == len(plan.portions) and num_samples < plan.global_batch_size:
        names = ", ".join(f"'{name}'" for name in datasets)
        raise UserError(f"global_batch_size {plan.global_batch_size} is more than the {num_samples} pairs of {names}")


def check_makers(plan: ClipTrain, ctx: Preflight) -> None:
    """Refuses what stages of the recipe will make, where they say that it cannot be trained on.

    Raises:
        UserError: it has no probabilities and `sampler: balanced` wants them, or no pictures.
    """
    for portion in plan.portions:
        made: Stage | None = ctx.stage(portion.data)
        if not made:
            continue
        if plan.sampler == "balanced" and not issubclass(made.makes, CuratedSubset):
            raise UserError(f"sampler: balanced draws by a CuratedSubset's probabilities; '{portion.data}' has none")
        if issubclass(made.makes, LinkTable) or getattr(made, "images", True) is False:
            raise UserError(f"'{portion.data}' will have captions alone, no pictures: there is nothing to train on")


def _languages(wanted: Sequence[str], name: str, data: PairDataset) -> list[str]:
    """The wanted languages that a data set has."""
    if found := [language for language in wanted if language in data.languages]:
        return found
    if len(wanted) == 1:
        data.check_languages(wanted, name)
    told = ", ".join(map(repr, wanted))
    raise UserError(f"{name} has captions in none of {told}{did_you_mean(wanted[0], data.languages)}")


def _check_captions(source: Source, languages: Sequence[str], name: str) -> None:
    """Looks into a few shards, from the first to the last, until two captions differ."""
    import pyarrow as pa
    import pyarrow.compute as pc

    seen: set[str] = set()
    number = 0
    shards = np.flatnonzero(source.shard_sizes)
    looked_at = shards[np.unique(np.linspace(0, len(shards) - 1, SHARDS_LOOKED_AT, dtype=int))] if len(shards) else []
    for shard in map(int, looked_at):
        texts = source.texts_of_shard(shard)
        texts = texts.filter(pc.is_in(texts["language"], value_set=pa.array(languages, pa.string())))["text"]
        number += len(texts)
        seen.update(text.strip() for text in texts.slice(0, 2).to_pylist())
        if len(seen) < 2:
            seen.update(text.strip() for text in pc.unique(texts).slice(0, 3).to_pylist())
        if len(seen) > 1:
            return
    where = "" if len(looked_at) == len(shards) else f" in the {len(looked_at)} shards of {len(shards)} looked at"
    if not number:
        raise UserError(f"'{name}' has no caption in {' or '.join(map(repr, languages))}{where}")
    if number > 1:
        raise UserError(
            f"all {number} captions of '{name}'{where} are {seen.pop()!r}: no picture can be told by its own"
        )
