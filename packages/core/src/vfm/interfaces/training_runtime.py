"""Settings of layers, kernels, processes and profiling of a training stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vfm.interfaces.stage import Runtime

Step = Annotated[int, Field(ge=1)]


class TrainingRuntime(Runtime):
    """How a training stage runs."""

    compile: Literal["blocks", "whole"] | None = Field(
        None,
        description="torch.compile of all layers, including frozen models. blocks: each block of a model, which"
        " compiles in seconds; whole: model and loss together; null: not compiled",
    )
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        "default",
        description="mode of torch.compile. reduce-overhead: replay CUDA graphs; max-autotune: also time many kernels"
        " for each product, which takes minutes",
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
    profiler: Literal["torch", "nsys"] = Field(
        "torch",
        description="what records the steps of profile. torch: a trace in the artifact; nsys: NVIDIA's Nsight Systems,"
        " under which the command must run (nsys profile --capture-range=cudaProfilerApi), with NVTX ranges",
    )
    sync_debug: Literal["warn", "error"] | None = Field(
        None,
        description="on a CUDA device: warn of each call in the forward and backward passes for which the host waits,"
        " or fail at the first one",
    )
    kernels: Literal["auto", "reference", "triton"] = Field(
        "auto",
        description="auto: fused Triton kernels on CUDA devices, where measured to be faster;"
        " reference: plain torch; triton: the kernels or an error",
    )
    pad_widths: bool | Literal["auto"] = Field(
        "auto",
        description="store SwiGLU and patch-embedding weights at widths that suit tensor cores (2730 as 2752, 588 as"
        " 592); checkpoints keep the original shapes; auto: on CUDA devices, except with fsdp",
    )
    hang_seconds: float = Field(
        300.0,
        gt=0,
        description="with several processes: seconds without progress after which the training ends and names the"
        " process that hangs. A start, an evaluation or a checkpoint may take ten times as long",
    )
    flight_recorder: int = Field(
        0,
        ge=0,
        description="with several processes: number of collective operations that each process remembers, and writes"
        " next to its stacks if a process hangs (torch's flight recorder)",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: each process stores the whole model; fsdp: each process stores a part of the weights,"
        " gradients, averages and optimizer state (FSDP2)",
    )
    shard_degree: int | None = Field(
        None,
        ge=2,
        description="with fsdp: number of processes that share one copy of the model, a divisor of all; default: all",
    )
    reshard: bool = Field(
        True,
        description="with fsdp: free a block's gathered weights after its forward pass, and gather them again in the"
        " backward pass; false: keep them, which needs more memory and fewer transfers",
    )
    prefetch_blocks: int | None = Field(
        None,
        ge=1,
        description="with fsdp: number of blocks that are gathered while an earlier one runs, in both passes. More hide"
        " slower links, and need the memory of as many blocks; default: torch's choice, 1 in the backward pass",
    )
    cpu_offload: bool = Field(
        False,
        description="with fsdp: store weights, gradients, averages and optimizer state in host memory, and step the"
        " optimizer there, for a model that does not fit the GPUs otherwise",
    )
    gather_for_evaluation: bool = Field(
        True,
        description="with fsdp: gather the whole model on each device for evaluations, whose batches the processes"
        " share; false: gather block by block, for a model that fits no device. Each process then computes all batches",
    )

    @model_validator(mode="after")
    def _profile_has_steps(self) -> TrainingRuntime:
        if self.profile and self.profile[0] > self.profile[1]:
            raise ValueError(f"profile: expected the first step before the last one, got {list(self.profile)}")
        return self

    @model_validator(mode="after")
    def _compile_and_profile_are_set(self) -> TrainingRuntime:
        if self.compile_mode != "default" and self.compile is None:
            raise ValueError(f"compile_mode: {self.compile_mode} needs compile: blocks or whole")
        if self.profiler == "nsys" and not self.profile:
            raise ValueError("profiler: nsys needs profile, the first and last step to record")
        return self

    @model_validator(mode="after")
    def _sharding_fits(self) -> TrainingRuntime:
        only_with_fsdp = {
            "shard_degree": self.shard_degree is not None,
            "reshard: false": not self.reshard,
            "prefetch_blocks": self.prefetch_blocks is not None,
            "cpu_offload: true": self.cpu_offload,
            "gather_for_evaluation: false": not self.gather_for_evaluation,
        }
        for setting, is_set in only_with_fsdp.items():
            if is_set and self.parallel != "fsdp":
                raise ValueError(f"{setting} needs parallel: fsdp")
        if self.shard_degree and self.processes > 1 and self.processes % self.shard_degree:
            raise ValueError(
                f"shard_degree: expected a divisor of processes, {self.processes}, got {self.shard_degree}"
            )
        if self.parallel == "fsdp" and self.pad_widths is True:
            raise ValueError("pad_widths: true needs parallel: ddp; fsdp stores weights at their own widths")
        if self.parallel == "fsdp" and self.compile == "whole":
            raise ValueError("compile: whole needs parallel: ddp; fsdp gathers block by block, use compile: blocks")
        return self
