"""Settings that make the shipped recipes a matter of seconds; they check that a recipe works, not what it learns."""

from __future__ import annotations

TRAININGS = ("teacher", "eva", "clip", "prior", "diva")
TRAINED = [
    f"{name}.{field}" for name in TRAININGS for field in ("steps=4", "schedule.warmup_steps=0", "global_batch_size=16")
]
PRIOR = ["prior.image_size=8", "prior.denoiser.block_out_channels=[8, 8]"]
QUICKSTART = [
    *TRAINED,
    *PRIOR,
    "pool.num_samples=300",
    "val.num_samples=72",
    "pairs.pairs_per_pattern=4",
    "val_pairs.num_samples=48",
]
PAIRS = [*TRAINED, *PRIOR, "entries.min_count=2"]


def words(settings: list[str]) -> list[str]:
    """The settings as words of a command line."""
    return [word for setting in settings for word in ("--set", setting)]
