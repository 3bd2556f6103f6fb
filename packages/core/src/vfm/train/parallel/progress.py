"""Progress of the processes of a training run, by which a process that hangs is detected and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

MOST_NAMED = 8  # ranks in a message


class Phase(IntEnum):
    """Phases of a step, in their order."""

    STARTING = 0
    READING = 1
    COMPUTING = 2
    EVALUATING = 3
    SAVING = 4
    WAITING = 5

    @property
    def limit(self) -> float:
        """Longest time in the phase, in units of `runtime.hang_seconds`."""
        # Compilation, a scored data set and a checkpoint on a slow disk take minutes in which a process does not move.
        if self in (Phase.STARTING, Phase.EVALUATING, Phase.SAVING):
            return 10.0
        return 1.0


DESCRIPTIONS = {
    Phase.STARTING: "starts",
    Phase.READING: "reads the data of step {step}",
    Phase.COMPUTING: "computes step {step}",
    Phase.EVALUATING: "evaluates after step {step}",
    Phase.SAVING: "saves the checkpoint of step {step}",
    Phase.WAITING: "waits for the others after step {step}",
}


class Position:
    """Step and phase of a process. The training loop changes it, and the heartbeat's thread publishes it."""

    def __init__(self) -> None:
        self.place = (0, Phase.STARTING)

    def move(self, step: int, phase: Phase) -> None:
        """Enter a phase of a step, counted from 1."""
        self.place = (step, phase)


ENDED = "1000000000 5 0"  # position of a process that has finished


@dataclass(frozen=True)
class Sighting:
    """A published position, with its step and phase, and the seconds for which it has not changed."""

    step: int
    phase: Phase
    seconds: float

    def __str__(self) -> str:
        return f"{self.step} {int(self.phase)} {self.seconds}"

    @classmethod
    def parse(cls, text: str) -> Sighting:
        """Parse a published position."""
        step, phase, seconds = text.split()
        return cls(int(step), Phase(int(phase)), float(seconds))


def hanging(sightings: Sequence[Sighting], limit: float) -> str:
    """Describe which processes hang; empty if none does.

    All other processes wait for the one that is furthest behind, so only its time counts, with the limit of its phase.
    If all are in the same phase, a collective hangs, or each process does.

    Args:
        sightings: Positions of all processes, in the order of their ranks.
        limit: Seconds that a phase may take (`Phase.limit`).
    """
    least = min(sightings, key=lambda sighting: (sighting.step, sighting.phase))
    last = [rank for rank, seen in enumerate(sightings) if (seen.step, seen.phase) == (least.step, least.phase)]
    seconds = min(sightings[rank].seconds for rank in last)
    if seconds <= limit * least.phase.limit:
        return ""
    what = f"{DESCRIPTIONS[least.phase].format(step=least.step)} for {seconds:.0f} s"
    if len(last) == len(sightings) > 1:
        return f"all {len(last)} processes hang: each {what}"
    ranks = ", ".join(map(str, last[:MOST_NAMED])) + (" and more" if len(last) > MOST_NAMED else "")
    if len(last) == 1:
        return f"process {ranks} of {len(sightings)} hangs: it {what}"
    return f"processes {ranks} of {len(sightings)} hang: each {what}"
