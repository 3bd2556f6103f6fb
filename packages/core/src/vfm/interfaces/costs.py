"""Parameters, memory, operations and disk of a stage, computed before it runs."""

from __future__ import annotations

from dataclasses import dataclass

PEAK_TFLOPS = 312.0
"""Peak of a device in estimates, in TFLOP/s, unless another is given: an A100 in bf16."""
UTILISATION = 0.4
"""Fraction of the peak that is reached in estimates (MFU), unless another is given."""


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of a process in bytes, by part.

    Attributes:
        weights: Trained and frozen models, with buffers.
        gradients: Gradients of the trained weights.
        optimizer: Optimizer state.
        average: Average of the weights (EMA).
        activations: Everything else: tensors kept for the backward pass, inputs, temporaries.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class Cost:
    """The cost of a stage. 0 means negligible, None means unknown.

    Attributes:
        parameters: Number of parameters of all models that the stage holds.
        trained: Number of parameters that it trains.
        memory: Peak memory of a process.
        flops: floating-point operations of all steps and processes (a multiplication and an addition are two).
        disk: Bytes of the artifact, and of the checkpoints while the stage runs.
        unknown: Parts that are not included, a few words each.
    """

    parameters: int | None = None
    trained: int = 0
    memory: PeakMemory | None = None
    flops: float | None = None
    disk: int | None = None
    unknown: tuple[str, ...] = ()


def seconds(cost: Cost, processes: int, peak_flops: float, utilisation: float) -> float | None:
    """Estimate the seconds that the operations of a stage take.

    Args:
        cost: Cost of the stage.
        processes: Number of devices that share the operations.
        peak_flops: Peak of a device, in operations per second.
        utilisation: Fraction of the peak that is reached (MFU), 0 to 1.

    Returns:
        Seconds, or None if the operations are unknown.
    """
    if cost.flops is None:
        return None
    return cost.flops / (processes * peak_flops * utilisation)
