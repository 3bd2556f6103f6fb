"""The stage `eva.finetune`: an encoder becomes a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from vfm.artifacts import LabeledDataset, VisionCheckpoint
from vfm.eval.stages import check_class_names
from vfm.interfaces import CropScale, Decay, Training
from vfm.stage import Context, Preflight, Ref
from vfm_eva.targets import Crops

if TYPE_CHECKING:
    from vfm_eva.finetune_task import Classifier


class EvaFinetune(Training, Crops):
    """Trains a classifier from an encoder, all of its weights (EVA's recipe, arXiv:2211.07636, 2303.11331).

    Used twice it is an intermediate fine-tuning and the one on the target: a head for other classes is replaced, one
    for the same classes goes on.
    """

    kind: Literal["eva.finetune"] = "eva.finetune"
    encoder: Ref[VisionCheckpoint] = Field(description="the encoder to start from, with or without a head")
    data: Ref[LabeledDataset] = Field(description="labelled images; their classes are the head's")
    image_size: int | None = Field(
        None, ge=1, description="pixels; at another size than the encoder's its position embeddings are resized"
    )
    global_pool: Literal["avg", "token"] = Field(
        "avg", description="avg: mean of the patch tokens and a new norm after it; token: the class token"
    )
    layer_decay: float = Field(0.8, gt=0, le=1, description="each layer's rate is so much of that of the one above it")
    freeze_patch_embed: bool = Field(
        True, description="leave the patch embedding as it is, as EVA's released code does without a word"
    )
    head_init_scale: float = Field(0.001, gt=0, description="a new head's weights are drawn with 0.02 times this")
    drop_path: float = Field(0.1, ge=0, lt=1, description="chance to skip the last block; falls to 0 at the first")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target that all classes have alike")
    crop_scale: CropScale = Field((0.08, 1.0), description="share of the area a random crop keeps")
    rand_augment: str | None = Field(
        "rand-m9-mstd0.5-inc1", description="timm's RandAugment in timm's words; null augments nothing"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 mixes nothing")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; with mixup one of the two is drawn for each batch")
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image that the evaluation's crop keeps")
    lr: float = Field(1e-4, ge=0, description="peak learning rate, of the head")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="decay of AdamW's two averages")
    eps: float = Field(1e-8, gt=0, description="added to AdamW's denominator")
    ema_decay: float | None = Field(
        0.9999, gt=0, lt=1, description="average the weights; the average is what is exported; null: no average"
    )

    @model_validator(mode="after")
    def _pairs_to_mix(self) -> EvaFinetune:
        if self.mixup or self.cutmix:
            share = self.global_batch_size // self.runtime.processes
            micro = min(self.micro_batch_size or share, share)
            if not micro or micro % 2 or share % micro % 2:
                raise ValueError("mixup and cutmix mix images in pairs: make the micro-batches even, 2 or more")
        return self

    def preflight(self, ctx: Preflight) -> None:
        """The augmentation is one of timm's; an encoder that is there already takes the size, data have classes."""
        import torch

        from vfm_eva.finetune_images import check_rand_augment
        from vfm_eva.finetune_task import build_classifier

        check_rand_augment(self.rand_augment)
        data, checkpoint = ctx.artifact(self.data), ctx.artifact(self.encoder)
        if data:
            check_class_names(data.class_names, self.data)
        if checkpoint:
            with torch.device("meta"):
                build_classifier(checkpoint, data.class_names if data else ["a", "b"], self)

    def run(self, ctx: Context) -> VisionCheckpoint:
        """Trains, and shows what the patches have become."""
        from vfm.data.loader import TrainingData
        from vfm.data.source import open_dataset
        from vfm.eval.semantic import pca_sheet
        from vfm.train import fit, is_main
        from vfm_eva.finetune_images import MakeLabeled

        data = ctx.load(self.data)
        check_class_names(data.class_names, self.data)
        task, source = self._task(ctx, data), open_dataset(data)
        make = MakeLabeled.of(task.preprocess, self.crop_scale, self.flip, self.rand_augment)
        fit(task, TrainingData.of(self, source, make), self, ctx, self.runtime)
        if is_main():
            ctx.panel(pca_sheet(task.encoder(), source, ctx.directory))
        return task.export(ctx.directory)

    def _task(self, ctx: Context, data: LabeledDataset) -> Classifier:
        from vfm.train import is_main
        from vfm_eva.finetune_task import Classifier, build_classifier, take_weights

        checkpoint = ctx.load(self.encoder)
        model = build_classifier(checkpoint, data.class_names, self)
        report = take_weights(checkpoint, model)
        if is_main():
            ctx.log(f"weights of the encoder: {report.summary}")
            ctx.panel(report.panel("Weights taken"))
        if self.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        return Classifier(
            model,
            layer_decay=self.layer_decay,
            label_smoothing=self.label_smoothing,
            mixup=self.mixup,
            cutmix=self.cutmix,
            freeze_patch_embed=self.freeze_patch_embed,
        )
