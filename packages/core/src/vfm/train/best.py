"""`keep_best`: the weights that an evaluation liked best are exported, not the last; which ones is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vfm.config import UserError, did_you_mean
from vfm.interfaces import Training
from vfm.panels import TextPanel
from vfm.stage import Context
from vfm.train.checkpoint import load_model, model_tensors


class Best:
    """The weights that scored highest so far, kept in the memory of the first process and in its checkpoints."""

    def __init__(self, plan: Training, ctx: Context) -> None:
        self.metric, self.num_steps, self.ctx = plan.keep_best, plan.num_steps, ctx
        self.scores: dict[int, float] = {}  # by step
        self.step = 0
        self.tensors: dict[str, Tensor] = {}

    def offer(self, step: int, scores: Mapping[str, float], module: nn.Module) -> None:
        """Keeps the model as it was judged after `step` (0: as it starts), if it scored higher than ever before.

        Args:
            step: optimiser steps so far.
            scores: of all evaluations, by the names that the log has.
            module: what was judged.

        Raises:
            UserError: the metric is none of theirs.
        """
        if self.metric is None:
            return
        if self.metric not in scores:
            hint = did_you_mean(self.metric, scores)
            raise UserError(f"{self.ctx.stage}: keep_best: the evals do not measure {self.metric}{hint}")
        self.scores[step] = scores[self.metric]
        if not self.tensors or self.scores[step] > self.scores[self.step]:
            self.step = step
            self.tensors = {name: value.to("cpu", copy=True) for name, value in model_tensors(module).items()}

    def hand_back(self, module: nn.Module) -> None:
        """Makes the best weights the module's, and says in log and report which they are and what the last scored."""
        if not self.tensors:
            return
        load_model(module, self.tensors)
        text = f"{self.metric} is highest after step {self.step} of {self.num_steps}, {self.scores[self.step]:.4g}: "
        last = f"those weights are exported, not the last ones, which have {self.scores[self.num_steps]:.4g}"
        text += "the last weights, which are exported" if self.step == self.num_steps else last
        self.ctx.log(f"keep_best: {text}")
        note = "A score that chose among weights flatters them; what is reported should come from other data."
        self.ctx.panel(TextPanel(title="Weights that are kept", order=15, text=text, note=note))

    def state(self) -> dict[str, Any]:
        """What a checkpoint must know besides the tensors."""
        return {"step": self.step, "scores": list(self.scores.items())}

    def restore(self, state: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """Goes back to what a checkpoint knew."""
        self.step, self.scores, self.tensors = state["step"], dict(state["scores"]), tensors
