"""Configurations of the multimodal language models that test a vision tower. They import no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from vfm.plugin import (
    AllWeights,
    AnnotatedImages,
    Artifact,
    ClipCheckpoint,
    CosineSchedule,
    Evaluation,
    ModelEvaluation,
    Part,
    QuestionDataset,
    Ref,
    Report,
    Schedule,
    Seed,
    Stage,
    Trained,
    Training,
    expand_paths,
)

Tokens = Literal["patches", "all", "class"]


def _prompt(prompt: str) -> str:
    if prompt.count("<image>") != 1 or prompt.count("{question}") != 1:
        raise ValueError(f"expected one <image> and one {{question}} in a prompt, got {prompt!r}")
    return prompt


def _later_prompt(prompt: str) -> str:
    if "<image>" in prompt or prompt.count("{question}") != 1:
        raise ValueError(f"expected one {{question}} and no <image> in the prompt of later turns, got {prompt!r}")
    return prompt


class MllmCheckpoint(Artifact):
    """A LLaVA-like model in transformers' layout (`LlavaForConditionalGeneration`), with its tokenizer."""

    tower: str = Field(description="name of the CLIP model whose vision tower it has")
    layer: int = Field(description="hidden state of the tower that is read, as in transformers (-1: the last block's)")
    tokens: Tokens = Field(description="tokens of that layer that are read")
    prompt: str = Field(description="text around the first question")
    later_prompt: str = Field(
        "USER: {question} ASSISTANT:", description="text around later questions of a conversation"
    )
    preprocess: dict[str, Any] = Field(description="preprocessing of its images, as in vfm.models.Preprocess")


class LanguageModel(Part):
    """The language model. `build(texts, seed)` returns a causal model of transformers and its tokenizer."""


class SmallLlama(LanguageModel):
    """A small Llama with random weights. Its tokens are the words of the training questions."""

    type: Literal["llama"] = Field("llama", description="a small Llama with random weights")
    work: ClassVar[str] = "vfm_diva.mllm.language_models:small_llama"
    layers: int = Field(2, ge=1, description="blocks")
    width: int = Field(128, ge=8, description="channels")
    heads: int = Field(4, ge=1, description="attention heads")
    max_length: int = Field(1024, ge=16, description="largest number of positions, including the image's")

    @model_validator(mode="after")
    def _divisible(self) -> SmallLlama:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice the heads, got {self.width} and {self.heads}")
        return self


class PretrainedLanguageModel(LanguageModel):
    """A causal language model in transformers' layout, with its tokenizer."""

    type: Literal["pretrained"] = Field("pretrained", description="a causal language model in transformers' layout")
    work: ClassVar[str] = "vfm_diva.mllm.language_models:pretrained"
    source: str = Field(description="folder, or name on the hub, optionally with @revision")


class MllmTrain(Training):
    """Train a LLaVA-like model on questions about images. Its vision tower is frozen.

    LLaVA has two stages: `trained: {type: frozen}` trains only the projector on captions, then `init` starts from that
    model. The loss is on the answers alone, as in LLaVA-1.5 (arXiv:2310.03744).
    """

    kind: Literal["mllm.train"] = "mllm.train"
    vision: Ref[ClipCheckpoint] | None = Field(None, description="CLIP model whose vision tower is read")
    init: Ref[MllmCheckpoint] | None = Field(
        None, description="model of an earlier stage from which training starts, instead of vision"
    )
    data: Ref[QuestionDataset] = Field(description="questions to train on")
    trained: Trained = Field(AllWeights(), description="weights of the language model that are trained")
    language_model: LanguageModel = Field(SmallLlama(), description="language model, not allowed with init")
    projector: str | None = Field(
        None, description="mm_projector.bin of LLaVA's pre-training, from which the projector starts; not with init"
    )
    layer: int = Field(-2, description="hidden state of the tower that is read (-2: the last block but one, as LLaVA)")
    tokens: Tokens = Field(
        "patches", description="tokens that are read: patches as LLaVA, all with the class token, or class alone"
    )
    prompt: Annotated[str, AfterValidator(_prompt)] = Field(
        "USER: <image>\n{question} ASSISTANT:", description="text before the first answer"
    )
    later_prompt: Annotated[str, AfterValidator(_later_prompt)] = Field(
        "USER: {question} ASSISTANT:", description="text before later answers of a conversation"
    )
    pad: bool = Field(True, description="pad images to squares with the mean colour, as LLaVA-1.5, instead of a crop")
    schedule: Schedule = Field(CosineSchedule(), description="learning rate over the steps")

    moved: ClassVar[Mapping[str, str]] = {**Training.moved, "trains": "trained"}
    makes: ClassVar[type[Artifact]] = MllmCheckpoint
    work: ClassVar[str] = "vfm_diva.mllm.train:train_mllm"
    checks: ClassVar[str] = "vfm_diva.mllm.checks:check_train"
    costs: ClassVar[str] = "vfm_diva.mllm.estimate:mllm_train_cost"

    @model_validator(mode="after")
    def _one_start(self) -> MllmTrain:
        if (self.vision is None) == (self.init is None):
            raise ValueError("give exactly one of vision and init")
        names = ("language_model", "projector", "layer", "tokens", "prompt", "later_prompt", "pad")
        changed = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if self.init and changed:
            raise ValueError(f"{', '.join(changed)}: set by the model of init; leave it out")
        return self

    def sources(self) -> Iterable[str]:
        """List the outside files that the result depends on."""
        return [*super().sources(), *([self.projector] if self.projector else [])]


class MllmQuestions(Stage):
    """Import questions about your own images.

    They are in MMVP's folder, in JSON lines, or in LLaVA's json. A line is `{"image": path, "question": ..., "options":
    [...], "answer": index or text}`. It can also have `key`, `family`, `pair` and `history`, the earlier questions and
    answers in alternation. Without `options` the answer is the only one, as for training on captions. A conversation of
    LLaVA's json is its last question with a history. Training learns all answers.
    """

    kind: Literal["mllm.questions"] = "mllm.questions"
    path: str = Field(
        description="MMVP's folder (Questions.csv and the images), JSON lines, or LLaVA's json of conversations. Set it"
        " with --set 'NAME.path=...'"
    )
    image_root: str | None = Field(
        None, description="folder that the paths of images are relative to; default: the folder of the file"
    )
    labels: Literal["corrected", "original"] = Field(
        "corrected", description="MMVP's answers: with two pairs corrected (99 and 100, 279 and 280), or as published"
    )
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of questions that are left out")

    makes: ClassVar[type[Artifact]] = QuestionDataset
    work: ClassVar[str] = "vfm_diva.mllm.question_files:import_questions"
    checks: ClassVar[str] = "vfm_diva.mllm.checks:check_questions"

    def sources(self) -> Iterable[str]:
        """List the files behind `path`, and the folder of the images."""
        return [*expand_paths(self.path), *([self.image_root] if self.image_root else [])]


class MllmPope(Stage):
    """Make POPE's yes-or-no questions about the objects of annotated images (arXiv:2305.10355).

    Half of the questions name an object of the image. The others name an object that is not there: any (`random`), the
    most frequent ones (`popular`), or the most frequent companion of the object named before (`adversarial`).
    """

    kind: Literal["mllm.pope"] = "mllm.pope"
    data: Ref[AnnotatedImages] = Field(description="images with all objects of their classes annotated")
    split: Literal["random", "popular", "adversarial"] = Field(
        "popular", description="rule for choosing absent objects"
    )
    num_images: int = Field(500, ge=1, description="number of images, drawn from images with enough objects")
    per_image: int = Field(3, ge=1, description="number of questions of either answer about an image")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of images that cannot be read")
    seed: Seed = Field(0, description="seed of the images and absent objects")

    makes: ClassVar[type[Artifact]] = QuestionDataset
    work: ClassVar[str] = "vfm_diva.mllm.pope:make_pope"
    checks: ClassVar[str] = "vfm_diva.mllm.checks:check_pope"


class EvalMllm(ModelEvaluation):
    """Evaluate multimodal language models by the likelihood that they give each option of a question.

    Pairs count if both questions are right (MMVP). Yes-or-no questions also have precision, recall and F1 (POPE).
    """

    kind: Literal["eval.mllm"] = "eval.mllm"
    in_processes: ClassVar[bool] = True
    version: ClassVar[int] = 1
    work: ClassVar[str] = "vfm_diva.mllm.evaluation:evaluate_checkpoints"
    checks: ClassVar[str] = "vfm_diva.mllm.checks:check_evaluation"
    evaluator: ClassVar[str] = "vfm_diva.mllm.evaluation:evaluate_mllm"

    models: list[Ref[MllmCheckpoint]] = Field(  # type: ignore[assignment]
        [], description="models to evaluate; omitted in `evaluation.tasks`"
    )
    data: Ref[QuestionDataset] = Field(description="questions to evaluate on")
    blind: bool = Field(False, description="control: show each model a grey image instead of the real one")


LmmsTask = Literal[
    "mmvp", "pope_random", "pope_pop", "pope_adv", "mme", "mmbench_en_dev_static", "mmbench_en_dev", "naturalbench",
    "cv_bench", "cv_bench_2d", "cv_bench_3d",
]  # fmt: skip
LMMS_VERSION = "0.7.3"
LMMS_DATE = "2026-08-29"  # the day after its release, since packages of later days fit it less and less


class EvalLmms(Evaluation):
    """Evaluate LLaVA folders by lmms-eval in a separate environment, or read its logs. Tests pair the items.

    Its per-sample logs are scored by vfm's rules, so intervals and paired tests are as in every evaluation.
    """

    kind: Literal["eval.lmms"] = "eval.lmms"
    work: ClassVar[str] = "vfm_diva.mllm.lmms:evaluate_lmms"
    checks: ClassVar[str] = "vfm_diva.mllm.checks:check_lmms"

    models: list[Ref[Artifact]] = Field(  # type: ignore[assignment]
        [], description="models in transformers' LLaVA layout (models.export with format: llava, mllm.train) to run"
    )
    folders: dict[str, str] = Field({}, description="NAME: folder of a LLaVA model in transformers' layout to run")
    logs: dict[str, str] = Field(
        {}, description="NAME: folder of logs that lmms-eval wrote elsewhere, with --log_samples"
    )
    tasks: list[LmmsTask] = Field(["mmvp", "pope_adv"], min_length=1, description="names of lmms-eval's tasks")
    command: list[str] = Field(
        [
            *("uvx", "--exclude-newer", LMMS_DATE, "--from", f"lmms_eval[video-legacy]=={LMMS_VERSION}"),
            *("--with", "torch==2.10.*", "lmms-eval"),
        ],
        min_length=1,
        description="command that starts lmms-eval",
    )
    arguments: dict[str, str] = Field(
        {},
        description="more arguments of its model `llava_hf`. The default device is the runtime's. The default dtype is"
        " float32 on the CPU and the type of the weights on other devices",
    )
    limit: int | None = Field(None, ge=1, description="evaluate only so many items of each task")

    makes: ClassVar[type[Artifact]] = Report
    data: ClassVar[str] = "lmms_eval"  # names of the dataset and the task in result files
    task_name: ClassVar[str] = "lmms"
    resize_mode: ClassVar[str | None] = None

    @property
    def has_something_to_evaluate(self) -> bool:
        """Whether there are models, folders or logs."""
        return bool(self.models or self.folders or self.logs)

    @property
    def result_names(self) -> list[str]:
        """Names in the results of models, folders and folders of logs."""
        return [*super().result_names, *self.folders, *self.logs]

    def sources(self) -> Iterable[str]:
        """List the folders of models and of logs."""
        return [*self.folders.values(), *self.logs.values()]

    @model_validator(mode="after")
    def _something(self) -> EvalLmms:
        if not self.has_something_to_evaluate:
            raise ValueError("expected models, folders or logs, got none of them")
        return self
