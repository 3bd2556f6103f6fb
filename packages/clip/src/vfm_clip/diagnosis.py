"""Warnings about a contrastive training run that goes wrong. Each suggests a remedy, and is raised once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vfm.plugin import Context
from vfm.train import Alarm

GRACE = (100, 2000)  # bounds in steps of the grace period after the warm-up, in which nothing is reported
GRACE_FRACTION = 0.1  # grace period as a fraction of the steps, within these bounds
MIN_GAIN = 0.02  # smallest gain that counts as learning, relative to the loss of random guesses
MAX_COSINE = 0.98  # mean cosine of two features; in trained models about 0.5 for images, less for texts
# Effective directions: 1 means that all features are on a line.
MIN_RANK = 1.5
MAX_REPEATED = {"captions": 0.05, "samples": 0.02}  # fractions of a batch
LIMIT_TOLERANCE = 1e-3  # relative to the inverse temperature


class Diagnosis(Alarm):
    """Alarm for a loss at chance level, a temperature at its limit, repeated pairs and collapsed features.

    Args:
        ctx: The stage's context.
        num_steps: Steps of the training run.
        warmup_steps: Steps of the warm-up.
        global_batch_size: Pairs per step.
        chance_level: Contrastive loss of random guesses, with its formula. None: unknown.
        logit_scale_max: Largest inverse temperature. None: the temperature is fixed.
    """

    def __init__(
        self,
        ctx: Context,
        *,
        num_steps: int,
        warmup_steps: int,
        global_batch_size: int,
        chance_level: tuple[float, str] | None,
        logit_scale_max: float | None,
    ) -> None:
        super().__init__(ctx)
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.global_batch_size = global_batch_size
        self.chance_level = chance_level
        self.logit_scale_max = logit_scale_max
        fewest, most = GRACE
        self.grace = warmup_steps + max(fewest, min(most, round(GRACE_FRACTION * num_steps)))
        self.first_scale: float | None = None

    def check(self, step: int, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield problems. Repeated pairs are reported at once, failures to learn only after the grace period."""
        present = {name: value for name, value in values.items() if value is not None}
        if self.first_scale is None:
            self.first_scale = present.get("train/logit_scale")
        yield from self._repeated(step, present)
        if step > self.grace:
            yield from self._flat(step, present)
            yield from self._collapsed(step, present)
            yield from self._at_limit(step, present)

    def _flat(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if not self.chance_level:
            return
        (chance, formula), loss = self.chance_level, values.get("train/contrastive_loss", 0.0)
        if loss > (1 - MIN_GAIN) * chance:
            yield (
                "flat",
                f"step {step}: the loss, {loss:.3f}, is at chance level for {self.global_batch_size} pairs ({formula}):"
                f" nothing is learned. Try a longer warm-up (schedule.warmup_steps: {self.warmup_steps}), a lower lr,"
                " pretrained towers (init, init_vision), and check in 'First training samples' that captions match"
                " their images",
            )

    def _collapsed(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for tower in ("image", "text"):
            cosine = values.get(f"train/mutual_cosine/{tower}", 0.0)
            rank = values.get(f"train/effective_rank/{tower}", math.inf)
            if cosine > MAX_COSINE or rank < MIN_RANK:
                yield (
                    f"collapse of {tower}",
                    f"step {step}: the {tower} features have collapsed: the mean cosine of two of them is {cosine:.3f},"
                    f" and they differ in {rank:.1f} directions. Try a lower lr, a longer warm-up, a larger"
                    " global_batch_size, less weight decay, or start again from pretrained towers",
                )

    def _at_limit(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        scale = values.get("train/logit_scale")
        most = self.logit_scale_max
        if scale is None or self.first_scale is None or most is None:
            return
        if scale >= most * (1 - LIMIT_TOLERANCE) > self.first_scale:  # a pretrained model may start at the limit
            yield (
                "highest temperature",
                f"step {step} of {self.num_steps}: the inverse temperature is at its limit, {most:g}. Long trainings"
                " end there; early in a training, the lr is too high, the pairs are too few or the batch is too small:"
                " try a lower lr or more data, or set logit_scale.max",
            )
        elif scale <= 1 + LIMIT_TOLERANCE:
            yield (
                "lowest temperature",
                f"step {step}: the inverse temperature has fallen to its minimum, 1: the model's predictions are no"
                " better than chance. Try a lower lr, or logit_scale.lock until the towers have learned",
            )

    def _repeated(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        captions = values.get("train/repeated/captions", 0.0)
        samples = values.get("train/repeated/samples", 0.0)
        if samples > MAX_REPEATED["samples"]:
            yield (
                "repeated samples",
                f"step {step}: {samples:.1%} of a batch's pairs are samples that the batch holds twice (same key or"
                " uid), and the loss counts each as a wrong answer to the other. Is a file listed twice, or is"
                f" global_batch_size ({self.global_batch_size}) near the number of pairs?",
            )
        elif captions > MAX_REPEATED["captions"]:
            yield (
                "repeated captions",
                f"step {step}: {captions:.1%} of a batch's pairs have the same caption as another of its pairs, and the"
                " loss counts each as a wrong answer to the other. Try curation.filter (duplicates of text) or"
                " curation.balance, longer captions, or a smaller global_batch_size",
            )
