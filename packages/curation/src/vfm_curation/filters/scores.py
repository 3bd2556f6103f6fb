"""Filter by CLIP's cosine of text and image or a head on embeddings, and choose the cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vfm.plugin import UserError
from vfm_curation.filters.linear_head import head_width
from vfm_curation.filters.model_filters import ClipScore, LinearScore, ScoreFilter
from vfm_curation.filters.run import FilterRun

Bools = NDArray[np.bool_]
Scores = NDArray[np.float32]


def clip_score_passes(config: ClipScore, run: FilterRun) -> Iterator[Bools]:
    """Yield a mask for each batch: the texts that pass by their cosine with the image."""
    return cut(config, lambda: run.scores(config.clip), run.num_units("text"))


def linear_score_passes(config: LinearScore, run: FilterRun) -> Iterator[Bools]:
    """Yield a mask for each batch: the images that pass by the head's score.

    Raises:
        UserError: If the head does not fit the model's embeddings, or a score is not finite.
    """
    weight, bias = read_head(Path(config.head))

    def scores() -> Iterator[Scores]:
        for _, vectors in run.embeddings(config.clip):  # (N, D)
            if vectors.shape[1] != len(weight):
                raise UserError(
                    f"{config.head}: takes embeddings of width {len(weight)}; '{config.clip}' has {vectors.shape[1]}"
                )
            with np.errstate(invalid="ignore"):
                head_scores = vectors @ weight + bias
            if not np.isfinite(head_scores).all():
                first = int(np.flatnonzero(~np.isfinite(head_scores))[0])
                raise UserError(
                    f"{config.head}: expected finite scores, got {head_scores[first]} (image {first} of a batch)"
                )
            yield head_scores

    return cut(config, scores, run.num_units("image"))


def read_head(file: Path) -> tuple[NDArray[np.float32], np.float32]:
    """Read the weight, (D,), and the bias of a head.

    Raises:
        UserError: If the file is not such a head, as for `head_width`.
    """
    from safetensors.torch import load_file  # of the extra `clip`; numpy's reader has no bf16

    width = head_width(file)
    tensors = {name: tensor.float().numpy() for name, tensor in load_file(file).items()}
    bias = tensors["bias"].item() if "bias" in tensors else 0.0
    return tensors["weight"].reshape(width), np.float32(bias)


def cut(config: ScoreFilter, scores: Callable[[], Iterable[Scores]], total: int) -> Iterator[Bools]:
    """Yield a mask for each batch: the units that pass.

    Args:
        config: Rule of the cut.
        scores: Returns all scores, in batches. It is called several times. NaN never passes.
        total: Number of scores. A fraction keeps round(fraction * total), at least one, and all that tie with the last
            kept score, so that the order of units does not matter.
    """
    lowest = config.max_score is not None or config.bottom_fraction is not None
    sign = np.float32(-1 if lowest else 1)

    def signed() -> Iterator[Scores]:  # higher is kept, whichever end the rule keeps
        return (np.nan_to_num(batch * sign, nan=-np.inf, posinf=np.inf, neginf=-np.inf) for batch in scores())

    fraction = config.top_fraction or config.bottom_fraction
    bound = config.min_score if config.min_score is not None else config.max_score
    if fraction and total:
        limit = np.float32(kth_largest(signed, max(1, round(fraction * total))))
    else:
        limit = np.float32(bound or 0) * sign
    for batch in signed():
        yield (batch >= limit) & (batch > -np.inf)


def kth_largest(batches: Callable[[], Iterable[Scores]], k: int) -> float:
    """Find the k-th largest of any number of scores, exactly and in fixed memory.

    The scores are counted by the upper half of their bits. The scores in the bin of the k-th are then counted by the
    lower half.

    Args:
        batches: Returns all scores, in batches of any size and order, without NaN. It is called twice.
        k: Rank of the score, 1 for the largest.
    """
    # Two passes over the scores: the upper 16 bits of the k-th, then the lower ones among scores with these upper bits.
    upper, above = _bin_of(batches, k, lambda bits: bits >> np.uint32(16))
    lower, _ = _bin_of(batches, k - above, lambda bits: bits[bits >> np.uint32(16) == upper] & np.uint32(0xFFFF))
    return float(_scores(np.array([upper << 16 | lower], dtype=np.uint32))[0])


def _bin_of(
    batches: Callable[[], Iterable[Scores]], k: int, part: Callable[[NDArray[np.uint32]], NDArray[np.uint32]]
) -> tuple[int, int]:
    """Find the value of `part` for the k-th largest score, and the number of scores with a larger value."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for scores in batches():
        counts += np.bincount(part(_ordered_bits(scores)), minlength=len(counts))
    from_above = np.cumsum(counts[::-1])
    index = int(np.searchsorted(from_above, k))
    num_larger = int(from_above[index - 1]) if index else 0
    return len(counts) - 1 - index, num_larger


def _ordered_bits(scores: Scores) -> NDArray[np.uint32]:
    """Convert scores to integers of the same order.

    They are the bits of a float, inverted if it is negative.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))


def _scores(ordered: NDArray[np.uint32]) -> Scores:
    """Invert `_ordered_bits`."""
    bits = np.where(ordered >> np.uint32(31), ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.view(np.float32)
