"""The ruler's stages, `eval.*`: configurations alone; what judges the models is imported when a stage runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from vfm.artifacts import ChoiceDataset, LabeledDataset, PairDataset, Report, TaggedImages
from vfm.config import UserError
from vfm.data.templates import check_templates
from vfm.interfaces import Evaluation
from vfm.stage import Context, Preflight, Ref

if TYPE_CHECKING:
    from vfm.eval.encode import Reading
    from vfm.eval.judgement import Judgement, Subject


class ModelEvaluation(Evaluation):
    """What all evaluations share: encode a data set with each model, in fp32, judge all on the same items, report."""

    version: ClassVar[int] = 3  # since checkpoint_sha256 covers the configuration too

    data: Ref[Any] = Field(description="what to judge on")
    micro_batch_size: int = Field(64, ge=1, description="images a forward pass")
    max_bad_fraction: float = Field(
        0.05, ge=0, le=1, description="stop when more samples or items than this share cannot be read"
    )

    resize_mode: Literal["shortest", "longest", "squash"] | None = Field(
        None,
        description="how pictures that are not square come to a model's size: shortest (centre crop), longest (padded),"
        " squash; default: as each model was trained",
    )

    @abstractmethod
    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """Judge loaded models (`vfm.eval.encode.load_encoder`) by name, all on the same items. Leaves its panels."""

    def run(self, ctx: Context) -> Report:
        """Load the models, judge them; write scores, paired tests, predictions and panels."""
        from vfm.eval.encode import load_encoder
        from vfm.eval.judgement import write_report
        from vfm.train.dist import resolve_device

        checkpoints = {short_name(ref): ctx.load(ref) for ref in self.models}
        device = resolve_device(self.runtime)
        encoders = {name: load_encoder(one, device, self.resize_mode) for name, one in checkpoints.items()}
        subject, judgements = self.judge(ctx, encoders)
        return write_report(ctx, subject, judgements, checkpoints)

    def scores(self, ctx: Context, encoder: Any) -> dict[str, float]:
        """The values of all metrics, without intervals."""
        _, judgements = self.judge(ctx, {"model": encoder})
        return {verdict.metric: verdict.value for verdict in judgements["model"].verdicts}

    def preflight(self, ctx: Preflight) -> None:
        """Refuses a model that is named twice: its paired test would compare it with itself."""
        check_named_once(self.models)
        data = ctx.artifact(self.data)
        if data is not None:
            self.check_data(data)

    def check_data(self, data: Any) -> None:
        """Checks what the data set's facts tell, before anything runs where it is there already."""

    def _subject(self, task: str, data_sha256: str, language: str = "en") -> Subject:
        from vfm.eval.judgement import Subject

        return Subject(task, short_name(self.data), data_sha256, language, self.resize_mode)

    def _reading(self) -> Reading:
        from vfm.eval.encode import Reading

        return Reading(self.micro_batch_size, self.max_bad_fraction, max(1, self.runtime.workers))


class ZeroShot(ModelEvaluation):
    """Zero-shot classification: top-1, top-5 and mean per class recall; mean average precision of several labels.

    The classes are written with the data set's prompt templates, or with `templates`, and ensembled.
    """

    kind: Literal["eval.zero_shot"] = "eval.zero_shot"
    data: Ref[LabeledDataset | TaggedImages] = Field(
        description="images with a class or several labels each; their class names are the answers"
    )
    templates: list[str] | None = Field(
        None, min_length=1, description="prompts with a {} for the class name; default: the data set's"
    )
    class_names: list[str] | None = Field(
        None, description="how the classes are written, by label: in another language, say; default: the data set's"
    )
    language: str = Field("en", description="of the class names and templates, for the results")
    answers: Literal["all", "present"] = Field(
        "all", description="present: only classes that have images, as ImageNet-A's and -R's 200 among 1,000 names"
    )

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: list[str] | None) -> list[str] | None:
        return templates and check_templates(templates)

    def check_data(self, data: LabeledDataset | TaggedImages) -> None:
        """Refuses class names that cannot be told apart, or are not as many as the labels."""
        check_class_names(self.class_names or data.class_names, str(self.data))
        if self.class_names and len(self.class_names) != len(data.class_names):
            raise UserError(f"{len(self.class_names)} class_names; {self.data} has {len(data.class_names)} classes")

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.zero_shot`."""
        from vfm.eval.judges.zero_shot import Wording, judge_zero_shot

        data = ctx.load(self.data)
        self.check_data(data)
        wording = Wording(self.templates, self.class_names, self.answers == "present")
        sha256, found = judge_zero_shot(ctx, models, data, wording=wording, reading=self._reading())
        return self._subject("zeroshot_classification", sha256, self.language), found


class Retrieval(ModelEvaluation):
    """Recall at k, images to captions and captions to images; any of an image's captions counts."""

    kind: Literal["eval.retrieval"] = "eval.retrieval"
    data: Ref[PairDataset] = Field(description="images with captions to find one another")
    recall_k: list[int] = Field([1, 5, 10], min_length=1, description="k of recall@k")
    language: str | None = Field(None, description="key of the captions; default: the data set's first language")

    @field_validator("recall_k")
    @classmethod
    def _counted_from_one(cls, recall_k: list[int]) -> list[int]:
        if min(recall_k) < 1:
            raise ValueError(f"{min(recall_k)} is no k; they count from 1")
        return sorted(set(recall_k))

    def check_data(self, data: PairDataset) -> None:
        """Refuses a language that the data set does not have."""
        data.check_languages([self.language], self.data)

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.retrieval`."""
        from vfm.eval.judges.retrieval import judge_retrieval

        data = ctx.load(self.data)
        self.check_data(data)
        language = self.language or data.languages[0]
        sha256, found = judge_retrieval(
            ctx, models, data, language=language, recall_k=self.recall_k, reading=self._reading()
        )
        return self._subject("zeroshot_retrieval", sha256, language), found


class MmvpVlm(ModelEvaluation):
    """MMVP-VLM by its official rule: each statement picks one of two images, a pair counts if both are right."""

    version: ClassVar[int] = 4  # since pairs are also judged by whether their differences are aligned
    kind: Literal["eval.mmvp_vlm"] = "eval.mmvp_vlm"
    data: Ref[ChoiceDataset] = Field(description="pairs of two images and two statements")
    prompt: str = Field("a photo of ", description="before each statement; the authors' is the default")
    diva_scoring: bool = Field(
        False,
        description="judge all models by DIVA's own rule too, the class token plus the mean of the patches: its authors"
        " compared their models by that rule with others by the official one",
    )

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.choices`."""
        from vfm.eval.judges.choices import judge_mmvp_vlm

        data = ctx.load(self.data)
        sha256, found = judge_mmvp_vlm(
            ctx, models, data, prompt=self.prompt, diva_scoring=self.diva_scoring, reading=self._reading()
        )
        return self._subject("mmvp_vlm", sha256), found


class Choices(ModelEvaluation):
    """Caption choice of any shape by Winoground's rule: for one image SugarCrepe's; ties count against the model."""

    kind: Literal["eval.choices"] = "eval.choices"
    data: Ref[ChoiceDataset] = Field(description="items of images and statements, of any shape")
    prompt: str = Field("", description="before each statement")

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.choices`."""
        from vfm.eval.judges.choices import judge_choices

        data = ctx.load(self.data)
        sha256, found = judge_choices(ctx, models, data, prompt=self.prompt, reading=self._reading())
        return self._subject("image_caption_selection", sha256), found


def short_name(ref: str) -> str:
    """What an input is called in results: a stage's name, or the last part of a path."""
    return ref.rstrip("/").rpartition("/")[2]


def check_named_once(models: Sequence[str]) -> None:
    """Refuses models that results could not tell apart.

    Raises:
        UserError: two have one name.
    """
    names = [short_name(ref) for ref in models]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"models: {twice[0]!r} is named more than once")


def check_class_names(names: list[str], where: str) -> None:
    """Refuses class names that cannot be told apart.

    Raises:
        UserError: fewer than two classes, an empty name, or one name for two classes.
    """
    if len(names) < 2:
        raise UserError(f"{where} has {len(names)} classes; two or more are needed")
    for label, name in enumerate(names):
        if not name.strip():
            raise UserError(f"{where}: class {label} has an empty name")
        if names.index(name) != label:
            raise UserError(f"{where}: classes {names.index(name)} and {label} are both named {name!r}")
