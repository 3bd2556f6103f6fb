"""Command lines of timm's train.py and validate.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from vfm.base import UserError, load_function
from vfm.flow.conversion.arguments import OptionTable, as_number
from vfm.flow.conversion.draft import Draft, Fields, Tool, not_empty
from vfm.interfaces.timm_optimizer import Algorithm

TRAIN = OptionTable(
    "timm's train.py",
    converted="""
        data-dir dataset train-split val-split train-num-samples model pretrained! pretrained-path
        initial-checkpoint img-size input-size* crop-pct batch-size|b grad-accum-steps grad-checkpointing!
        channels-last! model-kwargs* head-init-scale torchcompile? amp! amp-dtype opt opt-eps opt-betas* momentum
        weight-decay clip-grad clip-mode layer-decay sched lr lr-base lr-base-size lr-base-scale min-lr epochs
        warmup-epochs scale* hflip aa reprob remode mixup cutmix smoothing drop drop-path sync-bn! gp
        model-ema! model-ema-decay seed workers|j log-interval decay-epochs decay-rate|dr decay-milestones*
    """,
    elsewhere={
        "resume no-resume-opt!": "not needed: the same vfm run resumes",
        "output experiment": "the store and the file of the recipe name a run: vfm run RECIPE --store FOLDER",
        "log-wandb! wandb-project wandb-tags* wandb-resume-id": "vfm run RECIPE --track wandb",
        "num-classes": "not needed: the classes of the data",
        "validation-batch-size|vb": "micro_batch_size of eval.classify",
        "val-interval": "evaluation: {tasks: [...], every_steps: N}; here at the end",
        "checkpoint-hist recovery-interval": "checkpoint: {every_minutes: 5, keep_last: 2}",
        "eval-metric": "evaluation: {keep_best: METRIC}",
        "device no-ddp-bb! local_rank synchronize-step!": "runtime: {device: ..., processes: N}",
        "torchcompile-mode": "runtime: {compile: blocks or whole}",
        "worker-seeding": "not needed: every random draw follows from the seed and the sample",
        "pin-mem! no-prefetcher! use-multi-epochs-loader! save-images!": "not needed",
        "dist-bn": "not needed with sync_batch_norm, and models with layer norm have no statistics",
        "val-num-samples": "not needed: samples are counted",
        "input-key": "image_key of data.labeled",
        "target-key": "label_key of data.labeled",
        "class-map": "class_names of data.labeled",
        "start-epoch": "not needed: the same vfm run resumes",
    },
    missing="""
        dataset-download! input-img-mode dataset-trust-remote-code! in-chans mean* std* interpolation fuser fast-norm!
        head-init-bias torchscript! model-dtype device-modules* layer-decay-min-scale layer-decay-no-opt-scale
        opt-kwargs* sched-on-updates! lr-noise* lr-noise-pct lr-noise-std lr-cycle-mul lr-cycle-decay lr-cycle-limit
        lr-k-decay warmup-lr epoch-repeats warmup-prefix! cooldown-epochs patience-epochs no-aug! train-crop-mode
        ratio* vflip color-jitter color-jitter-prob grayscale-prob gaussian-blur-prob aug-repeats aug-splits jsd-loss!
        bce-loss! bce-sum! bce-target-thresh bce-pos-weight recount resplit! cutmix-minmax* mixup-prob
        mixup-switch-prob mixup-mode mixup-off-epoch train-interpolation drop-connect drop-block bn-momentum bn-eps
        split-bn! model-ema-force-cpu! model-ema-warmup! tta train-img-sizes* train-batch-sizes* train-size-probs*
        train-size-schedule train-size-schedule-spread train-size-random-mix
        train-batches-per-epoch|train-steps-per-epoch variable-batch-loss-scale naflex-loader! naflex-train-seq-lens*
        naflex-max-seq-len naflex-patch-sizes* naflex-patch-size-probs* naflex-loss-scale
        naflex-patchify-channels-first! kd-model-name kd-distill-type kd-loss-type distill-loss-weight
        task-loss-weight kd-temperature kd-student-feature-dim kd-teacher-feature-dim kd-token-distill-type config|c
    """,
)
VALIDATE = OptionTable(
    "timm's validate.py",
    converted="data-dir dataset split model|m pretrained! batch-size|b checkpoint num-gpu workers|j use-ema!",
    elsewhere={
        "num-classes": "not needed: the classes of the data",
        "log-freq no-prefetcher! pin-mem! channels-last! retry!": "not needed",
        "device": "runtime: {device: ...}",
        "amp! amp-dtype model-dtype": "not needed: fp32",
        "torchcompile? torchcompile-mode": "runtime: {compile: blocks}",
        "results-file results-format": "not needed: results/ of the run, also as csv by vfm report",
        "num-samples": "num_samples of data.labeled",
        "input-key": "image_key of data.labeled",
        "target-key": "label_key of data.labeled",
        "class-map": "class_names of data.labeled",
        "crop-mode": "resize_mode of eval.classify",
        "valid-labels": "class_names of eval.classify",
        "seed": "not needed: nothing is drawn",
        "metrics-avg": "not needed: mean per class recall is a metric",
    },
    missing="""
        dataset-download! input-img-mode dataset-trust-remote-code! img-size in-chans input-size* use-train-size!
        crop-pct crop-border-pixels mean* std* interpolation gp test-pool! tf-preprocessing! fuser fast-norm! reparam!
        model-kwargs* torchscript! aot-autograd! real-labels naflex-loader! naflex-max-seq-len
    """,
)
IMAGENET = 1_281_167  # training images of ImageNet-1k
SYNONYMS = {"validation": ("validation", "val"), "train": ("train", "training")}
OPTIMIZERS = {"adamw": "adamw", "lamb": "lamb", "sgd": "sgd", "nesterov": "sgd", "momentum": "sgd"}


def convert_train(draft: Draft) -> None:
    """Add an encoder, its fine-tuning as a classifier, and the accuracy to a draft.

    Raises:
        UserError: If vfm has nothing like it.
    """
    arguments = draft.arguments
    model = arguments.text("model", "resnet50")
    if not load_function("vfm.models.vision.architectures:is_vision_transformer")(model):
        raise UserError(
            f"--model {model}: eva.finetune trains vision transformers; vfm.fit trains any model from Python"
        )
    changes = {key: _plain(value) for key, value in arguments.pairs("model-kwargs").items()}
    source: str | Fields = {"architecture": model, **changes} if changes else model
    weights = arguments.text("pretrained-path") or arguments.text("initial-checkpoint")
    # timm starts from random weights by default, vfm from the model's weights.
    if not weights and not arguments.flag("pretrained"):
        weights = "none"
    draft.add("models.vision", "start", source=source, pretrained=weights)
    train = arguments.text("train-split", "train")
    val = arguments.text("val-split", "validation")
    draft.add("data.labeled", "train", **_images(draft, train))
    draft.add("data.labeled", "val", **_images(draft, val))
    fields: Fields = {"encoder": "start", "data": "train"}
    # --input-size is (channels, height, width).
    size = arguments.number("img-size") or next(iter(arguments.texts("input-size")[1:]), None)
    fields |= not_empty({"image_size": int(size) if size else None, "global_pool": _pool(draft)})
    fields |= _length(draft) | _rates(draft) | _regularization(draft) | {"augmentation": _augmentation(draft)}
    fields["precision"] = _precision(draft)
    if arguments.flag("grad-checkpointing"):
        fields["grad_checkpointing"] = True
    fields |= {"seed": arguments.count("seed", 42), "log_every": arguments.count("log-interval", 50)}
    _runtime(draft)
    draft.add("eva.finetune", "classifier", **fields)
    draft.add("eval.classify", "accuracy", models=["classifier"], data="val")


def convert_validate(draft: Draft) -> None:
    """Add a classifier and its accuracy to a draft."""
    arguments = draft.arguments
    source = arguments.text("model", "dpn92")
    checkpoint = arguments.text("checkpoint")
    # A checkpoint of timm may have raw and averaged weights.
    weights = "ema" if arguments.flag("use-ema") else "raw"
    choice = {"weights": weights} if checkpoint else {}
    draft.add("models.vision", "classifier", source=source, pretrained=checkpoint, **choice)
    draft.add("data.labeled", "val", **_images(draft, arguments.text("split", "validation")))
    draft.runtime |= {"workers": arguments.count("workers", 4)} if "workers" in arguments.values else {}
    batch = {"micro_batch_size": arguments.count("batch-size", 256)} if "batch-size" in arguments.values else {}
    draft.add("eval.classify", "accuracy", models=["classifier"], data="val", **batch)


def _images(draft: Draft, split: str) -> Fields:
    """Choose the fields of `data.labeled`.

    The path is the folder of a split below the data's, or the folder itself.
    """
    arguments = draft.arguments
    kind, _, name = arguments.text("dataset").rpartition("/")
    root = (arguments.text("data-dir") or next(iter(arguments.positional), "")).rstrip("/")
    if kind == "torch":
        return {"path": root or ".", "torchvision": name.upper(), "split": split}
    if kind in ("hfds", "hfids", "tfds", "wds"):
        raise UserError(f"--dataset {kind}/{name}: expected files: save it to disk, and give --data-dir FOLDER")
    if not root:
        raise UserError("expected --data-dir FOLDER, got none")
    names = SYNONYMS.get(split, (split,))
    if set(Path(root).parts) & {"train", *SYNONYMS["validation"]}:
        return {"path": root}  # validate.py takes the folder of the images
    present = [name for name in names if (Path(root) / name).is_dir()]
    return {"path": f"{root}/{(present or list(names[-1:]))[0]}"}


def _pool(draft: Draft) -> str:
    pool = draft.arguments.text("gp")
    if not pool:
        draft.notes.append("without --gp, a model pools in its own way there, and averages its patches here")
    elif pool not in ("avg", "token"):
        draft.lose("gp", "global_pool: avg or token")
        return ""
    return pool


def _length(draft: Draft) -> Fields:
    """Choose the batch and the length. timm's batch is for each process."""
    arguments = draft.arguments
    command = draft.command
    batch = arguments.count("batch-size", 128)
    accumulated = arguments.count("grad-accum-steps", 1)
    fields: Fields = {"global_batch_size": batch * command.all_processes * accumulated}
    if fields["global_batch_size"] != batch:
        draft.notes.append(f"--batch-size {batch} is for a process there, and global_batch_size over all")
    if accumulated > 1:
        fields["micro_batch_size"] = batch
    return fields | {"epochs": arguments.number("epochs", 300)}


def _steps(draft: Draft, epochs: float, batch: int) -> int | None:
    """Convert epochs to steps, if the number of images is given or the folder is that of ImageNet."""
    arguments = draft.arguments
    images = round(arguments.number("train-num-samples") or 0)
    if not images and "imagenet" in (arguments.text("data-dir") + " ".join(arguments.positional)).lower():
        images = IMAGENET
        draft.notes.append(f"epochs of the warm-up are converted with the {IMAGENET:,} images of ImageNet-1k")
    return round(epochs * images / batch) if images else None


def _rates(draft: Draft) -> Fields:
    """Choose learning rate, schedule and optimizer."""
    arguments = draft.arguments
    command = draft.command
    batch = arguments.count("batch-size", 128) * command.all_processes * arguments.count("grad-accum-steps", 1)
    optimizer = _optimizer(draft)
    lr = arguments.number("lr")
    if lr is None:
        share = batch / arguments.count("lr-base-size", 256)
        default = "sqrt" if any(part in arguments.text("opt") for part in ("ada", "lamb")) else "linear"
        scale = arguments.text("lr-base-scale") or default
        # timm's rule if no rate is given: a base rate for 256 images, scaled with the batch.
        lr = (arguments.number("lr-base", 0.1) or 0) * (share**0.5 if scale == "sqrt" else share)
    warmup = arguments.number("warmup-epochs", 5) or 0
    steps = _steps(draft, warmup, batch) if warmup else 0
    if steps is None:
        draft.notes.append(f"--warmup-epochs {warmup:g}: set schedule.warmup_steps, {warmup:g} x images / {batch}")
    schedule: Fields = {"type": "cosine"}
    shape = arguments.text("sched", "cosine")
    if shape in ("step", "multistep"):
        schedule = {"type": "steps"}
        for option in ("decay-epochs", "decay-rate", "decay-milestones"):
            draft.lose(option, "schedule: {type: steps, at: [...]} divides the rate by 10")
    elif shape == "poly":
        schedule = {"type": "poly"}
    elif shape != "cosine":
        draft.lose("sched", "the recipe has cosine")
    if shape == "cosine" and arguments.number("min-lr"):
        schedule["min_lr"] = arguments.number("min-lr")
    schedule |= {"warmup_steps": steps} if steps else {}
    return {"lr": lr, "optimizer": optimizer, "schedule": schedule}


def _optimizer(draft: Draft) -> Fields:
    arguments = draft.arguments
    name = arguments.text("opt", "sgd").lower()
    fields: Fields = {"type": OPTIMIZERS.get(name, "timm")}
    if fields["type"] == "timm" and name in get_args(Algorithm):
        fields["algorithm"] = name
    elif fields["type"] == "timm":
        fields["type"] = "adamw"
        draft.lose("opt", "the recipe has adamw")
    if fields["type"] == "sgd":
        fields["momentum"] = arguments.number("momentum", 0.9)
    elif fields["type"] in ("adamw", "lamb"):
        betas = arguments.numbers("opt-betas")
        fields |= {"betas": betas or [0.9, 0.999], "eps": arguments.number("opt-eps") or 1e-8}
    if arguments.text("clip-mode", "norm") != "norm":
        draft.lose("clip-mode", "the recipe limits the norm")
    # timm's default, which is meant for SGD.
    fields["weight_decay"] = arguments.number("weight-decay", 2e-5)
    return fields | not_empty({"grad_clip_norm": arguments.number("clip-grad")})


def _regularization(draft: Draft) -> Fields:
    arguments = draft.arguments
    if arguments.number("drop"):
        draft.lose("drop", "drop_path is here")
    decay = arguments.number("layer-decay")
    fields: Fields = {
        "trained": {"type": "all", "layer_decay": decay or 1.0, "freeze_patch_embed": False},
        "head_init_scale": arguments.number("head-init-scale") or 1.0,
        "drop_path": arguments.number("drop-path") or 0.0,
        "label_smoothing": arguments.number("smoothing", 0.1),
        "ema_decay": arguments.number("model-ema-decay", 0.9998) if arguments.flag("model-ema") else None,
    }
    return fields | not_empty({"crop_pct": arguments.number("crop-pct")})


def _augmentation(draft: Draft) -> Fields:
    arguments = draft.arguments
    policy = arguments.text("aa")
    if policy and not policy.startswith("rand"):
        draft.lose("aa", "rand_augment takes timm's RandAugment")
        policy = ""
    if arguments.text("remode", "pixel") != "pixel":
        draft.lose("remode", "erased pixels are noise")
    scale = arguments.numbers("scale")
    return {
        "crop_scale": scale or [0.08, 1.0],
        "flip": arguments.number("hflip", 0.5),
        "rand_augment": policy or None,
        "mixup": arguments.number("mixup", 0.0),
        "cutmix": arguments.number("cutmix", 0.0),
        "erasing": arguments.number("reprob", 0.0),
    }


def _precision(draft: Draft) -> str:
    if not draft.arguments.flag("amp"):
        return "fp32"
    return "amp_bf16" if draft.arguments.text("amp-dtype", "float16") == "bfloat16" else "amp_fp16"


def _runtime(draft: Draft) -> None:
    arguments = draft.arguments
    command = draft.command
    settings: Fields = {"processes": command.processes if command.processes > 1 else None}
    settings["workers"] = arguments.count("workers", 4) if "workers" in arguments.values else None
    settings["compile"] = "blocks" if "torchcompile" in arguments.values else None
    settings["channels_last"] = arguments.flag("channels-last") or None
    settings["sync_batch_norm"] = arguments.flag("sync-bn") or None
    draft.runtime |= not_empty(settings)


def _plain(text: str) -> object:
    try:
        return as_number(text, "")
    except UserError:
        return {"true": True, "false": False}.get(text.lower(), text)


TIMM_TRAIN = Tool(re.compile(r"(.*/)?train\.py|(.*/)?distributed_train\.sh"), TRAIN, convert_train)
TIMM_VALIDATE = Tool(re.compile(r"(.*/)?validate\.py"), VALIDATE, convert_validate)
