"""The recipe of `vfm finetune`: a CLIP model trained on the user's pairs, interpolated with itself, and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vfm.base import UserError, how_to_install
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.requests.inputs import Fields, Input, named_apart, saved_artifact
from vfm.interfaces import ClipCheckpoint, Stage

METHOD = "clip.train"
TUNED, WISE = "tuned", "wise"  # names of the models that the recipe makes
WARMUP = 0.1  # of the steps
MICRO_BATCH = 64  # bounds the memory of activations; the gradient is that of the whole batch
WEIGHT_DECAY = 0.1
LR, LOW_RANK_LR = 1e-5, 1e-4  # of weights; of low-rank changes: ten times that (arXiv:2405.09673, section 6)


@dataclass(frozen=True)
class Finetuning:
    """What a user gives.

    Attributes:
        model: the CLIP model to start from.
        data: pairs to train on: a path as `data.pairs` takes it, or a saved dataset.
        val: pairs to evaluate on; empty: no retrieval.
        general: labelled images of another kind, to measure what the model keeps; empty: not measured.
        steps: steps of the training.
        batch: pairs per step.
        lr: peak learning rate; None: 1e-5, and 1e-4 for low-rank changes.
        lock: train the text tower only.
        rank: of low-rank changes (LoRA) that are trained in place of the weights; None: the weights.
    """

    model: Input
    data: str
    val: str = ""
    general: str = ""
    steps: int = 300
    batch: int = 256
    lr: float | None = None
    lock: bool = False
    rank: int | None = None


def finetuning_recipe(given: Finetuning, known: Mapping[str, type[Stage]]) -> str:
    """Return the recipe as YAML: the shipped `clip_finetune` with one training, and the evaluations that are possible.

    Raises:
        UserError: the package with the method is not installed, or the model is no CLIP model.
    """
    if METHOD not in known:
        raise UserError(f"vfm finetune needs the stage {METHOD}: {how_to_install('vfm-clip')}")
    if not issubclass(given.model.makes, ClipCheckpoint):
        raise UserError(f"{given.model.name}: expected a CLIP model, got an encoder without texts")
    model = named_apart(given.model, (TUNED, WISE), "start")  # an earlier result has one of these names
    stages: list[Fields] = [model.stage] if model.stage else []
    kinds = {"pool": "data.pairs", "val": "data.pairs", "general": "data.labeled"}
    paths = {"pool": given.data, "val": given.val, "general": given.general}
    saved = {name for name, path in paths.items() if path and saved_artifact(path)}
    refs = {name: path if name in saved else name for name, path in paths.items() if path}
    stages += [{"kind": kinds[name], "name": name, "path": paths[name]} for name in refs if name not in saved]
    tasks = [("own", "eval.retrieval", refs.get("val")), ("kept", "eval.zero_shot", refs.get("general"))]
    evaluations = [(name, kind, ref) for name, kind, ref in tasks if ref]
    start = model.ref
    changes: Fields = {"type": "lora", "rank": given.rank} if given.rank else {}
    vision: Fields = {"type": "frozen"} if given.lock else changes
    stages.append(
        {
            "kind": METHOD,
            "name": TUNED,
            "init": start,
            "data": refs["pool"],
            **({"vision": {"trained": vision}} if vision else {}),
            **({"text": {"trained": changes}} if changes else {}),
            "global_batch_size": given.batch,
            "micro_batch_size": min(MICRO_BATCH, given.batch),
            "steps": given.steps,
            "schedule": {"warmup_steps": max(1, round(WARMUP * given.steps))},
            "lr": (LOW_RANK_LR if given.rank else LR) if given.lr is None else given.lr,
            "optimizer": {"weight_decay": WEIGHT_DECAY},
        }
    )
    line: Fields = {"kind": "models.interpolate", "name": WISE, "start": start, "end": TUNED, "alpha": 0.5}
    if evaluations:
        line["evaluation"] = {"tasks": [{"kind": kind, "data": ref} for _, kind, ref in evaluations]}
    stages.append(line)
    models = [start, TUNED, WISE]
    stages += [{"kind": kind, "name": name, "models": models, "data": ref} for name, kind, ref in evaluations]
    about = f"{given.model.name} fine-tuned on {given.data}, and interpolated with its first weights (WiSE-FT)."
    record = {"description": about, "stages": stages}
    return dump(record)
