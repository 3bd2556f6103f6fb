"""Settings that make the shipped recipes a matter of seconds; they check that a recipe works, not what it learns."""

from __future__ import annotations

TRAININGS = ("teacher", "eva", "clip", "prior", "diva")
CONTROLS = ("random", "balanced", "scratch", "eva_untrained", "from_untrained", "shuffled")  # of quickstart
SMALL_PRIOR = ["prior.image_size=8"]


def _trained(names: tuple[str, ...]) -> list[str]:
    return [
        f"{name}.{field}" for name in names for field in ("steps=4", "schedule.warmup_steps=0", "global_batch_size=16")
    ]


QUICKSTART = [
    *_trained(TRAININGS + CONTROLS),
    *SMALL_PRIOR,
    "pool.num_samples=600",
    "described.num_samples=300",
    "captioned.num_samples=300",
    "curated.t=4",
    "val.num_samples=72",
    "pairs.pairs_per_pattern=4",
]
PAIRS = [*_trained(TRAININGS), *SMALL_PRIOR, "prior.denoiser.block_out_channels=[8, 8]", "entries.min_count=2"]


def words(settings: list[str]) -> list[str]:
    """The settings as words of a command line."""
    return [word for setting in settings for word in ("--set", setting)]
