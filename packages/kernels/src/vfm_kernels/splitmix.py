"""Random words by seed and number (SplitMix64), so that what is drawn hangs on no order of drawing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Seeds = Sequence[int] | np.ndarray | Tensor
Words = NDArray[np.uint64]


def keys_of(seeds: Seeds) -> Words:
    """Neighbouring seeds lead to unrelated keys. Negative seeds are legal: hashes kept in int64 tensors have a sign."""
    if isinstance(seeds, Tensor):
        seeds = seeds.cpu().numpy()
    values = seeds if isinstance(seeds, np.ndarray) else np.array([int(seed) % 2**64 for seed in seeds], np.uint64)
    return mixed(values.astype(np.uint64))


def random_word(key: Words, number: Words) -> Words:
    """The random word of a number in a key's stream: SplitMix64 (Steele et al. 2014), which can begin anywhere."""
    return mixed(key + (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def mixed(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
