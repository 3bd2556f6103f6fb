"""Fine-tuning for classification: the head is new, the layers below it learn the slower the deeper they lie."""

# B batch, C classes, L blocks, S side of the image

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.artifacts import VisionCheckpoint
from vfm.config import UserError
from vfm.eval.encode import PooledVision
from vfm.models.class_names import class_names_of, set_class_names
from vfm.models.fitting import KeyReport, Rules, fit
from vfm.models.patch_features import vision_tower
from vfm.models.vision import WEIGHTS_FILE, build_vision, save_vision, vision_preprocess
from vfm.models.weights import load_state_dict
from vfm.train import Batch, Metrics, ParamGroup, Task
from vfm_eva.finetune_images import global_draws
from vfm_kernels import Kernels, accelerated, padded

if TYPE_CHECKING:
    from vfm_eva.finetune import EvaFinetune

BEFORE_THE_BLOCKS = ("cls_token", "reg_token", "mask_token", "pos_embed", "patch_embed", "norm_pre")
_NEW = {"head.": "new, for these classes", "fc_norm.": "new, after the mean over patches"}


class Classifier(Task):
    """Cross-entropy of a timm classifier, with layer decay. A batch has `images` (B, 3, S, S) uint8 and `labels` (B,).

    Args:
        model: a vision transformer of timm's with a head.
        layer_decay: a layer's learning rate is so much of that of the one above it.
        label_smoothing: share of the target that all classes have alike.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none.
        freeze_patch_embed: leave the patch embedding as it is.

    Sources: Bao et al. 2021, BEiT (arXiv:2106.08254) for layer decay; Zhang et al. 2017 (arXiv:1710.09412), Yun et al.
    2019 (arXiv:1905.04899) for mixing, as timm does it, within each micro-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layer_decay: float = 1.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        freeze_patch_embed: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.layer_decay, self.label_smoothing = model, layer_decay, label_smoothing
        self.preprocess = vision_preprocess(model)
        self.mix = None
        if mixup or cutmix:
            self.mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=model.num_classes)
        if freeze_patch_embed:
            embed: Any = model.patch_embed
            embed.requires_grad_(False)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of a batch, and the share of images that are right (of mixed ones: by the first of the two)."""
        pixels, labels = self.preprocess.pixels(batch["images"]), batch["labels"]
        targets, smoothing = labels, self.label_smoothing
        if self.mix:
            with global_draws(int(torch.randint(2**62, ()))):
                pixels, targets = self.mix(pixels, labels)
            smoothing = 0.0  # it is in the targets already
        logits = self.model(pixels)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        return loss, {"accuracy": (logits.argmax(dim=-1) == labels).float().mean()}

    def parameter_groups(self) -> list[ParamGroup]:
        """One group for each layer, and within it for what is decayed and what is not."""
        model: Any = self.model
        depth, exempt = len(model.blocks), self.no_weight_decay()
        groups: dict[tuple[int, bool], ParamGroup] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                layer = layer_of(name.removeprefix("model."), depth)
                decayed = parameter.ndim > 1 and name not in exempt
                scale = self.layer_decay ** (depth + 1 - layer)
                group = groups.setdefault((layer, decayed), ParamGroup([], scale, None if decayed else 0.0))
                group.params.append(parameter)
        return list(groups.values())

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """In the classifier."""
        return accelerated(choice, self)

    def padded(self) -> AbstractContextManager[str]:
        """In the classifier."""
        return padded(self)

    def encoder(self) -> PooledVision:
        """The classifier, for evaluations of its features and of its head."""
        return PooledVision(self.model, self.preprocess)

    def export(self, directory: Path) -> VisionCheckpoint:
        """The classifier in timm's layout, with its class names."""
        return save_vision(self.model, directory)


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter: 0 for what stands before the blocks, b + 1 for block b, depth + 1 for all the rest.

    The rest is head and final norm, by EVA's code; timm counts a norm before pooling among the last block.
    """
    if name.startswith(BEFORE_THE_BLOCKS):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1


def build_classifier(checkpoint: VisionCheckpoint, class_names: Sequence[str], plan: EvaFinetune) -> nn.Module:
    """The architecture of a checkpoint as the plan wants it, with a new head of small weights; nothing is loaded yet.

    Raises:
        UserError: it is no vision transformer, or cannot be built at this size.
    """
    model = build_vision(
        f"local-dir:{checkpoint.path}",
        image_size=plan.image_size or checkpoint.image_size,
        num_classes=len(class_names),
        global_pool=plan.global_pool,
        drop_path_rate=plan.drop_path,
        seed=plan.seed,
    )
    vision_tower(model)
    side, patch = vision_preprocess(model).image_size, model.patch_embed.patch_size[0]  # type: ignore[union-attr, index]
    if side % patch:
        raise UserError(f"image_size: {side} pixels are not a multiple of the encoder's patch size {patch}")
    set_class_names(model, class_names)
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_pct": plan.crop_pct}  # type: ignore[dict-item, assignment]
    head: Any = model.head
    if not head.weight.is_meta:
        generator = torch.Generator().manual_seed(plan.seed + 1)
        nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
        with torch.no_grad():
            head.weight.mul_(plan.head_init_scale)
        nn.init.zeros_(head.bias)
    return model


def take_weights(checkpoint: VisionCheckpoint, model: nn.Module) -> KeyReport:
    """Loads the weights of a checkpoint into a classifier; positions and patches come to its size as timm resizes them.

    Of an encoder without a head, the final norm was trained on single tokens: where there is a norm after the mean over
    patches it is dropped for a new one (EVA's rule). That of a classifier goes on, and so does its head where the
    classes are the same.

    Raises:
        UserError: a key is missing, unknown or of another shape.
    """
    weights, report = load_state_dict(checkpoint.path / WEIGHTS_FILE), KeyReport()
    names: list[str] = []
    if checkpoint.num_classes:
        with torch.device("meta"):  # its configuration alone is read
            names = class_names_of(build_vision(f"local-dir:{checkpoint.path}"))
    dropped = {key: "its pooling is not the classifier's" for key in weights if key.startswith("attn_pool.")}
    if not names or names != class_names_of(model):
        dropped |= {key: "a head for other classes" for key in weights if key.startswith("head.")}
    if not checkpoint.num_classes and not isinstance(model.fc_norm, nn.Identity):
        norm = (key for key in weights if key.startswith(("norm.", "fc_norm.")))
        dropped |= dict.fromkeys(norm, "trained on single tokens, before there was a mean over patches")
    kept = {key: value for key, value in weights.items() if key not in dropped}
    fit(kept, model, Rules({}, _NEW, where="encoder", want="the classifier"), report)
    report.dropped.update(dropped)
    return report
