"""Training of a video classifier as a task for `vfm.train.fit`."""

# B videos, R clips of each, T frames, S side, C classes

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from vfm.models import vision_preprocess
from vfm.plugin import AllWeights, Trained, VideoClassifier
from vfm.train import Metrics, Task, prepare_towers
from vfm_eva.finetune.classifier import encoder_tower, layer_of_encoder
from vfm_eva.finetune.mixing import StepMix
from vfm_eva.video.checkpoint import save_classifier
from vfm_eva.video.clips import VideoClips
from vfm_eva.video.model import VideoTransformer
from vfm_eva.video.predictor import Predictor
from vfm_eva.video.stages import ClipFrames
from vfm_kernels import Kernels, accelerated, padded


class VideoTask(Task[VideoClips]):
    """Cross-entropy of a clip classifier, with layer decay, mixup and CutMix over clips.

    Args:
        model: The classifier.
        clip: Number and sampling of its frames, for the export.
        class_names: Class names of its outputs.
        trained: Trainable weights of the encoder. The head and a new norm before it are always trained.
        label_smoothing: Share of the target spread evenly over all classes.
        mixup: alpha of mixup. 0: none.
        cutmix: alpha of CutMix. 0: none.
        seed: Seed of mixing and of LoRA's initial weights.
    """

    def __init__(
        self,
        model: VideoTransformer,
        clip: ClipFrames,
        class_names: list[str],
        *,
        trained: Trained = AllWeights(),  # noqa: B008 (frozen)
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.clip = clip
        self.class_names = class_names
        self.label_smoothing = label_smoothing
        self.preprocess = vision_preprocess(model.visual)
        self.mix = None
        if mixup or cutmix:
            self.mix = StepMix(mixup, cutmix, label_smoothing, len(class_names), seed)
        for name, parameter in model.named_parameters():
            if _unused(name, model):
                parameter.requires_grad_(False)
        self.towers = [encoder_tower(trained, model, "visual.blocks", _layer)]
        self.merge = prepare_towers(self.towers, seed=seed)

    def forward(self, inputs: VideoClips) -> tuple[Tensor, Metrics]:
        """Compute loss and accuracy of a batch. For mixed clips, accuracy refers to the first of the two labels."""
        repeats, frames = inputs.clips.shape[1:3]
        pixels = self.preprocess.pixels(inputs.clips.flatten(0, 2))  # (B R T, 3, S, S)
        targets = labels = inputs.labels
        smoothing = self.label_smoothing
        if self.mix:
            # Mixing sees all frames of a video as channels, so a CutMix box is the same in all of them.
            stacked = pixels.view(len(labels), -1, *pixels.shape[-2:])
            stacked, targets, labels = self.mix(stacked, labels)
            pixels, smoothing = stacked.reshape(pixels.shape), 0.0  # the mixed targets are already smoothed
        targets = targets.repeat_interleave(repeats, dim=0)
        labels = labels.repeat_interleave(repeats, dim=0)
        logits = self.model(pixels.view(-1, frames, *pixels.shape[1:])).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        return loss, {"accuracy": (logits.argmax(dim=-1) == labels).float().mean()}

    def before_step(self, step: int) -> None:
        """Set the step from which mixing is drawn."""
        if self.mix:
            self.mix.step = step

    def kernels(self, choice: Kernels) -> AbstractContextManager[str]:
        """Use fused kernels in the encoder."""
        return accelerated(choice, self)

    def padded(self) -> AbstractContextManager[str]:
        """Pad the widths of the encoder."""
        return padded(self)

    def encoder(self) -> Predictor:
        """Wrap the classifier as a predictor for evaluations."""
        return Predictor(self.model, self.preprocess, self.class_names, self.clip)

    def export(self, directory: Path) -> VideoClassifier:
        """Write the encoder in timm's layout and the video parts, with LoRA weights merged."""
        self.merge()
        return save_classifier(self.model, self.clip, self.class_names, directory)


def _layer(name: str) -> int | None:
    """Find the layer of a weight. The head and the norm after pooling have none."""
    if name.startswith("attentive"):
        return None
    return layer_of_encoder(video_layer_name(name))


def video_layer_name(name: str) -> str:
    """Map a parameter of the video model to the image encoder's parameter whose layer it shares."""
    if name.startswith("visual."):
        return name.removeprefix("visual.")
    if name.startswith("temporal."):
        return "blocks." + name.removeprefix("temporal.")
    return "pos_embed"  # positions, time, tubelets


def _unused(name: str, model: VideoTransformer) -> bool:
    """Check whether the model never reads a parameter. It then gets no gradient."""
    if name == "visual.patch_embed.proj.weight":
        return model.tubelets is not None
    if name == "visual.pos_embed":
        prefixed = model.trunk.prefix().shape[1] and not model.visual.no_embed_class
        return model.positions is not None and not prefixed
    if name == "attentive_time":
        return model.settings.time == "none"
    return model.attentive is not None and name.startswith("visual.fc_norm.")
