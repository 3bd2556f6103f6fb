"""The evaluations of images alone: probes and nearest neighbours on frozen features, and a classifier's own head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from vfm.artifacts import Artifact, ClipCheckpoint, LabeledDataset, TaggedImages, VisionCheckpoint
from vfm.config import UserError
from vfm.eval.stages import ModelEvaluation, check_class_names
from vfm.stage import Context, Preflight, Ref, Seed

if TYPE_CHECKING:
    from vfm.eval.judgement import Judgement, Subject
    from vfm.eval.judges.trained_probes import ProbeSettings
    from vfm.eval.sweep import Solver

Positive = Annotated[float, Field(gt=0)]


class FeatureEvaluation(ModelEvaluation):
    """An evaluation of image features alone, with training images of the same classes: any vision encoder fits."""

    version: ClassVar[int] = 4  # since LARS adapts its rates, and average precision has an unbiased chance and interval

    # Wider than Evaluation's: what has no text tower can be judged here too.
    models: list[Ref[ClipCheckpoint | VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="whom to judge; left out in a training's `evals`"
    )
    train: Ref[LabeledDataset | TaggedImages] = Field(
        description="images to learn from, with a class or several labels each: those of `data`"
    )
    data: Ref[LabeledDataset | TaggedImages] = Field(description="images to judge on")

    def preflight(self, ctx: Preflight) -> None:
        """Checks that both sets are of one kind, and have the same classes where they are there already."""
        super().preflight(ctx)
        train, data = ctx.artifact(self.train), ctx.artifact(self.data)
        if train and data:
            self.check_classes(train, data)
        elif (one := _kind(ctx, self.train)) and (other := _kind(ctx, self.data)):
            self.check_kinds(one, other)

    def check_kinds(self, train: type[Artifact], data: type[Artifact]) -> None:
        """Refuses a class for each image here and several labels there.

        Raises:
            UserError: as it says.
        """
        if train is not data:
            kinds = f"{self.train} is a {train.__name__}, {self.data} a {data.__name__}"
            raise UserError(f"{kinds}; both must be of one kind")

    def check_classes(self, train: LabeledDataset | TaggedImages, data: LabeledDataset | TaggedImages) -> None:
        """Refuses two sets of different classes.

        Raises:
            UserError: the class names differ, cannot be told apart, or are of one image one here and several there.
        """
        self.check_kinds(type(train), type(data))
        check_class_names(data.class_names, str(self.data))
        if train.class_names != data.class_names:
            one, other = _first_difference(train.class_names, data.class_names)
            raise UserError(f"{self.train} and {self.data} differ in their classes: {one!r} here is {other!r} there")

    def _by_gradient(
        self, ctx: Context, models: Mapping[str, Any], settings: ProbeSettings, task: str
    ) -> tuple[Subject, dict[str, Judgement]]:
        from vfm.eval.judges.trained_probes import judge_trained_probe
        from vfm.train.dist import resolve_device

        train, data, device = ctx.load(self.train), ctx.load(self.data), resolve_device(self.runtime)
        sha256, found = judge_trained_probe(ctx, models, train, data, settings, device=device, reading=self._reading())
        return self._subject(task, sha256), found


class LinearProbe(FeatureEvaluation):
    """A linear classifier on frozen features; its penalty or its rate is chosen on a part of the training images."""

    kind: Literal["eval.linear_probe"] = "eval.linear_probe"
    solver: Literal["lbfgs", "sgd", "lars"] = Field(
        "lbfgs",
        description="lbfgs: logistic regression with an L2 penalty (CLIP's); sgd, lars: batch norm and a linear layer"
        " over a sweep of learning rates (EVA's), also for several labels an image",
    )
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="of each class, held out to choose by")
    penalties: list[Positive] | None = Field(
        None,
        min_length=1,
        description="L2 weights beside the mean loss, on standardised features; default: powers of ten, 1e-6 to 100",
    )
    max_iter: int = Field(1000, ge=1, description="steps of L-BFGS")
    lrs: list[Positive] | None = Field(
        None, min_length=1, description="learning rates of sgd or lars; default: 0.003 to 1, or 0.1 to 30"
    )
    epochs: int = Field(30, ge=1, description="of sgd and lars")
    train_batch_size: int = Field(256, ge=2, description="images a step of sgd and lars")
    seed: Seed = Field(0, description="of the split into training and validation, and of sgd's draws")

    def check_kinds(self, train: type[Artifact], data: type[Artifact]) -> None:
        """Also refuses several labels an image where the solver takes one."""
        super().check_kinds(train, data)
        if self.solver == "lbfgs" and issubclass(train, TaggedImages):
            raise UserError(f"{self.train} has several labels an image, solver lbfgs takes one; set solver: sgd")

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges`."""
        from vfm.eval.judges.probes import judge_linear_probe

        train, data = ctx.load(self.train), ctx.load(self.data)
        self.check_classes(train, data)
        if self.solver != "lbfgs":
            settings = _settings("linear", self.solver, self)
            return self._by_gradient(ctx, models, settings, "linear_probe")
        assert isinstance(train, LabeledDataset)
        assert isinstance(data, LabeledDataset)
        sha256, found = judge_linear_probe(
            ctx,
            models,
            train,
            data,
            validation_fraction=self.validation_fraction,
            penalties=self.penalties,
            max_iter=self.max_iter,
            seed=self.seed,
            reading=self._reading(),
        )
        return self._subject("linear_probe", sha256), found


class AttentiveProbe(FeatureEvaluation):
    """One query's cross-attention over frozen patch tokens and a linear layer; several labels an image fit too."""

    kind: Literal["eval.attentive_probe"] = "eval.attentive_probe"
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="of each class, held out to choose the rate")
    lrs: list[Positive] | None = Field(
        None, min_length=1, description="learning rates to try, of AdamW; default: 1e-4 to 1e-2"
    )
    epochs: int = Field(20, ge=1, description="of training")
    train_batch_size: int = Field(128, ge=2, description="images a step")
    max_cache_gib: float = Field(
        20.0, gt=0, description="disk that a model's patch tokens of one data set may take while it is judged"
    )
    seed: Seed = Field(0, description="of the split and of all draws")

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.trained_probes`."""
        self.check_classes(ctx.load(self.train), ctx.load(self.data))
        settings = _settings("attentive", "adamw", self, max_cache_gib=self.max_cache_gib)
        return self._by_gradient(ctx, models, settings, "attentive_probe")


class Knn(FeatureEvaluation):
    """Weighted nearest neighbours on frozen features, as DINO measures them; several labels an image fit too."""

    kind: Literal["eval.knn"] = "eval.knn"
    k: int = Field(20, ge=1, description="neighbours that vote")
    temperature: float = Field(0.07, gt=0, description="a vote weighs exp(cosine / temperature)")

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.probes`."""
        from vfm.eval.judges.probes import judge_knn

        train, data = ctx.load(self.train), ctx.load(self.data)
        self.check_classes(train, data)
        sha256, found = judge_knn(
            ctx, models, train, data, k=self.k, temperature=self.temperature, reading=self._reading()
        )
        return self._subject("knn", sha256), found


class Classify(ModelEvaluation):
    """A classifier's own head: top-1, top-5 and mean per class recall, also on a set of some of its classes."""

    kind: Literal["eval.classify"] = "eval.classify"
    models: list[Ref[VisionCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="classifiers to judge; left out in a training's `evals`"
    )
    data: Ref[LabeledDataset] = Field(
        description="labelled images; their classes are among the head's, and are the answers that it may give"
    )
    class_names: list[str] | None = Field(
        None,
        description="of the head's outputs, in their order; default: the checkpoint's, or where it tells none the"
        " data set's, if they are as many",
    )

    def check_data(self, data: LabeledDataset) -> None:
        """Refuses class names that cannot be told apart."""
        check_class_names(data.class_names, str(self.data))

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.classify`."""
        from vfm.eval.judges.classify import judge_classify

        data = ctx.load(self.data)
        self.check_data(data)
        sha256, found = judge_classify(ctx, models, data, class_names=self.class_names, reading=self._reading())
        return self._subject("classification", sha256), found


def _kind(ctx: Preflight, ref: Ref[Any]) -> type[Artifact] | None:
    """What an input is, or will be once its stage has run."""
    found, maker = ctx.artifact(ref), ctx.stage(ref)
    return type(found) if found else maker.makes if maker else None


def _settings(
    probe: Literal["linear", "attentive"], solver: Solver, stage: LinearProbe | AttentiveProbe, **more: float
) -> ProbeSettings:
    from vfm.eval.judges.trained_probes import ProbeSettings
    from vfm.eval.sweep import LRS, Schedule

    lrs = tuple(stage.lrs or LRS[solver])
    schedule = Schedule(solver, lrs, stage.epochs, stage.train_batch_size, stage.seed)
    return ProbeSettings(probe, schedule, stage.validation_fraction, **more)


def _first_difference(one: list[str], other: list[str]) -> tuple[str, str]:
    for a, b in zip([*one, "(none)"], [*other, "(none)"], strict=False):
        if a != b:
            return a, b
    return one[-1], "(none)"
