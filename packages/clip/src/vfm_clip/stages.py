"""Configuration of `clip.train` with its towers, loss, temperature, crops and captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import (
    AdamW,
    AllWeights,
    ClipCheckpoint,
    ClipTraining,
    ColumnSampler,
    Config,
    CosineSchedule,
    CropScale,
    FrozenWeights,
    Loading,
    Optimizer,
    Ref,
    Schedule,
    Trained,
    VisionCheckpoint,
)
from vfm_clip.loss_parts import ClipLoss, InfoNce

LanguageWeights = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]


class Tower(Config):
    """How a tower is trained."""

    trained: Trained = Field(
        AllWeights(), description="weights to train, in addition to the new ones that init_* cannot set"
    )

    moved: ClassVar[Mapping[str, str]] = {
        "lock": "trained: {type: frozen}",
        "unlocked": "trained: {type: last_blocks}",
        "update": "trained",
    }

    @property
    def is_frozen(self) -> bool:
        """Whether the initial weights of the tower stay as they are."""
        return isinstance(self.trained, FrozenWeights)


class VisionTowerTraining(Tower):
    """Training of the vision tower, with its regularization and normalization."""

    patch_dropout: float | None = Field(
        None, ge=0, lt=1, description="fraction of the patches dropped in training (default: the model's value)"
    )
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="stochastic depth of a timm vision tower (default: the model's value)"
    )
    unmasked_steps: int = Field(0, ge=0, description="number of steps without patch_dropout, at the end")
    normalization: Literal["model", "encoder"] = Field(
        "model",
        description="mean and std of the images. model: keep the model's values, which must equal init_vision's."
        " encoder: use init_vision's",
    )

    @property
    def noise(self) -> dict[str, float]:
        """Patch dropout and drop path under open_clip's names. A missing one keeps the model's value."""
        rates = {"patch_dropout": self.patch_dropout, "timm_drop_path": self.drop_path}
        return {key: value for key, value in rates.items() if value is not None}


class LogitScale(Config):
    """The inverse temperature of the logits."""

    init: float | None = Field(
        None, ge=1, description="initial inverse temperature (default: the model's value, 1/0.07 from scratch)"
    )
    max: float = Field(100.0, ge=1, description="largest inverse temperature (the smallest is 1)")
    lock: bool = Field(False, description="keep the initial inverse temperature fixed")


class CropAugmentation(Config):
    """Random crops of the training images."""

    crop_scale: CropScale | None = Field(
        (0.9, 1.0),
        description="fraction of the area that a random crop keeps (null: preprocess as in evaluation, without crops)",
    )
    crop_ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="smallest and largest aspect ratio of a random crop"
    )
    pixels: Literal["exact", "fast"] = Field(
        "exact",
        description="exact: resize like Pillow (and open_clip). fast: resize like torch, where 0.4 % of the values"
        " differ by at most 2 of 255",
    )

    @model_validator(mode="after")
    def _consistent(self) -> CropAugmentation:
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(
                f"crop_ratio: expected two positive ratios, the smaller one first, got {list(self.crop_ratio)}"
            )
        if self.crop_scale is None and "crop_ratio" in self.model_fields_set:
            raise ValueError("crop_ratio has no effect with crop_scale: null: omit it")
        if self.crop_scale is None and self.pixels == "fast":
            raise ValueError("pixels: fast has no effect with crop_scale: null: omit it")
        return self


class ClipLoading(Loading):
    """How image-text pairs are read."""

    sampler: ColumnSampler | Literal["shuffled", "balanced"] = Field(  # type: ignore[assignment]
        "shuffled",
        description="shuffled: every epoch has all samples. balanced: each epoch draws the texts of a curated subset by"
        " their probabilities. {balanced: COLUMN}: as many of each value. {weighted: COLUMN}: in proportion to a"
        " weight",
    )

    @property
    def names_sampler(self) -> bool:
        """Whether the sampler is part of a stage's identity. It always is, as before samplers had columns."""
        return True


class ClipTrain(ClipTraining):
    """Train a CLIP model on image-text pairs.

    Training starts from random weights, from a CLIP model, or from pretrained towers.
    """

    version: ClassVar[int] = 4  # patch dropout has drawn on the device since 4
    work: ClassVar[str] = "vfm_clip.train:train_clip"
    checks: ClassVar[str] = "vfm_clip.preflight:check_clip_train"
    costs: ClassVar[str] = "vfm_clip.estimate:clip_train_cost"
    can_shard: ClassVar[bool] = True

    kind: Literal["clip.train"] = "clip.train"
    model: str | dict[str, Any] = Field(
        "ViT-Nano-4-32", description="open_clip name (vfm adds small ones), or a configuration in open_clip's form"
    )
    image_size: int | None = Field(
        None, ge=1, description="pixels (default: the model's size). Positions of `init` are resampled to it"
    )
    init: Ref[ClipCheckpoint] | None = Field(None, description="initial CLIP model (default: from scratch)")
    init_vision: Ref[VisionCheckpoint] | None = Field(
        None, description="initial vision tower, with the architecture of the model's vision tower"
    )
    init_text: Ref[ClipCheckpoint] | None = Field(
        None, description="CLIP model with the initial text tower, which needs the architecture of the model's"
    )
    language: str | LanguageWeights | None = Field(
        None,
        description="language or source of the captions, or several with weights, such as {alt: 3, synthetic: 1}"
        " (default: the dataset's first)",
    )
    vision: VisionTowerTraining = Field(VisionTowerTraining(), description="how the vision tower is trained")
    text: Tower = Field(Tower(), description="how the text tower is trained")
    logit_scale: LogitScale = Field(LogitScale(), description="the inverse temperature")
    loss: ClipLoss = Field(InfoNce(), description="loss over the batch of all processes")
    weight: str | None = Field(
        None, description="column of the data that weights each pair, for a loss that is the weighted mean over a step"
    )
    augmentation: CropAugmentation = Field(CropAugmentation(), description="random crops")
    loading: ClipLoading = Field(ClipLoading(), description="how pairs are read")
    lr: float = Field(5e-4, ge=0, description="peak learning rate")
    optimizer: Optimizer = Field(
        AdamW(weight_decay=0.2),
        description="optimizer (gains, biases, positions and class tokens have no weight decay)",
    )
    schedule: Schedule = Field(
        CosineSchedule(warmup_steps=100),
        description="learning rate over the steps. Without a warm-up, features may collapse at once (loss at ln N)",
    )

    moved: ClassVar[Mapping[str, str]] = {
        **ClipTraining.moved,
        "lock_image": "vision.trained: {type: frozen}",
        "lock_image_unlocked_groups": "vision.trained: {type: last_blocks}",
        "image_lr": "vision.trained.lr_scale",
        "image_layer_decay": "vision.trained.layer_decay",
        "image_weight_decay": "vision.trained.weight_decay",
        "lock_text": "text.trained: {type: frozen}",
        "lock_text_unlocked_layers": "text.trained: {type: last_blocks}",
        "text_lr": "text.trained.lr_scale",
        "text_layer_decay": "text.trained.layer_decay",
        "text_weight_decay": "text.trained.weight_decay",
        "update": "vision.trained and text.trained",
        "logit_scale_init": "logit_scale.init",
        "logit_scale_max": "logit_scale.max",
        "lock_logit_scale": "logit_scale.lock",
        "loss_chunk_size": "loss.chunk_size",
    }

    @property
    def unmasked_from(self) -> int:
        """First step without patch dropout."""
        return self.num_steps - self.vision.unmasked_steps

    @model_validator(mode="after")
    def _towers_fit(self) -> ClipTrain:
        if self.vision.is_frozen and self.text.is_frozen:
            raise ValueError("vision.trained and text.trained: frozen leaves nothing to train")
        # A frozen tower that is initialised from another model may still have a new projection, which is trained.
        for name, tower, start in (("vision", self.vision, self.init_vision), ("text", self.text, self.init_text)):
            _check_trained(name, tower, bool(self.init), bool(start))
        if self.init and "model" in self.model_fields_set:
            raise ValueError("init has its own architecture: omit model")
        unmasked = self.vision.unmasked_steps
        if unmasked and not self.vision.patch_dropout:
            raise ValueError("vision.unmasked_steps ends vision.patch_dropout: give both")
        return self

    def check_steps(self) -> None:
        """Check that the steps without patch dropout are among the steps.

        Raises:
            ValueError: If there are fewer steps.
        """
        super().check_steps()
        unmasked = self.vision.unmasked_steps
        if unmasked > self.num_steps:
            raise ValueError(f"vision.unmasked_steps must be at most {self.num_steps}, the steps; got {unmasked}")

    @model_validator(mode="after")
    def _options_fit(self) -> ClipTrain:
        scale = self.logit_scale
        if scale.init and scale.init > scale.max:
            raise ValueError(f"logit_scale.init must be at most logit_scale.max, {scale.max:g}; got {scale.init:g}")
        if self.loss.without_logits and not (self.text.is_frozen and scale.lock):
            raise ValueError(
                f"loss: {self.loss.type} has no negatives and no logits: freeze text and set logit_scale.lock"
            )
        if self.weight and (not self.loss.takes_weights or getattr(self.loss, "chunk_size", None)):
            expected = "info_nce or distinct_info_nce without chunk_size"
            raise ValueError(f"weight: expected loss {expected}, got {self.loss.type}")
        if self.loading.sampler == "balanced" and isinstance(self.language, dict):
            raise ValueError("loading.sampler: balanced draws texts by their own probabilities: give one language")
        return self


def _check_trained(name: str, tower: Tower, has_init: bool, has_tower_init: bool) -> None:
    """Check a tower's `trained` against its initial weights, and reject options without effect.

    Raises:
        ValueError: If random weights would stay as they are, or an option has no effect.
    """
    if tower.trained.keeps_weights and not (has_init or has_tower_init):
        raise ValueError(f"{name}.trained: {tower.trained.type} would keep random weights: give init or init_{name}")
    if not tower.is_frozen or has_tower_init:
        return
    rates = {"trained." + key: getattr(tower.trained, key) for key in ("lr_scale", "layer_decay", "weight_decay")}
    others = {key: getattr(tower, key) for key in type(tower).model_fields if key not in ("trained", "unmasked_steps")}
    neutral = (None, 0, 1, "model")  # values with the same effect as omitting the option
    for key, value in (rates | others).items():
        if value not in neutral:
            raise ValueError(f"{name}.{key} has no effect, since {name}.trained: frozen keeps the whole tower")
