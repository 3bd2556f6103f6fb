"""What a stage would cost, computed before it runs: parameters, memory, operations, disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of one process at the peak, by part.

    Attributes:
        weights: of the trained and the frozen models, with buffers.
        gradients: of the trained weights.
        optimizer: its state.
        average: of the weights (EMA).
        activations: everything else: what the backward pass keeps, inputs, temporaries.
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
    """The cost of a stage; zero is "nothing worth a number", None is "unknown".

    Attributes:
        parameters: of all models that the stage holds.
        trained: those of them that it trains.
        memory: of one process; None if it is not computed.
        flops: floating-point operations of all steps and processes (a multiplication and an addition are two).
        disk: bytes of the artifact, and of the checkpoints while the stage runs.
        unknown: what is not in the numbers, a few words each.
    """

    parameters: int | None = None
    trained: int = 0
    memory: PeakMemory | None = None
    flops: float | None = None
    disk: int | None = None
    unknown: tuple[str, ...] = ()


def seconds(cost: Cost, processes: int, peak_flops: float, utilisation: float) -> float | None:
    """Return the seconds of a stage's operations.

    Args:
        cost: of the stage.
        processes: devices that share its operations.
        peak_flops: of one device, in operations per second.
        utilisation: share of the peak that is reached (MFU), 0 to 1.
    """
    return None if cost.flops is None else cost.flops / (processes * peak_flops * utilisation)
