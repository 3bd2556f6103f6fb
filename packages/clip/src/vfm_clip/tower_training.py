"""What a CLIP training says of its two towers: where they come from, what in them is locked, how the rest learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from vfm.artifacts import ClipCheckpoint, VisionCheckpoint
from vfm.interfaces import ClipTraining
from vfm.stage import Ref

if TYPE_CHECKING:
    from vfm_clip.groups import Rates

# What does nothing where a whole tower is locked.
_OF_LEARNING = {
    "lock_image": ("patch_dropout", "drop_path", "image_lr", "image_layer_decay", "image_weight_decay"),
    "lock_text": ("text_lr", "text_layer_decay", "text_weight_decay"),
}


class TowerTraining(ClipTraining):
    """The settings of the towers."""

    model: str | dict[str, Any] = Field(
        "ViT-Nano-4-32", description="an open_clip name (vfm adds small ones), or a configuration in its form"
    )
    image_size: int | None = Field(
        None, ge=1, description="pixels; default: the model's own; of init, too, positions are brought to it"
    )
    init: Ref[ClipCheckpoint] | None = Field(None, description="start from this CLIP model instead of from scratch")
    init_vision: Ref[VisionCheckpoint] | None = Field(
        None, description="start the vision tower from this encoder; the model's tower must be of its kind"
    )
    init_text: Ref[ClipCheckpoint] | None = Field(
        None, description="start the text tower from this model's; the model's tower must be of its kind"
    )
    lock_image: bool = Field(
        False, description="keep the vision tower as it starts (LiT); what init_vision leaves new in it is trained"
    )
    lock_image_unlocked_groups: int = Field(
        0, ge=0, description="last groups of a locked vision tower to train all the same: 1, its projection; 2, a block"
    )
    lock_text: bool = Field(
        False, description="keep the text tower as it starts; what init_text leaves new in it is trained"
    )
    lock_text_unlocked_layers: int = Field(
        0, ge=0, description="last groups of a locked text tower to train all the same: 1, its projection; 2, a block"
    )
    patch_dropout: float | None = Field(
        None, ge=0, lt=1, description="share of the patches that a training leaves out; default: the model's own"
    )
    unmasked_steps: int = Field(0, ge=0, description="last steps, in which patch_dropout is over: all patches are seen")
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="stochastic depth of a timm vision tower; default: the model's own"
    )
    image_lr: float | None = Field(None, ge=0, description="of the vision tower at its peak; default: lr")
    text_lr: float | None = Field(None, ge=0, description="of the text tower at its peak; default: lr")
    image_layer_decay: float = Field(
        1.0, gt=0, le=1, description="each group of the vision tower learns so much as fast as the one after it"
    )
    text_layer_decay: float = Field(1.0, gt=0, le=1, description="the same for the text tower")
    image_weight_decay: float | None = Field(None, ge=0, description="of the vision tower; default: weight_decay")
    text_weight_decay: float | None = Field(None, ge=0, description="of the text tower; default: weight_decay")

    @model_validator(mode="after")
    def _towers_fit_together(self) -> TowerTraining:
        image_is_still = self.lock_image and not self.lock_image_unlocked_groups
        text_is_still = self.lock_text and not self.lock_text_unlocked_layers
        if image_is_still and text_is_still:
            raise ValueError("lock_image and lock_text leave nothing to train")
        if self.lock_image and not (self.init or self.init_vision):
            raise ValueError("lock_image would keep random weights: give init or init_vision")
        if self.lock_text and not (self.init or self.init_text):
            raise ValueError("lock_text would keep random weights: give init or init_text")
        if self.lock_image_unlocked_groups and not self.lock_image:
            raise ValueError("lock_image_unlocked_groups unlocks a part of what lock_image locks: give both")
        if self.lock_text_unlocked_layers and not self.lock_text:
            raise ValueError("lock_text_unlocked_layers unlocks a part of what lock_text locks: give both")
        for lock, still in (
            ("lock_image", image_is_still and not self.init_vision),  # which may leave a projection to be learned
            ("lock_text", text_is_still and not self.init_text),
        ):
            for name in _OF_LEARNING[lock] if still else ():
                if getattr(self, name) not in (None, 0, type(self).model_fields[name].default):
                    raise ValueError(f"{lock} keeps the whole tower as it is: {name} would do nothing")
        if self.init and "model" in self.model_fields_set:
            raise ValueError("init brings its own architecture: leave model out")
        if self.unmasked_steps and not self.patch_dropout:
            raise ValueError("unmasked_steps says when patch_dropout is over: give both")
        if self.unmasked_steps > self.num_steps:
            raise ValueError(f"unmasked_steps {self.unmasked_steps} are more than the {self.num_steps} of the training")
        if not self.lr and (self.image_lr or self.text_lr):
            raise ValueError("image_lr and text_lr follow the schedule of lr, which must be above 0")
        return self

    @property
    def noise(self) -> dict[str, float]:
        """Patch dropout and drop path in open_clip's words, where they are not the model's own."""
        given = {"patch_dropout": self.patch_dropout, "timm_drop_path": self.drop_path}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def image_rates(self) -> Rates:
        """How the vision tower learns."""
        return self._rates(self.image_lr, self.image_layer_decay, self.image_weight_decay)

    @property
    def text_rates(self) -> Rates:
        """How the text tower learns."""
        return self._rates(self.text_lr, self.text_layer_decay, self.text_weight_decay)

    def _rates(self, lr: float | None, layer_decay: float, weight_decay: float | None) -> Rates:
        from vfm_clip.groups import Rates

        return Rates(1.0 if lr is None else lr / self.lr, layer_decay, weight_decay)
