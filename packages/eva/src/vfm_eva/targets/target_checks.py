"""Checks that stored targets match a student, its data and each other."""

from __future__ import annotations

from collections.abc import Sequence

from vfm.plugin import ImageDataset, SampleCache, UserError


def check_grid(target_grid: tuple[int, ...], grid: tuple[int, int]) -> None:
    """Check that targets have the student's grid of patches."""
    if target_grid != grid:
        sides = " x ".join(map(str, target_grid))
        raise UserError(
            f"expected targets for {grid[0]} x {grid[1]} patches, the student's; got {sides}; set grid: {list(grid)} in"
            " the stage that makes the targets"
        )


def check_data(cache: SampleCache, data: ImageDataset) -> None:
    """Check that the cache's rows belong to this dataset."""
    made_from = cache.linked(cache.data).resolve()
    if made_from != data.path.resolve():
        raise UserError(f"expected targets made from data, {data.path.resolve()}; got targets made from {made_from}")


def check_same_crops(caches: Sequence[SampleCache]) -> None:
    """Check that the targets of several teachers belong to the same crops."""
    first = caches[0]
    for cache in caches[1:]:
        for name in ("crop_scale", "flip", "seed", "num_crops"):
            expected, value = getattr(first, name), getattr(cache, name)
            if value != expected:
                raise UserError(
                    f"targets of several teachers must have the same crops: {cache.path} has {name} {value}, expected"
                    f" {expected}, as in {first.path}"
                )
