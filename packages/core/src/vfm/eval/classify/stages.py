"""Configurations of evaluations of image encoders: probes, few-shot, neighbours, and a classifier's own head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vfm.base import Config
from vfm.eval.base import EncodedEvaluation, FeatureEvaluation, ModelEvaluation, Templates
from vfm.interfaces import LabeledDataset, Ref, Seed, Stage, TaggedImages, VisionCheckpoint

Positive = Annotated[float, Field(gt=0)]


class ProbeInput(Config):
    """The features that a probe reads; by default a model's own image features as they are, as in CLIP's and EVA's."""

    normalize: bool = Field(False, description="scale features to unit length")
    pool: Literal["own", "cls", "mean", "cls_mean"] = Field(
        "own",
        description="own: the model's image feature, of a CLIP model before its projection; cls: the class token;"
        " mean: the mean over patches; cls_mean: the class token of every layer, then the mean of the last (DINOv2)",
    )
    layers: int = Field(1, ge=1, description="last blocks whose tokens are joined, 4 in DINOv2's second protocol")
    projected: bool = Field(False, description="pool own, CLIP models: features in the joint space")

    @model_validator(mode="after")
    def _own_is_one_vector(self) -> ProbeInput:
        if self.pool == "own" and self.layers > 1:
            raise ValueError(f"layers: {self.layers} needs pool cls, mean or cls_mean")
        if self.pool != "own" and self.projected:
            raise ValueError(f"projected needs pool: own, got {self.pool}")
        return self


class LinearProbe(FeatureEvaluation):
    """Train a linear classifier on frozen features; its penalty or learning rate is chosen on held-out images."""

    version: ClassVar[int] = 5  # since features are not scaled to unit length

    kind: Literal["eval.linear_probe"] = "eval.linear_probe"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.linear_probe:evaluate_linear_probe"
    task: ClassVar[str] = "linear_probe"

    features: ProbeInput = Field(ProbeInput(), description="the features that are probed")
    solver: Literal["lbfgs", "sgd", "lars"] = Field(
        "lbfgs",
        description="lbfgs: logistic regression with an L2 penalty (CLIP's); sgd, lars: batch norm and a linear layer"
        " over a sweep of learning rates (EVA's), also for several labels per image",
    )
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of each class held out to choose penalty or learning rate"
    )
    penalties: list[Positive] | None = Field(
        None,
        min_length=1,
        description="L2 weights of lbfgs beside the mean loss, on standardised features; default: powers of ten, 1e-6"
        " to 100",
    )
    max_iter: int = Field(1000, ge=1, description="steps of lbfgs")
    lrs: list[Positive] | None = Field(
        None, min_length=1, description="learning rates of sgd or lars; default: 0.003 to 1, or 0.1 to 30"
    )
    epochs: int = Field(30, ge=1, description="epochs of sgd and lars")
    train_batch_size: int = Field(256, ge=2, description="images per step of sgd and lars")
    seed: Seed = Field(0, description="of the split into training and validation, and of the draws of sgd and lars")


class AttentiveProbe(FeatureEvaluation):
    """Train one query's cross-attention over frozen patch tokens and a linear layer; takes several labels per image."""

    kind: Literal["eval.attentive_probe"] = "eval.attentive_probe"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.trained_probes:evaluate_attentive_probe"
    task: ClassVar[str] = "attentive_probe"

    precision: Literal["fp32"] = Field("fp32", description="of the models' forward pass")

    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of each class held out to choose the learning rate"
    )
    lrs: list[Positive] | None = Field(
        None, min_length=1, description="learning rates of AdamW to try; default: 1e-4 to 1e-2"
    )
    epochs: int = Field(20, ge=1, description="epochs of training")
    train_batch_size: int = Field(128, ge=2, description="images per step")
    max_cache_gib: float = Field(
        20.0, gt=0, description="largest temporary file of a model's patch tokens of one dataset, in GiB"
    )
    seed: Seed = Field(0, description="of the split and of all draws")


class Knn(FeatureEvaluation):
    """Classify by weighted nearest neighbours of frozen features, as DINO does; takes several labels per image."""

    kind: Literal["eval.knn"] = "eval.knn"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.knn:evaluate_knn"
    task: ClassVar[str] = "knn"

    k: int = Field(20, ge=1, description="neighbours that vote")
    temperature: float = Field(0.07, gt=0, description="a vote weighs exp(cosine / temperature)")


class FewShot(FeatureEvaluation):
    """Fit a softmax classifier to k training images per class, drawn several times, from zero or zero-shot weights."""

    kind: Literal["eval.few_shot"] = "eval.few_shot"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.few_shot:evaluate_few_shot"
    task: ClassVar[str] = "few_shot"

    # Narrower than the others': images with several labels have no k per class.
    train: Ref[LabeledDataset] = Field(  # type: ignore[assignment]
        description="images to draw from, of the classes of `data`"
    )
    data: Ref[LabeledDataset] = Field(description="images to evaluate on")  # type: ignore[assignment]
    shots: list[int] = Field([1, 2, 4, 8, 16], min_length=1, description="training images per class; a score for each")
    draws: int = Field(3, ge=1, description="number of draws of the training images; a score is their mean")
    start: Literal["nothing", "zero_shot"] = Field(
        "nothing", description="zero_shot: the text tower's classifier is the start, and weights are pulled towards it"
    )
    templates: Templates | None = Field(
        None, min_length=1, description="prompts with a {} of start: zero_shot; default: the dataset's"
    )
    penalty: float = Field(
        0.1, gt=0, description="pull towards the start: weights move by at most 2 / penalty, in the mean over classes"
    )
    seed: Seed = Field(0, description="of the first draw")

    @field_validator("shots")
    @classmethod
    def _counted_from_one(cls, shots: list[int]) -> list[int]:
        if min(shots) < 1:
            raise ValueError(f"shots must be at least 1, got {min(shots)}")
        return sorted(set(shots))


class Classify(ModelEvaluation):
    """Evaluate a classifier's own head, also on a subset of its classes.

    Scores are top-1, top-5 and mean per class recall, or mean average precision of several labels per image.
    """

    kind: Literal["eval.classify"] = "eval.classify"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.classify:evaluate_classify"
    checks: ClassVar[str] = "vfm.eval.classify.checks:check_classify"
    task: ClassVar[str] = "classification"

    models: list[Ref[VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="classifiers to evaluate; omitted in `evaluation.tasks`"
    )
    data: Ref[LabeledDataset | TaggedImages] = Field(
        description="labelled images; their classes must be among the head's, and only they can be predicted"
    )
    class_names: list[str] | None = Field(
        None,
        description="names of the head's outputs, in their order; default: the checkpoint's, else the dataset's if"
        " there are as many",
    )


class ZeroShot(EncodedEvaluation):
    """Classify images zero-shot: top-1, top-5 and mean per class recall, or mean average precision of several labels.

    The classifier is the ensemble of the prompt templates, each filled with the class name, or of sentences of a class.
    """

    kind: Literal["eval.zero_shot"] = "eval.zero_shot"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.zero_shot:evaluate_zero_shot"
    checks: ClassVar[str] = "vfm.eval.classify.checks:check_zero_shot"
    task: ClassVar[str] = "zeroshot_classification"

    data: Ref[LabeledDataset | TaggedImages] = Field(description="images with one class or several labels each")
    templates: Templates | None = Field(
        None, min_length=1, description="prompts with a {} for the class name; default: the dataset's"
    )
    prompts: str | None = Field(
        None,
        description="JSON file with sentences of each class, {class: [sentences]}, as CuPL's, in place of templates",
    )
    class_names: list[str] | None = Field(
        None, description="class names by label, for example in another language; default: the dataset's"
    )
    language: str = Field("en", description="language of class names and templates, for the results")
    answers: Literal["all", "present"] = Field(
        "all", description="present: only classes with images can be predicted, as for ImageNet-A and -R"
    )

    @model_validator(mode="after")
    def _one_kind_of_prompts(self) -> ZeroShot:
        if self.prompts and self.templates:
            raise ValueError("prompts has the sentences of each class: omit templates")
        return self

    def sources(self) -> Iterable[str]:
        """Return the file of sentences."""
        return [self.prompts] if self.prompts else []


STAGES: tuple[type[Stage], ...] = (LinearProbe, AttentiveProbe, Knn, FewShot, Classify, ZeroShot)
