"""Configurations of probes, few-shot classification, nearest neighbours, zero-shot classification and classifiers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vfm.base import Config
from vfm.eval.base import EncodedEvaluation, FeatureEvaluation, ModelEvaluation, Templates
from vfm.interfaces import LabeledDataset, Ref, Seed, TaggedImages, VisionCheckpoint

Positive = Annotated[float, Field(gt=0)]


class ProbeInput(Config):
    """The features that a probe reads. The default is the model's image feature without scaling, as in CLIP and EVA."""

    normalize: bool = Field(False, description="scale features to unit length")
    pool: Literal["own", "cls", "mean", "cls_mean"] = Field(
        "own",
        description="own: the model's image feature, for CLIP models before the projection; cls: the class token;"
        " mean: the mean over patches; cls_mean: the class token of every layer, then the mean of the last (DINOv2)",
    )
    layers: int = Field(1, ge=1, description="number of last blocks whose tokens are joined; DINOv2 also uses 4")
    projected: bool = Field(False, description="for CLIP models with pool own: use features in the joint space")

    @model_validator(mode="after")
    def _own_is_one_vector(self) -> ProbeInput:
        if self.pool == "own" and self.layers > 1:
            raise ValueError(f"layers: {self.layers} needs pool cls, mean or cls_mean")
        if self.pool != "own" and self.projected:
            raise ValueError(f"projected needs pool: own, got {self.pool}")
        return self


class LinearProbe(FeatureEvaluation):
    """Train a linear classifier on frozen features, with penalty or learning rate chosen on held-out images."""

    version: ClassVar[int] = 5  # since features are not scaled to unit length

    kind: Literal["eval.linear_probe"] = "eval.linear_probe"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.linear_probe:evaluate_linear_probe"
    task: ClassVar[str] = "linear_probe"

    features: ProbeInput = Field(ProbeInput(), description="the features that the probe reads")
    solver: Literal["lbfgs", "sgd", "lars"] = Field(
        "lbfgs",
        description="lbfgs: logistic regression with an L2 penalty (as CLIP); sgd, lars: batch norm and a linear layer"
        " with a sweep of learning rates (as EVA), also for several labels per image",
    )
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of each class held out to choose penalty or learning rate"
    )
    penalties: list[Positive] | None = Field(
        None,
        min_length=1,
        description="L2 weights of lbfgs relative to the mean loss, on standardised features; default: powers of ten,"
        " 1e-6 to 100",
    )
    max_iter: int = Field(1000, ge=1, description="largest number of lbfgs steps")
    lrs: list[Positive] | None = Field(
        None, min_length=1, description="learning rates to try; default: 0.003 to 1 for sgd, 0.1 to 30 for lars"
    )
    epochs: int = Field(30, ge=1, description="training epochs of sgd and lars")
    train_batch_size: int = Field(256, ge=2, description="images per step of sgd and lars")
    seed: Seed = Field(0, description="seed of the split into training and validation, and of sgd and lars")


class AttentiveProbe(FeatureEvaluation):
    """Train an attentive probe.

    It is a cross-attention of a query over frozen patch tokens, then a linear layer. Images may have several labels.
    """

    kind: Literal["eval.attentive_probe"] = "eval.attentive_probe"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.trained_probes:evaluate_attentive_probe"
    task: ClassVar[str] = "attentive_probe"

    precision: Literal["fp32"] = Field("fp32", description="precision of the forward pass")

    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of each class held out to choose the learning rate"
    )
    lrs: list[Positive] | None = Field(
        None, min_length=1, description="learning rates of AdamW to try; default: 1e-4 to 1e-2"
    )
    epochs: int = Field(20, ge=1, description="training epochs")
    train_batch_size: int = Field(128, ge=2, description="images per step")
    max_cache_gib: float = Field(
        20.0, gt=0, description="largest temporary file of patch tokens, per model and dataset, in GiB"
    )
    seed: Seed = Field(0, description="seed of the split and of the training")


class Knn(FeatureEvaluation):
    """Classify by weighted nearest neighbours of frozen features, as in DINO. Images may have several labels."""

    kind: Literal["eval.knn"] = "eval.knn"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.knn:evaluate_knn"
    task: ClassVar[str] = "knn"

    k: int = Field(20, ge=1, description="number of neighbours that vote")
    temperature: float = Field(0.07, gt=0, description="a vote weighs exp(cosine / temperature)")


class FewShot(FeatureEvaluation):
    """Fit a softmax classifier to k training images per class, drawn several times, from zero or zero-shot weights."""

    kind: Literal["eval.few_shot"] = "eval.few_shot"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.few_shot:evaluate_few_shot"
    task: ClassVar[str] = "few_shot"

    # Narrower than in the other evaluations, since k images per class are undefined for several labels per image.
    train: Ref[LabeledDataset] = Field(  # type: ignore[assignment]
        description="images to draw from, of the classes of `data`"
    )
    data: Ref[LabeledDataset] = Field(description="images to evaluate on")  # type: ignore[assignment]
    shots: list[int] = Field([1, 2, 4, 8, 16], min_length=1, description="training images per class, one score each")
    draws: int = Field(3, ge=1, description="number of draws of the training images; a score is their mean")
    start: Literal["nothing", "zero_shot"] = Field(
        "nothing", description="zero_shot: start from the text tower's classifier, and pull the weights towards it"
    )
    templates: Templates | None = Field(
        None, min_length=1, description="prompts with a {} for start: zero_shot; default: the dataset's templates"
    )
    penalty: float = Field(
        0.1, gt=0, description="pull towards the start; on average weights move by at most 2 / penalty per class"
    )
    seed: Seed = Field(0, description="seed of the first draw")

    @field_validator("shots")
    @classmethod
    def _counted_from_one(cls, shots: list[int]) -> list[int]:
        if min(shots) < 1:
            raise ValueError(f"shots must be at least 1, got {min(shots)}")
        return sorted(set(shots))


class Classify(ModelEvaluation):
    """Evaluate the head of a classifier, also on a subset of its classes.

    Scores are top-1, top-5 and mean per class recall, or mean average precision for several labels per image.
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
        description="labelled images; the head must have their classes, and only these can be predicted"
    )
    class_names: list[str] | None = Field(
        None,
        description="names of the head's outputs, in order; default: from the checkpoint, else from the dataset if it"
        " has the same number of classes",
    )


class ZeroShot(EncodedEvaluation):
    """Classify images zero-shot.

    The scores are top-1, top-5 and mean per class recall, or mean average precision for several labels. The classifier
    is an ensemble of prompt templates, each filled with the class name, or of sentences for each class.
    """

    kind: Literal["eval.zero_shot"] = "eval.zero_shot"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.classify.zero_shot:evaluate_zero_shot"
    checks: ClassVar[str] = "vfm.eval.classify.checks:check_zero_shot"
    task: ClassVar[str] = "zeroshot_classification"

    data: Ref[LabeledDataset | TaggedImages] = Field(description="images with one class or several labels each")
    templates: Templates | None = Field(
        None, min_length=1, description="prompts with a {} for the class name; default: the dataset's templates"
    )
    prompts: str | None = Field(
        None,
        description="JSON file with sentences for each class, {class: [sentences]}, as in CuPL; replaces templates",
    )
    class_names: list[str] | None = Field(
        None, description="class names by label, for example in another language; default: the dataset's names"
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
        """List the file of sentences, if any."""
        return [self.prompts] if self.prompts else []
