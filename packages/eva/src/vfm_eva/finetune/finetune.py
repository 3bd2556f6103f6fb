"""Build a classifier for `eva.finetune`, load the encoder's weights, and train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vfm.data import TrainingData, open_dataset, read_tags, require_column
from vfm.eval import pca_sheet
from vfm.models import (
    VISION_WEIGHTS_FILE,
    KeyReport,
    TransferRules,
    build_vision,
    check_vision_transformer,
    class_names_of,
    known_checkpoint,
    load_state_dict,
    set_class_names,
    transfer_weights,
    vision_preprocess,
    vision_tower,
)
from vfm.plugin import (
    Context,
    ImageDataset,
    LabeledDataset,
    Preflight,
    TaggedImages,
    UserError,
    VisionCheckpoint,
    check_class_names,
)
from vfm.train import fit, is_main, show_panels
from vfm_eva.finetune.classifier import Classifier, check_trained
from vfm_eva.finetune.labeled_images import MakeLabeled, check_rand_augment
from vfm_eva.finetune.stages import EvaFinetune

_HEADS = ("head.", "head_dist.")  # a distilled DeiT has the second
_NEW = {**dict.fromkeys(_HEADS, "new, for these classes"), "fc_norm.": "new, after the mean over patches"}


def check_eva_finetune(config: EvaFinetune, ctx: Preflight) -> None:
    """Check that timm has the augmentation, that the data have classes, and that a known encoder can be built.

    Raises:
        UserError: The first mistake.
    """
    config.trained.check()
    check_rand_augment(config.augmentation.rand_augment)
    data = ctx.artifact(config.data)
    if data:
        _check_data(config, data)
    class_names = data.class_names if data else ["a", "b"]  # any names do for shapes
    with known_checkpoint(ctx, config.encoder) as checkpoint, torch.device("meta"):
        if checkpoint:
            check_trained(config.trained, build_classifier(config, checkpoint, class_names))


def _check_data(config: EvaFinetune, data: LabeledDataset | TaggedImages) -> None:
    check_class_names(data.class_names, config.data)
    if isinstance(data, TaggedImages) and (config.augmentation.mixup or config.augmentation.cutmix):
        raise UserError(
            f"{config.data} has several labels an image: mixup and cutmix mix single classes; set both to 0"
        )


def finetune_eva(config: EvaFinetune, ctx: Context) -> VisionCheckpoint:
    """Train the classifier, and add a report panel of its patch features."""
    data = ctx.load(config.data)
    _check_data(config, data)
    tags = read_tags(data) if isinstance(data, TaggedImages) else None
    if isinstance(data, TaggedImages):
        images = ImageDataset.load(data.linked(data.data))
    else:
        images = data
    task, source = _task(config, ctx, data), open_dataset(images)
    augmentation = config.augmentation
    make = MakeLabeled.of(task.preprocess, augmentation.crop_scale, augmentation.flip, augmentation.rand_augment)
    make = replace(make, labels=tags, weight=config.weight)
    if config.weight:
        require_column(source.index.spec, config.weight, f"{config.name}: weight: {config.data}")
    fit(task, TrainingData.of(config, source, make), config, ctx)
    checkpoint = task.export(ctx.directory)
    show_panels(ctx, lambda: pca_sheet(task.encoder(), source, ctx.directory))
    return checkpoint


def _task(config: EvaFinetune, ctx: Context, data: LabeledDataset | TaggedImages) -> Classifier:
    checkpoint = ctx.load(config.encoder)
    model = build_classifier(config, checkpoint, data.class_names, independent=isinstance(data, TaggedImages))
    report = load_encoder_weights(checkpoint, model)
    if is_main():
        ctx.log(f"weights of the encoder: {report.summary}")
        ctx.panel(report.panel("Weights of the encoder"))
    return classifier_task(config, model)


def classifier_task(config: EvaFinetune, model: nn.Module) -> Classifier:
    """Create the training task for a classifier from `build_classifier`."""
    if config.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    return Classifier(
        model,
        trained=config.trained,
        label_smoothing=config.label_smoothing,
        mixup=config.augmentation.mixup,
        cutmix=config.augmentation.cutmix,
        erasing=config.augmentation.erasing,
        batch_norm=config.head_norm == "batch",
        seed=config.seed,
    )


def build_classifier(
    config: EvaFinetune, checkpoint: VisionCheckpoint, class_names: Sequence[str], *, independent: bool = False
) -> nn.Module:
    """Build the architecture of a checkpoint with a new head of small weights.

    Encoder weights are not loaded.

    Args:
        config: Settings of the fine-tuning.
        checkpoint: Encoder to start from.
        class_names: Names of the classes.
        independent: An image can have several of the classes.

    Raises:
        UserError: If it is no vision transformer, or cannot be built at this size.
    """
    name = f"local-dir:{checkpoint.path}"
    check_vision_transformer(name)
    model = build_vision(
        name,
        image_size=config.image_size or checkpoint.image_size,
        num_classes=len(class_names),
        global_pool=config.global_pool,
        drop_path_rate=config.drop_path,
        seed=config.seed,
    )
    side = vision_preprocess(model).image_size
    patch = vision_tower(model).patch_size[0]
    if side % patch:
        raise UserError(f"image_size must be a multiple of the encoder's patch size {patch}, got {side}")
    if config.head_norm == "batch" and hasattr(model, "head_dist"):
        raise UserError("head_norm: batch is for encoders with one head; a distilled DeiT has two")
    set_class_names(model, class_names, independent=independent)
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_pct": config.crop_pct}  # type: ignore[dict-item, assignment]
    heads = [model.head, *([model.head_dist] if hasattr(model, "head_dist") else [])]
    for number, head in enumerate(heads, start=1):
        init_head(head, config.head_init_scale, config.seed + number)
    return model


def init_head(head: Any, scale: float, seed: int) -> None:
    """Draw a head's weights, and zero its bias.

    The weights have standard deviation 0.02 times `scale`. Heads on `meta` are skipped.

    Args:
        head: Linear layer.
        scale: Factor of the weights.
        seed: Seed of the draw.
    """
    if not head.weight.is_meta:
        # BEiT's rule: a small head lets the encoder's features change slowly at first.
        nn.init.trunc_normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            head.weight.mul_(scale)
        nn.init.zeros_(head.bias)


def load_encoder_weights(checkpoint: VisionCheckpoint, model: nn.Module) -> KeyReport:
    """Load a checkpoint's weights into a classifier. Positions and patches are resampled to its size, as in timm.

    The final norm of an encoder without a head was trained on single tokens. Therefore a classifier's norm after the
    mean over patches starts anew (EVA's rule). If the checkpoint is a classifier, its norm is loaded, and its head too
    if the classes are the same.

    Raises:
        UserError: If a key is missing, unknown or has another shape.
    """
    weights = load_state_dict(checkpoint.path / VISION_WEIGHTS_FILE)
    report = KeyReport()
    names: list[str] = []
    if checkpoint.num_classes:
        with torch.device("meta"):  # only the configuration is needed
            names = class_names_of(build_vision(f"local-dir:{checkpoint.path}"))
    reasons: dict[str | tuple[str, ...], str] = {"attn_pool.": "the classifier pools differently"}
    if not names or names != class_names_of(model):
        reasons[_HEADS] = "a head for other classes"
    if not checkpoint.num_classes and not isinstance(model.fc_norm, nn.Identity):
        reasons["norm.", "fc_norm."] = "trained on single tokens, not on their mean"
    dropped: dict[str, str] = {}
    for beginnings, reason in reasons.items():
        dropped |= dict.fromkeys((key for key in weights if key.startswith(beginnings)), reason)
    transferred = {key: value for key, value in weights.items() if key not in dropped}
    transfer_weights(transferred, model, TransferRules({}, _NEW, where="encoder", target="the classifier"), report)
    report.dropped.update(dropped)
    return report
