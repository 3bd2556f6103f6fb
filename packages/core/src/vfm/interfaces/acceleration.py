"""How the layers of a training run, and which steps are profiled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vfm.interfaces.stage import Runtime

Step = Annotated[int, Field(ge=1)]


class LayerRuntime(Runtime):
    """How the layers of a training run."""

    compile: Literal["blocks", "whole"] | None = Field(
        None,
        description="torch.compile of all layers, including frozen models. blocks: each block of a model, which"
        " compiles in seconds; whole: model and loss together; null: not compiled",
    )
    selective_checkpointing: bool = Field(
        False,
        description="keep only the outputs of matrix products, convolutions and attention of each block, and compute"
        " the other activations again in the backward pass; grad_checkpointing keeps none",
    )
    channels_last: bool = Field(
        False, description="store weights of convolutions with channels last, for networks such as ResNet and ConvNeXt"
    )
    sync_batch_norm: bool = Field(False, description="batch norm statistics over all processes, on CUDA devices")
    profile: tuple[Step, Step] | None = Field(
        None, description="first and last step that torch's profiler records, [20, 22] for example"
    )

    @model_validator(mode="after")
    def _profile_has_steps(self) -> LayerRuntime:
        if self.profile and self.profile[0] > self.profile[1]:
            raise ValueError(f"profile: expected the first step before the last one, got {list(self.profile)}")
        return self
