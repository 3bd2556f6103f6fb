"""How stages of curation run, and their common base."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field

from vfm.plugin import Runtime, Stage

Semantics = Literal["metaclip", "metaclip2", "fixed"]
TextsOfImage = Literal["every", "one_per_image"]
TailRule = Literal["interpolated", "nearest"]

MAX_BAD_FRACTION: Any = Field(
    0.05, ge=0, le=1, description="tolerated fraction of samples in unreadable shards, which are skipped"
)


class CurationRuntime(Runtime):
    """Settings that decide where a stage of curation runs. The result does not depend on them."""

    engine: Literal["local", "ray"] = Field(
        "local", description="what runs the tasks, one for each shard: `workers` processes of this machine, or Ray"
    )
    workers: int = Field(
        0, ge=0, description="processes of this machine; 0: one for each core, if the work takes more than some seconds"
    )
    ray_address: str | None = Field(
        None,
        description="Ray cluster: `auto` for the one started here by `ray start`, or HOST:PORT;"
        " default: start one for this stage, with `workers` CPUs (0: all)",
    )

    def among(self, jobs: int) -> Self:
        """Return the settings for a step that runs together with others: it gets its share of the local cores."""
        shared = super().among(jobs)
        # A fixed number of workers stays, and a cluster's cores are not those of this machine.
        has_workers = self.workers or self.ray_address
        if has_workers:
            return shared
        return shared.model_copy(update={"workers": self.share(jobs)})


class CurationStage(Stage):
    """Base of the stages of this package."""

    runtime: CurationRuntime = Field(CurationRuntime(), description="how it runs: engine, workers, device, threads")
