"""Fine-tune or distil a model from Python, by the recipes that `vfm finetune` and `vfm distill` write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfm.api.paths import AnyPath, as_place
from vfm.api.progress import listener
from vfm.api.runs import Known, Run, check_not_a_worker, run_loaded, text_recipe
from vfm.flow.requests.distillation import DistillationRequest, distillation_recipe, student_input
from vfm.flow.requests.finetuning import Finetuning, finetuning_recipe
from vfm.flow.requests.inputs import model_input
from vfm.interfaces import Artifact, load_plugins, stage_types

Place = AnyPath | Artifact


def finetune(
    model: Place,
    data: Place,
    *,
    data_option: Mapping[str, Any] | None = None,
    val: Place = "",
    general: Place = "",
    steps: int = 300,
    batch_size: int = 256,
    lr: float | None = None,
    lock: bool = False,
    lora: bool = False,
    rank: int | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002  (as the option of `vfm finetune`)
    store: AnyPath = "store",
    name: str = "finetune",
    progress: bool = True,
) -> Run:
    """Fine-tune a CLIP model on your own pairs, as `vfm finetune`. An interrupted run resumes.

    Args:
        model: Artifact or folder of a checkpoint, open_clip name and tag (`ViT-B-32,openai`), or `hf-hub:org/model`.
        data: Your pairs: tars, a folder, a table, or a dataset's artifact.
        data_option: Fields of the stage that imports the data: `{"image_root": "/", "texts": {"en": "title"}}`.
        val: Pairs to evaluate the models on, before and after.
        general: Labelled images of another kind, to measure forgetting.
        steps: Number of training steps.
        batch_size: Pairs per step, over all processes.
        lr: Peak learning rate. None: 1e-5, with `lora` 1e-4.
        lock: Train only the text tower (LiT).
        lora: Train LoRA weights of both towers, or with `lock` of the text tower.
        rank: Rank of LoRA. None: 16.
        set: Values by `NAME.FIELD` that override the recipe.
        store: Folder of artifacts and runs.
        name: Name of the run in the store.
        progress: Show progress bars and messages.

    Returns:
        The run, with the models `tuned` and `wise`, the average of the initial and the tuned weights.

    Raises:
        UserError: If the model is not a CLIP model, or a value does not fit.
    """
    known = stage_types(load_plugins())
    paths = as_place(data), as_place(val), as_place(general)
    options = data_option or {}
    request = Finetuning(model_input(as_place(model)), *paths, steps, batch_size, lr, lock, lora, rank, options)
    text = finetuning_recipe(request, known)
    return _run_text("finetune", text, known, set, store, name, progress=progress)


def distill(
    images: Place,
    *,
    teacher: Place,
    student: Place,
    steps: int = 2000,
    batch_size: int = 64,
    lr: float = 1e-3,
    image_size: int | None = None,
    probe: Place = "",
    train: Place = "",
    set: Mapping[str, Any] | None = None,  # noqa: A002  (as the option of `vfm distill`)
    store: AnyPath = "store",
    name: str = "distill",
    progress: bool = True,
) -> Run:
    """Teach an encoder another model's features on your own images, as `vfm distill`. An interrupted run resumes.

    Args:
        images: Your images: a folder, a list, tars or a table; no labels needed.
        teacher: Artifact or folder of a checkpoint, open_clip name and tag, timm name, or `hf-hub:org/model`.
        student: timm name of any network, to start from random weights, or a name with a tag, or a checkpoint, to start
            from weights.
        steps: Number of training steps.
        batch_size: Images per step, over all processes.
        lr: Peak learning rate.
        image_size: Pixels of the student's images. Default: its own.
        probe: Labelled images to evaluate teacher and student on, before and after.
        train: Labelled training images of the probe.
        set: Values by `NAME.FIELD` that override the recipe.
        store: Folder of artifacts and runs.
        name: Name of the run in the store.
        progress: Show progress bars and messages.

    Raises:
        UserError: If there is no such model, or a value does not fit.
    """
    known = stage_types(load_plugins())
    inputs = as_place(images), model_input(as_place(teacher)), student_input(as_place(student))
    request = DistillationRequest(*inputs, steps, batch_size, lr, as_place(probe), as_place(train), image_size)
    text = distillation_recipe(request, known)
    return _run_text("distill", text, known, set, store, name, progress=progress)


def _run_text(
    call: str,
    text: str,
    known: Known,
    settings: Mapping[str, Any] | None,
    store: AnyPath,
    name: str,
    *,
    progress: bool,
) -> Run:
    check_not_a_worker(f"vfm.{call}")
    recipe = text_recipe(text, known, settings, name, f"the recipe of vfm.{call}")
    return run_loaded(load_plugins(), recipe, Path(store), listener(progress))
