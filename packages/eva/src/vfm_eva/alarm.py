"""Says in words what the numbers of a pre-training mean when nothing is learned; once each, where they are logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vfm.interfaces import Training
from vfm.stage import Context
from vfm.train import alarm

GRACE = (100, 5000)  # steps after the warm-up, at least and at most, in which a loss may lie anywhere
GRACE_SHARE = 0.2  # of the steps, between these bounds
LEAST_GAIN = 0.02  # of what lies between a constant guess and a perfect one
LEAST_VARIETY = 0.1  # of the targets' own
KEPT_GAIN = 0.5  # of the best gain so far


class Alarm(alarm.Alarm):
    """Compares a pre-training with what a guess that knows no picture gets.

    The yardstick is the constant guess: `-R`, where R is the length of the targets' mean direction, is the best loss
    that knows nothing of the picture. EVA-01's published curve is below -0.65 after the first of 150 epochs and falls
    to -0.75 without ever turning; so here, after a time of grace, a loss must be below the constant guess and must not
    turn, and predictions must differ from one another.
    """

    def __init__(self, ctx: Context, plan: Training) -> None:
        super().__init__(ctx)
        least, most = GRACE
        self.grace = plan.warmup_steps + max(least, min(most, round(GRACE_SHARE * plan.num_steps)))
        self.best_gain = 0.0

    def look(self, step: int, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """One thing at most."""
        loss, constant = values["train/loss"], values["train/constant_loss"]
        mutual = values["train/mutual_cosine"]
        if step <= self.grace or loss is None or constant is None or mutual is None:
            return
        variety, wanted = 1 - mutual, 1 - constant**2
        gain = (constant - loss) / max(1 + constant, 1e-6)
        if wanted < 1e-3:
            yield (
                "alike",
                f"the targets are all alike (mutual cosine {constant**2:.4f}): there is nothing to learn from them",
            )
        elif variety < LEAST_VARIETY * wanted:
            yield (
                "collapse",
                f"step {step}: predictions have collapsed: their mutual cosine is {mutual:.3f}, that of the targets"
                f" {constant**2:.3f}; a lower lr, a longer warm-up or less weight decay may help",
            )
        elif gain < LEAST_GAIN:
            yield (
                "constant",
                f"step {step}: the loss, {loss:.3f}, is no better than that of a constant guess, {constant:.3f}:"
                " nothing of the pictures is learned; try another lr, or look at mask_ratio and crops",
            )
        elif gain < KEPT_GAIN * self.best_gain:
            yield (
                "turned",
                f"step {step}: the loss has turned: it is at {loss:.3f}, the constant guess at {constant:.3f}, and half"
                " of the best lead is lost; EVA's curves only fall. A lower lr or grad_clip_norm may help",
            )
        self.best_gain = max(self.best_gain, gain)
