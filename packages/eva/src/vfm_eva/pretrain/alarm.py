"""Warnings about pre-training runs that learn nothing. Each warning is raised once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vfm.plugin import Context
from vfm.train import Alarm

GRACE = (100, 5000)  # fewest and most steps after the warm-up in which nothing is reported
GRACE_FRACTION = 0.2  # the grace period as a fraction of all steps, clamped to these bounds
MIN_GAIN = 0.02  # fraction of the range from a constant to a perfect prediction
MIN_VARIETY = 0.1  # fraction of the targets' variety
KEPT_GAIN = 0.5  # fraction of the best gain so far that must remain
MAX_LOSS = 0.02  # largest drop of the held-out cosine below the best so far


class HeldOutAlarm:
    """Warns, once per training run, that the masked cosine of held-out images fell below its best."""

    def __init__(self) -> None:
        self.best = -1.0
        self.raised = False

    def check(self, ctx: Context, cosine: float) -> None:
        """Compare the cosine of a new evaluation with the best so far."""
        if cosine < self.best - MAX_LOSS and not self.raised:
            ctx.warn(
                f"held-out images: the masked cosine has fallen from {self.best:.3f} to {cosine:.3f}: the student"
                " overfits its training images; fewer steps, more images, smaller crops (augmentation.crop_scale) or"
                " student.drop_path may help, and evaluation.keep_best: val/masked_cosine exports the best weights"
            )
            self.raised = True
        self.best = max(self.best, cosine)


class PretrainAlarm(Alarm):
    """Compares a pre-training run with a constant prediction that ignores the image.

    The best constant prediction has the loss `-R`, where R is the length of the targets' mean direction. EVA-01's
    published curve is below -0.65 after the first of 150 epochs and falls to -0.75 without ever rising. So after a
    grace period the loss must be below the constant prediction's and must not rise, and predictions must differ. A log
    line reports R for a single batch. As the distribution of targets does not change, R is averaged over lines.

    Args:
        ctx: The stage's context.
        warmup_steps: Number of warm-up steps.
        num_steps: Number of training steps.
        teacher: Name of the teacher whose metrics are watched, if there are several.
    """

    def __init__(self, ctx: Context, *, warmup_steps: int, num_steps: int, teacher: str = "") -> None:
        super().__init__(ctx)
        self.teacher = teacher
        fewest, most = GRACE
        self.grace = warmup_steps + max(fewest, min(most, round(GRACE_FRACTION * num_steps)))
        self.mean_constant = 0.0
        self.lines = 0
        self.best_loss = math.inf

    def check(self, step: int, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield at most one problem."""
        suffix = f"_{self.teacher}" if self.teacher else ""
        loss = values.get(f"train/loss{suffix}")
        constant = values.get(f"train/constant_loss{suffix}")
        mutual = values.get(f"train/mutual_cosine{suffix}")
        if constant is not None:
            self.lines += 1
            self.mean_constant += (constant - self.mean_constant) / self.lines
        if step <= self.grace or loss is None or constant is None or mutual is None:
            return
        # The mean over all lines so far, since the constant loss of a single batch is noisy.
        constant = self.mean_constant
        self.best_loss = min(self.best_loss, loss)
        # The length of the mean of unit vectors, squared, is their mean cosine with one another.
        variety = 1 - mutual
        target_variety = 1 - constant**2
        scale = max(1 + constant, 1e-6)  # from the constant prediction to a perfect one, whose loss is -1
        gain = (constant - loss) / scale
        best_gain = (constant - self.best_loss) / scale
        prefix = f"teacher {self.teacher}, " if self.teacher else ""
        # Cosines of more than 0.999 with one another.
        if target_variety < 1e-3:
            yield (
                "equal targets",
                f"{prefix}all targets are nearly equal (mutual cosine {constant**2:.4f}): nothing can be learned from"
                " them",
            )
        elif variety < MIN_VARIETY * target_variety:
            yield (
                "collapse",
                f"{prefix}step {step}: predictions have collapsed: their mutual cosine is {mutual:.3f}, that of the"
                f" targets {constant**2:.3f}; try a lower lr, a longer warm-up or less weight decay",
            )
        elif gain < MIN_GAIN:
            yield (
                "constant",
                f"{prefix}step {step}: the loss, {loss:.3f}, is no better than that of a constant prediction,"
                f" {constant:.3f}: nothing is learned from the images; try another lr, or check mask.ratio and"
                " augmentation",
            )
        elif gain < KEPT_GAIN * best_gain:
            yield (
                "rising",
                f"{prefix}step {step}: the loss rises: it is {loss:.3f}, that of a constant prediction {constant:.3f},"
                " and half of the best gain is lost; EVA's curves only fall. Try a lower lr or"
                " optimizer.grad_clip_norm",
            )
