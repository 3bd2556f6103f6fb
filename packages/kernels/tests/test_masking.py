"""Masks: EVA's published statistics, exact counts, and independence of the batch."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from vfm_kernels import block_mask, block_mask_exact, random_mask

EVA_GRID, EVA_COUNT, NUM_MASKS = (16, 16), 105, 20_000
ALL = pytest.mark.parametrize("draw", [block_mask, block_mask_exact, random_mask])


@pytest.fixture(scope="module")
def eva_masks() -> torch.Tensor:
    return block_mask(range(NUM_MASKS), EVA_GRID, EVA_COUNT)


def uniforms(seed: int) -> Iterator[list[float]]:
    """Yield the five uniforms of each attempt of a sample: SplitMix64 on Python's integers."""

    def mixed(word: int) -> int:
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    key = mixed(seed % 2**64)
    for attempt in count():
        numbers = range(5 * attempt + 1, 5 * attempt + 6)
        yield [(mixed((key + number * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for number in numbers]


def released_block_mask(seed: int, rows: int, columns: int, num_masked: int, *, exact: bool = False) -> torch.Tensor:
    """Run BEiT's loop for one image on a NumPy grid, and `block_mask_exact`'s additions where it stops."""
    min_block, stream = max(1, round(rows * columns / 16)), uniforms(seed)
    mask = np.zeros((rows, columns), dtype=bool)

    def draw(most: int) -> tuple[np.ndarray, float]:
        of_area, of_aspect, of_top, of_left, coin = next(stream)
        area = min_block + (most - min_block) * of_area
        aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * of_aspect)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        block = np.zeros_like(mask)
        if w < columns and h < rows:
            top, left = int(of_top * (rows - h + 1)), int(of_left * (columns - w + 1))
            block[top : top + h, left : left + w] = True
        return block & ~mask, coin

    while mask.sum() < num_masked:
        delta = 0
        for _ in range(10):
            new, _ = draw(num_masked - mask.sum())
            if 0 < new.sum() <= num_masked - mask.sum():
                mask, delta = mask | new, new.sum()
                break
        if delta == 0:
            break
    while exact and (missing := int(num_masked - mask.sum())):
        for _ in range(10):
            new, coin = draw(missing)
            if new.any():
                break
        else:
            new = ~mask
        places = np.flatnonzero(new)
        mask.flat[places[-missing:] if coin < 0.5 else places[:missing]] = True
    return torch.from_numpy(mask.reshape(-1))


@pytest.mark.parametrize(("rows", "columns", "num_masked"), [(*EVA_GRID, EVA_COUNT), (7, 5, 30), (4, 4, 7), (2, 9, 17)])
def test_masks_in_lock_step_are_those_of_the_released_algorithm_on_one_image(rows, columns, num_masked):
    seeds = [*range(300), -1, -(2**63), 2**64 - 1]
    for draw, exact in [(block_mask, False), (block_mask_exact, True)]:
        expected = [released_block_mask(seed, rows, columns, num_masked, exact=exact) for seed in seeds]
        assert torch.equal(draw(seeds, (rows, columns), num_masked), torch.stack(expected))


def test_block_counts_have_the_statistics_of_the_released_code(eva_masks):
    counts = eva_masks.sum(dim=1)
    assert counts.float().mean().item() == pytest.approx(104.45, abs=0.04)
    shares = Counter(counts.tolist())
    for size, share in {105: 0.653, 104: 0.243, 103: 0.056, 102: 0.027, 101: 0.007}.items():
        assert shares[size] / NUM_MASKS == pytest.approx(share, abs=0.015), size
    assert counts.max() == EVA_COUNT
    assert 85 <= counts.min() <= 94


@pytest.mark.parametrize("draw", [block_mask, block_mask_exact])
def test_blocks_cover_the_centre_often_and_the_corners_rarely(draw):
    share = draw(range(NUM_MASKS), EVA_GRID, EVA_COUNT).double().mean(dim=0).view(EVA_GRID)
    assert share.max().item() == pytest.approx(0.752, abs=0.015)
    corners = share[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean().item() == pytest.approx(0.037, abs=0.006)
    assert share.min().item() == pytest.approx(corners.min().item(), abs=0.01)


def test_exact_masks_keep_the_spatial_prior_and_only_add_to_evas(eva_masks):
    exact = block_mask_exact(range(NUM_MASKS), EVA_GRID, EVA_COUNT)
    assert not (eva_masks & ~exact).any()
    assert (exact.sum(dim=1) == EVA_COUNT).all()
    drift = exact.double().mean(dim=0) - eva_masks.double().mean(dim=0)
    assert drift.abs().max() < 0.006  # 0.55 patches are added over 256 places, 0.002 on average


@given(
    rows=st.integers(2, 20), columns=st.integers(2, 20), ratio=st.floats(0, 1), seed=st.integers(-(2**63), 2**64 - 1)
)
@settings(max_examples=150)
def test_counts_are_exact_for_every_grid_and_ratio(rows, columns, ratio, seed):
    num_masked = round(ratio * rows * columns)
    for draw in (block_mask_exact, random_mask):
        mask = draw([seed, seed ^ 1], (rows, columns), num_masked)
        assert mask.shape == (2, rows * columns)
        assert mask.dtype == torch.bool
        assert mask.sum(dim=1).tolist() == [num_masked, num_masked]
    assert block_mask([seed], (rows, columns), num_masked).sum() <= num_masked


def test_a_full_exact_mask_ends_though_blocks_never_reach_the_whole_grid():
    assert block_mask_exact(range(20), EVA_GRID, 256).all()
    assert not block_mask_exact(range(20), EVA_GRID, 0).any()


@ALL
def test_a_samples_mask_does_not_depend_on_its_batch(draw):
    together = draw([7, 8, 9, 10], EVA_GRID, EVA_COUNT)
    assert torch.equal(together[2], draw([9], EVA_GRID, EVA_COUNT)[0])
    assert torch.equal(together.flip(0), draw(np.array([10, 9, 8, 7]), EVA_GRID, EVA_COUNT))
    assert torch.equal(together, draw(torch.tensor([7, 8, 9, 10]), EVA_GRID, EVA_COUNT))


@ALL
def test_neighbouring_seeds_make_unrelated_masks(draw):
    masks = draw(range(2000), EVA_GRID, EVA_COUNT).double()
    centred = masks - masks.mean(dim=0)
    neighbours = (centred[:-1] * centred[1:]).sum(dim=1) / centred.square().sum(dim=1)[:-1]
    assert abs(neighbours.mean().item()) < 0.02
    assert len({tuple(mask.tolist()) for mask in masks}) > 1950  # some are one block of 7 x 15, hence alike by chance


def test_smaller_grids_get_proportionately_small_blocks():
    share = block_mask(range(4000), (8, 8), 26).double()
    assert share.sum(dim=1).mean() > 25.5
    centre, corner = share.mean(dim=0).view(8, 8)[3:5, 3:5].mean(), share.mean(dim=0)[0]
    assert centre > 0.6
    assert corner < 0.2
    assert torch.equal(block_mask(range(50), (8, 8), 26), block_mask(range(50), (8, 8), 26, min_block=4))


def test_blocks_are_blocks():
    """Masked patches touch one another far more than in a uniform mask of the same count."""

    def neighbours(mask: torch.Tensor) -> float:
        grid = mask.view(-1, *EVA_GRID).float()
        return ((grid[:, 1:] * grid[:, :-1]).mean() + (grid[:, :, 1:] * grid[:, :, :-1]).mean()).item()

    uniform = neighbours(random_mask(range(500), EVA_GRID, EVA_COUNT))
    assert uniform == pytest.approx(2 * 105 / 256 * 104 / 255, abs=0.01)
    assert neighbours(block_mask_exact(range(500), EVA_GRID, EVA_COUNT)) > 1.8 * uniform


def test_random_masks_are_uniform():
    share = random_mask(range(NUM_MASKS), EVA_GRID, EVA_COUNT).double().mean(dim=0)
    deviation = math.sqrt(105 / 256 * 151 / 256 / NUM_MASKS)
    assert (share - 105 / 256).abs().max() < 5 * deviation


@ALL
def test_impossible_masks_raise(draw):
    with pytest.raises(ValueError, match=r"at least 2 rows and 2 columns of patches, got \(1, 16\)"):
        draw([0], (1, 16), 4)
    with pytest.raises(ValueError, match=r"num_masked must be between 0 and 256 .* got 257"):
        draw([0], EVA_GRID, 257)


def test_impossible_block_sizes_raise():
    with pytest.raises(ValueError, match=r"min_block must be between 1 and 256 .* got 0"):
        block_mask([0], EVA_GRID, 4, min_block=0)


@ALL
def test_an_empty_batch_has_no_masks(draw):
    assert draw([], EVA_GRID, EVA_COUNT).shape == (0, 256)
