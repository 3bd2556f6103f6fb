"""`keep_best`: export the weights with the highest score in an evaluation instead of the last ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vfm.base import UserError, did_you_mean
from vfm.interfaces import Context, TextPanel, Training
from vfm.train.optim.state import load_model, model_tensors


class BestWeights:
    """The weights with the highest score so far, in the memory of rank 0 and in its checkpoints."""

    def __init__(self, config: Training, ctx: Context) -> None:
        self.metric = config.evaluation.keep_best
        self.num_steps = config.num_steps
        self.ctx = ctx
        self.scores: dict[int, float] = {}  # by step
        self.step = 0
        self.tensors: dict[str, Tensor] = {}

    def offer(self, step: int, scores: Mapping[str, float], module: nn.Module) -> None:
        """Keep the weights after `step` (0: the initial weights) if their score is the highest so far.

        Args:
            step: Number of optimizer steps so far.
            scores: Scores of all evaluations, by their names in the log.
            module: The evaluated model.

        Raises:
            UserError: If the metric is not among the scores.
        """
        if self.metric is None:
            return
        if self.metric not in scores:
            hint = did_you_mean(self.metric, scores)
            raise UserError(f"{self.ctx.stage}: keep_best: no evaluation measures {self.metric}{hint}")
        self.scores[step] = scores[self.metric]
        best = self.scores[self.step] if self.tensors else math.nan
        if math.isnan(best) or self.scores[step] > best:  # NaN is not a score
            self.step = step
            # Copies, since later steps change the weights in place.
            self.tensors = {name: value.to("cpu", copy=True) for name, value in model_tensors(module).items()}

    def restore_best(self, module: nn.Module) -> None:
        """Load the best weights into the module, and report their step and the score of the last weights."""
        if not self.tensors:
            return
        load_model(module, self.tensors, self.ctx.stage)
        text = f"{self.metric} is highest after step {self.step} of {self.num_steps}, {self.scores[self.step]:.4g}: "
        if self.step == self.num_steps:
            text += "the last weights are exported"
        else:
            text += f"these weights are exported; the last ones have {self.scores[self.num_steps]:.4g}"
        self.ctx.log(f"keep_best: {text}")
        note = "A score that selects weights is biased upwards; report scores on other data."
        self.ctx.panel(TextPanel(title="Exported weights", order=15, text=text, note=note))

    def state(self) -> dict[str, Any]:
        """Build the state for a checkpoint, without the tensors."""
        return {"step": self.step, "scores": list(self.scores.items())}

    def restore(self, state: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """Restore the state from a checkpoint."""
        self.step = state["step"]
        self.scores = dict(state["scores"])
        self.tensors = tensors
