"""Says in words what the numbers of a contrastive training mean when it goes wrong, and what to try; once each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vfm.stage import Context
from vfm.train.alarm import Alarm
from vfm_clip.losses import Siglip

if TYPE_CHECKING:
    from vfm_clip.stage import ClipTrain

GRACE = (100, 2000)  # steps after the warm-up, at least and at most, in which a loss may lie anywhere
GRACE_SHARE = 0.1  # of the steps, between these bounds
LEAST_GAIN = 0.02  # of the loss of a blind guess
ALIKE = 0.98  # mean cosine of two features; of trained models about 0.5 among images, less among texts
FEWEST_DIRECTIONS = 1.5
MOST_REPEATED = {"captions": 0.05, "samples": 0.02}  # shares of a batch
AT_LIMIT = 1e-3  # of the inverse temperature


class Diagnosis(Alarm):
    """Flat at a blind guess' loss, temperature at its limit, pairs that stand twice in a batch, features all alike."""

    def __init__(self, ctx: Context, plan: ClipTrain) -> None:
        super().__init__(ctx)
        self.plan = plan
        least, most = GRACE
        self.grace = plan.warmup_steps + max(least, min(most, round(GRACE_SHARE * plan.num_steps)))
        self.first_scale: float | None = None

    def look(self, step: int, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What ails the training: of the data at once, of what is learned after a time of grace."""
        given = {name: value for name, value in values.items() if value is not None}
        if self.first_scale is None:
            self.first_scale = given.get("train/logit_scale")
        yield from self._repeated(step, given)
        if step > self.grace:
            yield from self._flat(step, given)
            yield from self._collapsed(step, given)
            yield from self._at_limit(step, given)

    def _flat(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        size, loss = self.plan.global_batch_size, values.get("train/contrastive_loss", 0.0)
        guess, formula = math.log(size), f"ln {size}"
        if isinstance(self.plan.loss, Siglip):  # the best constant answer says yes to one in N
            guess += (size - 1) * math.log1p(1 / (size - 1)) if size > 1 else 0.0
            formula += " + 1"
        if loss > (1 - LEAST_GAIN) * guess:
            yield (
                "flat",
                f"step {step}: the loss, {loss:.3f}, is that of a blind guess among {size} pairs ({formula}): nothing"
                f" is learned. Try a longer warm-up (warmup_steps: {self.plan.warmup_steps}), a lower lr, a start from"
                " trained towers (init, init_vision), and see in 'What the model saw' that captions fit their pictures",
            )

    def _collapsed(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for tower in ("image", "text"):
            cosine = values.get(f"train/mutual_cosine/{tower}", 0.0)
            rank = values.get(f"train/effective_rank/{tower}", math.inf)
            if cosine > ALIKE or rank < FEWEST_DIRECTIONS:
                yield (
                    f"collapse of {tower}",
                    f"step {step}: the {tower} features have collapsed: two of them have a mean cosine of {cosine:.3f},"
                    f" and they differ in {rank:.1f} directions. Try a lower lr, a longer warm-up, a larger"
                    " global_batch_size, less weight_decay, or start anew from trained towers",
                )

    def _at_limit(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        scale, most = values.get("train/logit_scale"), self.plan.logit_scale_max
        if scale is None or self.first_scale is None or self.plan.lock_logit_scale:
            return
        if scale >= most * (1 - AT_LIMIT) > self.first_scale:  # a pretrained model may come with it
            yield (
                "highest temperature",
                f"step {step} of {self.plan.num_steps}: the inverse temperature is at its limit, {most:g}. Long"
                " trainings end there; early it comes of a high lr, of few pairs seen often, or of a small batch: try a"
                " lower lr or more data, or set logit_scale_max",
            )
        elif scale <= 1 + AT_LIMIT:
            yield (
                "lowest temperature",
                f"step {step}: the inverse temperature has fallen to its least, 1: the model takes its own choices for"
                " no better than chance. Try a lower lr, or lock_logit_scale until the towers have learned",
            )

    def _repeated(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        captions, samples = (values.get(f"train/repeated/{what}", 0.0) for what in MOST_REPEATED)
        if samples > MOST_REPEATED["samples"]:
            yield (
                "repeated samples",
                f"step {step}: {samples:.1%} of a batch's pairs are of a sample that is in it twice (same key or uid),"
                " and the loss takes the one for a wrong answer to the other. Is a file listed twice, or is"
                f" global_batch_size ({self.plan.global_batch_size}) near the number of pairs?",
            )
        elif captions > MOST_REPEATED["captions"]:
            yield (
                "repeated captions",
                f"step {step}: {captions:.1%} of a batch's pairs have the same caption as another of its pairs, and the"
                " loss takes the one for a wrong answer to the other. Try curation.filter (duplicates of text) or"
                " curation.balance, longer captions, or a smaller global_batch_size",
            )
