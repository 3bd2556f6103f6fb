"""At which times of the diffusion pictures are noised: a part of both stages' configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vfm.config import Config


class _Times(Config):
    """Times from 0, which is clean, to 1, which is noise alone."""

    shift: float = Field(1.0, gt=0, description="above 1 moves all times towards noise, as large pictures need")

    def facts(self) -> dict[str, Any]:
        """The arguments of `vfm_kernels.sample_times`."""
        return {"distribution": self.type, **self.model_dump(exclude={"type"})}  # type: ignore[attr-defined]

    def check_for(self, num_times: int) -> None:
        """Refuses what makes no sense where each picture has so many times.

        Raises:
            ValueError: as it says.
        """


class Uniform(_Times):
    """All times alike (DIVA)."""

    type: Literal["uniform"] = Field("uniform", description="all times alike (DIVA)")


class LogitNormal(_Times):
    """The sigmoid of a normal: the middle, where a condition matters most (SD 3, GenHancer)."""

    type: Literal["logit_normal"] = Field("logit_normal", description="the sigmoid of a normal (SD 3, GenHancer)")
    mean: float = Field(0.5, description="of the normal; above 0 prefers noisy times, where the condition matters")
    std: float = Field(1.2, gt=0, description="of the normal")


class Stratified(_Times):
    """Uniform, with one of a picture's times in each of as many equal parts."""

    type: Literal["stratified"] = Field(
        "stratified", description="uniform, one of a picture's times in each of as many equal parts"
    )

    def check_for(self, num_times: int) -> None:
        """Refuses a single time of each picture, drawn from its own seed: that would be uniform."""
        if num_times == 1:
            raise ValueError(
                "timesteps: stratified parts the times of one picture, and each has one time here; use uniform"
            )


AnyTimesteps = Annotated[Uniform | LogitNormal | Stratified, Field(discriminator="type")]
