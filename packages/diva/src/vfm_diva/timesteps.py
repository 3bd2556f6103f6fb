"""At which times of the diffusion pictures are noised: a part of both stages' configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vfm.config import Config


class Timesteps(Config):
    """At which times of the diffusion pictures are noised; 0 is clean, 1 is noise alone."""

    distribution: Literal["uniform", "logit_normal", "stratified"] = Field(
        "logit_normal",
        description="uniform (DIVA); logit_normal, the sigmoid of a normal (GenHancer); stratified, uniform with one "
        "of a picture's num_timesteps times in each of as many equal parts",
    )
    mean: float = Field(0.5, description="of the normal; above 0 prefers noisy times, where the condition matters")
    std: float = Field(1.2, gt=0, description="of the normal")
    shift: float = Field(1.0, gt=0, description="above 1 moves all times towards noise, as large pictures need")

    def check_for(self, num_times: int) -> None:
        """Refuses to stratify where each picture has a single time, drawn from its own seed: that would be uniform.

        Raises:
            ValueError: there is nothing to stratify.
        """
        if self.distribution == "stratified" and num_times == 1:
            raise ValueError(
                "timesteps: stratified parts the times of one picture, and each has one time here; use uniform"
            )
