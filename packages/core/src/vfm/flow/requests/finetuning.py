"""Write the recipe of `vfm finetune`, with a CLIP model that is trained, interpolated with itself, and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vfm.base import UserError, how_to_install, load_function
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.requests.data_options import with_data_options
from vfm.flow.requests.inputs import Fields, Input, named_apart, saved_artifact
from vfm.interfaces import ClipCheckpoint, Lora, Stage

METHOD = "clip.train"
TUNED, WISE = "tuned", "wise"  # names of the models that the recipe makes
WARMUP = 0.1  # fraction of the steps
MICRO_BATCH = 64  # bounds the memory of activations; the gradient still covers the whole batch
WEIGHT_DECAY = 0.1
LR, LOW_RANK_LR = 1e-5, 1e-4  # for full weights and for LoRA, which needs ten times more (arXiv:2405.09673, section 6)

RANK: int = Lora.model_fields["rank"].default


@dataclass(frozen=True)
class Finetuning:
    """Arguments of `vfm finetune`.

    Attributes:
        model: The CLIP model to start from.
        data: Pairs to train on: a path in any format of `data.pairs`, or a saved dataset.
        val: Pairs to evaluate on. Empty: no retrieval.
        general: Labelled images of another kind, to measure forgetting. Empty: not measured.
        steps: Number of training steps.
        batch: Pairs per step.
        lr: Peak learning rate. None: 1e-5, and 1e-4 for LoRA.
        lock: Train only the text tower.
        lora: Train LoRA weights instead of the model's weights.
        rank: Rank of LoRA. None: its default.
        data_options: Further fields of the stages that import the pairs.
    """

    model: Input
    data: str
    val: str = ""
    general: str = ""
    steps: int = 300
    batch: int = 256
    lr: float | None = None
    lock: bool = False
    lora: bool = False
    rank: int | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Classification:
    """Arguments of `vfm classify`.

    Attributes:
        train: Labelled training images.
        val: Labelled images to evaluate on. Empty: `val` or `test` next to the training images.
        model: The model whose features are classified, or which is fine-tuned.
        method: Probe, knn (nearest neighbours), or finetune (all weights).
        epochs: Passes over the training images of fine-tuning.
        batch: Images per step of fine-tuning.
        lr: Peak learning rate of fine-tuning.
        data_options: Further fields of the stages that import the images.
    """

    train: str
    val: str
    model: Input
    method: str = "probe"
    epochs: float = 10
    batch: int = 128
    lr: float = 1e-4
    data_options: Mapping[str, Any] = field(default_factory=dict)


def finetuning_recipe(request: Finetuning, known: Mapping[str, type[Stage]]) -> str:
    """Write the recipe as YAML, from the shipped `clip_finetune` with one training stage and all possible evaluations.

    Raises:
        UserError: If the package with the method is not installed, the model is not a CLIP model, or there is a rank
            without LoRA.
    """
    if request.rank and not request.lora:
        raise UserError(f"rank {request.rank} is the rank of lora: give both")
    if METHOD not in known:
        raise UserError(f"vfm finetune needs the stage {METHOD}: {how_to_install('vfm-clip')}")
    if not issubclass(request.model.makes, ClipCheckpoint):
        raise UserError(f"{request.model.name}: expected a CLIP model, got an encoder without texts")
    model = named_apart(request.model, (TUNED, WISE), "start")  # an earlier result may have one of these names
    stages: list[Fields] = [model.stage] if model.stage else []
    fields_for = load_function("vfm.flow.requests.datasets:fields_for")  # imports `vfm.data`
    kinds = {"pool": "data.pairs", "val": "data.pairs", "general": "data.labeled"}
    paths = {"pool": request.data, "val": request.val, "general": request.general}
    refs = {}
    for name, path in paths.items():
        if path and saved_artifact(path):
            refs[name] = path
        elif path:
            refs[name] = name
            options = request.data_options if kinds[name] == "data.pairs" else {}
            fields = with_data_options(fields_for(kinds[name], path), options, known)
            stages.append({"kind": fields["kind"], "name": name, **fields})
    models = [model.ref, TUNED, WISE]
    evaluations: list[Fields] = []
    if "val" in refs:
        evaluations.append({"kind": "eval.retrieval", "name": "own", "models": models, "data": refs["val"]})
    if "general" in refs:
        evaluations.append({"kind": "eval.zero_shot", "name": "kept", "models": models, "data": refs["general"]})
    start = model.ref
    changes: Fields = {"type": "lora", "rank": request.rank or RANK} if request.lora else {}
    vision: Fields = {"type": "frozen"} if request.lock else changes
    training: Fields = {"kind": METHOD, "name": TUNED, "init": start, "data": refs["pool"]}
    if vision:
        training["vision"] = {"trained": vision}
    if changes:
        training["text"] = {"trained": changes}
    default_lr = LOW_RANK_LR if request.lora else LR
    training |= {
        "global_batch_size": request.batch,
        "micro_batch_size": min(MICRO_BATCH, request.batch),
        "steps": request.steps,
        "schedule": {"warmup_steps": max(1, round(WARMUP * request.steps))},
        "lr": default_lr if request.lr is None else request.lr,
        "optimizer": {"weight_decay": WEIGHT_DECAY},
    }
    stages.append(training)
    line: Fields = {"kind": "models.interpolate", "name": WISE, "start": start, "end": TUNED, "alpha": 0.5}
    if evaluations:
        line["evaluation"] = {"tasks": [{"kind": task["kind"], "data": task["data"]} for task in evaluations]}
    stages.append(line)
    stages += evaluations
    about = f"{request.model.name} fine-tuned on {request.data}, and interpolated with its first weights (WiSE-FT)."
    record = {"description": about, "stages": stages}
    return dump(record)
