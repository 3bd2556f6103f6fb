"""The target that a student predicts for every patch, with its loss."""

# B batch, N patches, K predicted patches, T target width, D width of features

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models import Preprocess
from vfm.train import Frozen, Metrics
from vfm_eva.targets.images import EvaInputs
from vfm_eva.targets.phi_s import Statistics
from vfm_kernels import masked_cosine_loss, resultant_length

__all__ = ["PatchTarget", "resample_grid"]


class PatchTarget(Frozen[nn.Module]):
    """A target that the student predicts for every patch, with its loss. Subclass it for a custom target.

    The default loss is EVA's, the negative cosine.

    Attributes:
        width: Number of values that the student's head predicts per patch, T.
        preprocess: Preprocessing of the images that the target is computed from. None: the student's.
        is_cosine: Whether the loss is a negative cosine.
        statistics: Statistics to fit to the target's features of the first images before training starts.
        grid: Rows and columns of the patches, before they are interpolated to a student's. None: there are no patches.
    """

    width: int
    preprocess: Preprocess | None = None
    is_cosine: bool = True
    statistics: Statistics | None = None
    grid: tuple[int, int] | None = None

    def targets(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Compute the targets of a batch, (B, N, ...)."""
        raise NotImplementedError

    def preprocess_for(self, student: Preprocess) -> Preprocess:
        """Choose the preprocessing of its images, for a student's images of some size."""
        return self.preprocess or student

    def features_to_fit(self, inputs: EvaInputs, grid: tuple[int, int]) -> Tensor:
        """Compute the features of a batch to which statistics are fitted, (B, N, D)."""
        return self.targets(inputs, grid)

    def patch_loss(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Compute the mean loss over the counted patches.

        Args:
            prediction: (B, K, T).
            target: (B, K, ...).
            counted: (B, K) booleans.
        """
        return masked_cosine_loss(prediction, target, counted)

    def metrics(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Metrics:
        """Compute further metrics of a prediction. Each takes a pass over all features.

        `constant_loss` is the loss of the best constant prediction, `mutual_cosine` the mean cosine of two predictions.

        Args:
            prediction: As in `patch_loss`.
            target: As in `patch_loss`.
            counted: As in `patch_loss`.
        """
        mutual = resultant_length(prediction.detach(), counted) ** 2
        return {"constant_loss": self.constant_loss(target, counted), "mutual_cosine": mutual}

    def constant_loss(self, target: Tensor, counted: Tensor) -> Tensor:
        """Compute the loss of the best constant prediction."""
        return -resultant_length(target, counted)


def resample_grid(features: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Interpolate patch features bilinearly to another grid.

    Args:
        features: (B, N, T).
        source: Rows and columns of the features.
        grid: Rows and columns of the result. An equal grid leaves them unchanged.
    """
    if source == grid:
        return features
    planes = features.transpose(1, 2).reshape(len(features), -1, *source)  # (B, T, rows, columns)
    # Antialiased, or a smaller grid would only see some of the patches.
    return F.interpolate(planes.float(), size=grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
