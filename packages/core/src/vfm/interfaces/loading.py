"""How training samples are read, and how often each is drawn in an epoch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vfm.base import INCIDENTAL, Config, Incidental


class ColumnSampler(Config):
    """Draw samples by a column of the data. An epoch has as many draws as the data have samples, on average."""

    balanced: str | None = Field(
        None,
        min_length=1,
        description="column whose values are drawn equally often: one of the data's `columns`, or label, the class",
    )
    weighted: str | None = Field(
        None, min_length=1, description="column with a weight, in proportion to which each sample is drawn"
    )

    @model_validator(mode="after")
    def _one_column(self) -> Self:
        if (self.balanced is None) == (self.weighted is None):
            raise ValueError("give either balanced or weighted, the name of a column")
        return self

    @property
    def column(self) -> str:
        """Name of the column."""
        return self.balanced or self.weighted or ""


class Loading(Config):
    """How samples are read."""

    shuffle_shards: int = Field(1000, ge=1, description="number of shards whose samples are shuffled together")
    # It is in the identity of a stage only if it names a column, so that earlier artifacts keep theirs.
    sampler: Annotated[ColumnSampler | Literal["shuffled"], Incidental(unless="names_sampler")] = Field(
        "shuffled",
        description="shuffled: every epoch has each sample once. {balanced: COLUMN}: as many of each value."
        " {weighted: COLUMN}: in proportion to a weight",
    )
    max_bad_fraction: Annotated[float, INCIDENTAL] = Field(
        0.05, ge=0, le=1, description="maximum fraction of samples that cannot be read before the training stops"
    )
    cache_gb: Annotated[float, INCIDENTAL] = Field(
        0.0,
        ge=0,
        description="size of local copies of remote tars in GB, shared by all processes of a machine; 0: none",
    )
    cache_folder: Annotated[str, INCIDENTAL] = Field(
        "~/.cache/vfm/shards", min_length=1, description="folder of the local copies, best on a local disk"
    )

    @property
    def by_column(self) -> ColumnSampler | None:
        """The sampler, if it draws by a column."""
        return self.sampler if isinstance(self.sampler, ColumnSampler) else None

    @property
    def names_sampler(self) -> bool:
        """Whether the sampler is part of a stage's identity."""
        return self.by_column is not None
