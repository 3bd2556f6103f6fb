"""Artifacts with a model, or the state of its training. `vfm.models` and `vfm.train` read the bulk."""

from typing import Any, Literal

from pydantic import Field

from vfm.interfaces.artifact import Artifact


class VisionCheckpoint(Artifact):
    """A vision encoder in timm's layout (`config.json`, `model.safetensors`), with or without a head."""

    architecture: str = Field(description="timm name")
    image_size: int = Field(description="pixels along a side")
    width: int = Field(description="channels of the patch tokens")
    num_classes: int = Field(0, description="outputs of the head; 0: no head")


class DenseCheckpoint(Artifact):
    """A model with a dense head.

    Its encoder is a `VisionCheckpoint` in a subfolder, in timm's unchanged layout, so that it stays usable on its own.
    The files of the head are next to that folder. A model of another library (`eva.import_dense`) has no such folder.
    """

    encoder: str = Field("encoder", description="folder of the VisionCheckpoint, in this artifact; empty: none")
    tasks: list[Literal["boxes", "masks", "semantic", "panoptic"]] = Field(description="what the model predicts")
    class_names: list[str] = Field(description="class names in the order of the labels")
    image_size: int = Field(description="pixels along a side of the input")
    predictor: str = Field(description="function (checkpoint, device) that loads it: 'package.module:function'")


class VideoClassifier(Artifact):
    """A classifier of videos.

    It is a `VisionCheckpoint` in a subfolder, in timm's layout, and the video weights. The encoder classifies single
    frames, and can be used alone. `video.safetensors` has the position embeddings of the frames and all other weights
    that the video model adds.
    """

    encoder: str = Field("encoder", description="folder of the VisionCheckpoint, in this artifact")
    class_names: list[str] = Field(description="class names in the order of the labels")
    image_size: int = Field(description="pixels along a side of a frame")
    num_frames: int = Field(ge=1, description="frames of a clip")
    sampling: Literal["segments", "dense"] = Field(description="how clips are taken from a video")
    stride: int = Field(ge=1, description="distance between the frames of dense clips")
    model: dict[str, Any] = Field(description="settings of the video model")
    predictor: str = Field(description="function (checkpoint, device) that loads it: 'package.module:function'")


class ClipCheckpoint(Artifact):
    """A CLIP model in open_clip's layout (`open_clip_config.json`, `open_clip_model.safetensors`)."""

    model: str = Field(description="open_clip name, or origin of the model")
    image_size: int = Field(description="pixels along a side")
    embed_dim: int = Field(description="dimension of the joint embedding")
    context_length: int = Field(description="maximum number of tokens in a text")


class TrainingState(Artifact):
    """A checkpoint of a training run, with weights, averages and optimizer state (`vfm.train.checkpoint`)."""

    step: int = Field(description="optimizer steps so far")


class GeneratorCheckpoint(Artifact):
    """A diffusion model in diffusers' layout."""

    sample_size: int = Field(description="side of the denoised sample, in pixels or latents")
    condition_width: int = Field(description="channels of the cross-attention context; 0 if it attends to none")
    prediction: Literal["epsilon", "v", "flow"] = Field(description="prediction target of the model")


class ExportedModel(Artifact):
    """A model in the layout of another library."""

    format: str = Field(description="format of `vfm export`")
