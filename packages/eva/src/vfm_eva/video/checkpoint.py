"""Save and load video classifiers as a folder with the encoder in timm's layout and `video.safetensors`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vfm.models import load_state_dict, load_vision, save_state_dict, save_vision, set_class_names
from vfm.plugin import UserError, VideoClassifier
from vfm_eva.video.model import VideoTransformer
from vfm_eva.video.stages import ClipFrames, EvaVideo, VideoModel

VIDEO_WEIGHTS_FILE = "video.safetensors"
ENCODER_FOLDER = "encoder"


def save_classifier(
    model: VideoTransformer, clip: ClipFrames, class_names: list[str], directory: Path
) -> VideoClassifier:
    """Write a classifier of clips.

    The encoder gets the mean positions and patches of the frames, so that it takes images.

    Args:
        model: The classifier.
        clip: Number and sampling of the frames.
        class_names: Names of the classes.
        directory: Folder of the checkpoint.
    """
    model.write_back()
    if model.attentive is None:
        set_class_names(model.visual, class_names)
    encoder = save_vision(model.visual, directory / ENCODER_FOLDER)
    added = video_state(model)
    if added:  # a bag of frames adds nothing
        save_state_dict(added, directory / VIDEO_WEIGHTS_FILE)
    return VideoClassifier.create(
        directory,
        encoder=ENCODER_FOLDER,
        class_names=class_names,
        image_size=encoder.image_size,
        num_frames=clip.num_frames,
        sampling=clip.sampling,
        stride=clip.stride,
        model=model.settings.model_dump(mode="json"),
        predictor=EvaVideo.predictor,
    )


def load_classifier(checkpoint: VideoClassifier, device: torch.device) -> VideoTransformer:
    """Load a classifier, in evaluation mode.

    Raises:
        UserError: If weights are missing, unknown or have another shape.
    """
    visual = load_vision(checkpoint.path / checkpoint.encoder)
    settings = VideoModel.model_validate(checkpoint.model)
    model = VideoTransformer(visual, checkpoint.num_frames, settings, len(checkpoint.class_names))
    file = checkpoint.path / VIDEO_WEIGHTS_FILE
    expected = video_state(model)
    weights = load_state_dict(file) if expected else {}
    wrong = expected.keys() - weights.keys()
    for name, value in weights.items():
        if name not in expected or value.shape != expected[name].shape:
            wrong.add(name)
    if wrong:
        raise UserError(f"{file}: {min(wrong)} is missing, unknown or of another shape")
    model.load_state_dict(weights, strict=False)
    return model.to(device).eval()


def video_state(model: VideoTransformer) -> dict[str, Tensor]:
    """Collect the tensors of a classifier that are not part of its encoder."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("visual.")}
