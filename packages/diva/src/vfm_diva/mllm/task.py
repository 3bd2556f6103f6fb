"""Training task of a multimodal language model: the loss of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vfm.data import Batch
from vfm.models import first_blocks, named_layers
from vfm.plugin import FrozenWeights, Trained
from vfm.train import Frozen, Metrics, Task, TrainedTower, prepare_towers, relative_weights
from vfm_diva.mllm.batches import MllmInputs
from vfm_diva.mllm.model import Mllm
from vfm_diva.mllm.stages import MllmCheckpoint


class MllmTask(Task[MllmInputs]):
    """Predicts the tokens of the answers, and the end after them.

    Only modules that are trained, wholly or in parts, are registered, so that checkpoints hold no vision tower.

    Args:
        model: Model whose tower stays frozen.
        trained: Weights of the language model to train besides the projector.
        seed: Seed of LoRA's weights.
    """

    def __init__(self, model: Mllm, trained: Trained, *, seed: int = 0) -> None:
        super().__init__()
        self._model = [model]  # in a list, so that it is not registered
        llava = model.llava
        spoken = nn.ModuleDict({"language_model": llava.model.language_model, "head": llava.lm_head})
        is_frozen = isinstance(trained, FrozenWeights)
        self.held = Frozen(nn.ModuleList([llava.model.vision_tower, *(spoken.values() if is_frozen else ())]))
        self.trained = nn.ModuleDict({"projector": model.projector, **({} if is_frozen else spoken)})
        self.trained.requires_grad_(True)
        self.towers = [] if is_frozen else [TrainedTower(trained, spoken, _layers, first_blocks)]
        self.merge = prepare_towers(self.towers, seed=seed)

    @property
    def model(self) -> Mllm:
        """Model in training."""
        return self._model[0]

    def forward(self, inputs: MllmInputs) -> tuple[Tensor, Metrics]:
        """Compute the mean loss of the answers' tokens, and the mean likelihood of the answers as a metric."""
        losses = self.model.answer_losses(self.model.image_states(inputs.images), inputs.ids, inputs.answers)
        sums = row_sums(losses, inputs.answers)
        return losses.mean(), {"answer_likelihood": sums.neg().exp().mean()}

    def micro_batch_weights(self, micro_batches: Sequence[Batch[MllmInputs]]) -> Tensor:
        """Compute the tokens per sample of each micro-batch, relative to the mean of the step over all processes.

        With these weights each token of the step has the same weight, as in one large batch.
        """
        counts = torch.stack([batch.inputs.answers.sum() for batch in micro_batches]).float()
        return relative_weights(counts, micro_batches)

    def encoder(self) -> Mllm:
        """Return the model for evaluations during training."""
        return self.model

    def export(self, directory: Path) -> MllmCheckpoint:
        """Write the model in transformers' layout, with LoRA's updates merged."""
        self.merge()
        return self.model.save(directory)


def _layers(spoken: nn.Module) -> list[list[str]]:
    return named_layers([name for name, _ in spoken.named_parameters()], "language_model.")


def row_sums(values: Tensor, answers: Tensor) -> Tensor:
    """Sum values over the tokens of each answer, (B,).

    Args:
        values: A value for each True of `answers`, row by row.
        answers: Mask of the tokens that count, bool (B, T). It is False in the first column.
    """
    counted = answers[:, 1:]
    rows = torch.arange(len(answers), device=answers.device)[:, None].expand_as(counted)[counted]
    return torch.zeros(len(answers), device=values.device).index_add(0, rows, values.detach())
