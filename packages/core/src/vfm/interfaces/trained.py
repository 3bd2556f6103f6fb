"""Settings of the trained weights of CLIP's towers, encoders with a new head, and language models."""

from typing import ClassVar, Literal

from pydantic import Field

from vfm.base import Part, load_function


class Trained(Part):
    """Base class of the choices of trained weights. New weights, such as a head's, are always trained.

    `build(tower)` freezes the other weights of a `vfm.train.TrainedTower` in place. It returns None, or a function that
    merges added weights into the model after the last step.
    """

    in_place: ClassVar[bool] = True  # whether weights of the model itself are trained
    keeps_weights: ClassVar[bool] = True  # whether some weights stay fixed, so that they must not be random
    needs_blocks: ClassVar[bool] = False  # whether it requires a transformer

    checks: ClassVar[str] = ""  # address of the function that `check` calls

    lr_scale: float = Field(1.0, ge=0, description="learning rate, as a factor of lr")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of a layer, as a factor of the learning rate of the next layer"
    )
    weight_decay: float | None = Field(None, ge=0, description="default: the optimizer's")

    def check(self) -> None:
        """Check before a run that the required package is installed, or raise UserError."""
        if self.checks:
            load_function(self.checks)()


class AllWeights(Trained):
    """All weights."""

    type: Literal["all"] = Field("all", description="all weights")
    work: ClassVar[str] = "vfm.train.trained:train_all"
    keeps_weights: ClassVar[bool] = False
    freeze_patch_embed: bool = Field(False, description="do not train the patch embedding, as EVA-01")


class LastBlocks(Trained):
    """The last blocks, and the layers after them."""

    type: Literal["last_blocks"] = Field("last_blocks", description="the last blocks, and the layers after them")
    work: ClassVar[str] = "vfm.train.trained:train_last_blocks"
    needs_blocks: ClassVar[bool] = True
    blocks: int = Field(4, ge=0, description="number of blocks; 0: only the layers after them")


class Lora(Trained):
    """Low-rank updates of the linear layers in the blocks, merged into the weights at the end.

    `separate_qkv`, `biases` and `after_blocks` together change what peft's `all-linear` with `bias="lora_only"` changes
    in Hugging Face's CLIP.

    Source: Hu et al. 2021, LoRA (arXiv:2106.09685).
    """

    type: Literal["lora"] = Field(
        "lora", description="low-rank updates of linear layers in the blocks, merged at the end; needs vfm-core[lora]"
    )
    work: ClassVar[str] = "vfm.train.trained:train_low_rank"
    checks: ClassVar[str] = "vfm.models.low_rank:check_low_rank"
    in_place: ClassVar[bool] = False
    needs_blocks: ClassVar[bool] = True
    rank: int = Field(16, ge=1, description="rank of each update")
    alpha: int = Field(16, ge=1, description="an update is alpha / rank times the product of its two factors")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of an update's inputs that a training step drops")
    separate_qkv: bool = Field(
        False, description="separate updates of query, key and value where the model has one matrix for all three"
    )
    biases: bool = Field(False, description="also train the biases of the updated layers")
    after_blocks: bool = Field(False, description="also update the matrices after the blocks, such as the projection")


class FrozenWeights(Trained):
    """Only new weights are trained."""

    type: Literal["frozen"] = Field("frozen", description="only new weights are trained, such as a head's")
    work: ClassVar[str] = "vfm.train.trained:freeze_all"
    in_place: ClassVar[bool] = False
