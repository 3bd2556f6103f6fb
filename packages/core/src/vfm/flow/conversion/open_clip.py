"""Command lines of open_clip's training program, which also evaluates."""

from __future__ import annotations

import ast
import re
from typing import get_args

from vfm.base import UserError
from vfm.flow.conversion.arguments import OptionTable
from vfm.flow.conversion.draft import Draft, Fields, Tool, not_empty
from vfm.flow.requests.inputs import open_clip_configuration
from vfm.interfaces.timm_optimizer import Algorithm

OPTIONS = OptionTable(
    "open_clip",
    converted="""
        train-data train-data-upsampling-factors val-data train-num-samples dataset-type csv-img-key csv-caption-key
        image-key text-key json-text-key imagenet-val imagenet-v2 workers batch-size epochs epochs-cooldown lr beta1
        beta2 eps wd momentum warmup opt text-layer-decay image-layer-decay|visual-layer-decay use-bn-sync!
        skip-scheduler! lr-scheduler lr-cooldown-end lr-cooldown-power resume precision model pretrained
        pretrained-image! lock-image! lock-image-unlocked-groups aug-cfg* grad-checkpointing! force-image-size*
        force-quick-gelu! force-patch-dropout torchcompile! accum-freq fsdp! fsdp-no-reshard-after-forward!
        fsdp-offload-cpu! seed grad-clip-norm lock-text!
        lock-text-unlocked-layers log-every-n-steps distill-model distill-pretrained siglip!
    """,
    elsewhere={
        "local-loss! gather-with-grad!": "not needed: the gradient is taken over the whole batch",
        "logs name": "the store and the file of the recipe name a run: vfm run RECIPE --store FOLDER",
        "report-to wandb-notes wandb-project-name": "vfm run RECIPE --track tensorboard or wandb",
        "save-frequency save-most-recent! delete-previous-checkpoint!": "checkpoint: {every_minutes: 5, keep_last: 2}",
        "zeroshot-frequency val-frequency": "evaluation: {tasks: [...], every_steps: N}; here at the end",
        "dataset-resampled!": "not needed: every epoch has all samples, in a new order",
        "csv-separator": "not needed: found in the file",
        "val-num-samples": "not needed: samples are counted",
        "device dist-url dist-backend no-set-device-rank! ddp-static-graph!": "runtime: {device: ..., processes: N}",
        "torchcompile-strategy torchcompile-backend torchcompile-mode": "runtime: {compile: blocks or whole}",
        "log-metric-every-n-steps": "log_every",
        "cache-dir": "the environment variable HF_HOME",
        "debug! log-local! copy-codebase!": "not needed: events.jsonl and the report of a run have everything",
        "remote-sync remote-sync-frequency remote-sync-protocol": "not needed: --store may be on a shared disk",
        "fsdp-checkpoint": "not needed: checkpoints are read by any number of processes",
        "force-custom-text!": "not needed: both layouts of the text tower are read",
        "val-retrieval-chunk-size val-retrieval-precision": "not needed: exact recall, in chunks",
        "lock-image-freeze-bn-stats! lock-text-freeze-layer-norm!": "frozen with trained: {type: frozen}",
    },
    missing="""
        audio-ext pretrained-audio audio-fill audio-trunc audio-fusion! audio-int16-normalize! audio-zeroshot-dataset
        audio-zeroshot-split audio-zeroshot-audio-key audio-zeroshot-target-key audio-zeroshot-class-key
        audio-zeroshot-template audio-zeroshot-workers audio-zeroshot-multiprocessing-context
        audio-multiprocessing-context audio-layer-decay max-image-pixels json-text-key-probs* opt-kwargs*
        opt-fallback-list* wd-exclude* text-pooler-own-group! image-mean* image-std* image-interpolation
        image-resize-mode force-context-length train-loss-ema-samples
        coca-caption-loss-weight coca-contrastive-loss-weight use-bnb-linear loss-dist-impl use-naflex!
        force-naflex-vision! naflex-num-train-image-tokens naflex-patch-sizes* naflex-patch-size-probs* naflex-seq-lens*
        naflex-seq-len-probs* naflex-max-tokens-per-batch naflex-max-text-tokens naflex-batch-divisor naflex-loss-scale
        naflex-pad-multiple length-bucketing! bucket-pool bucket-chunk bucket-prefetch-pools text-pad-multiple
        torchscript! trace! horovod!
    """,
)
PRECISIONS = {
    "amp": "amp_fp16", "amp_bf16": "amp_bf16", "amp_bfloat16": "amp_bf16", "bf16": "bf16", "pure_bf16": "bf16",
    "fp16": "amp_fp16", "pure_fp16": "amp_fp16", "fp32": "fp32",
}  # fmt: skip
PIPE = re.compile(r"pipe:\s*aws s3 cp (\S+) -\s*")
WITHOUT_COUNTERPART = {
    r"(?i)coca": "CoCa generates captions, and vfm trains contrastive models only",
    r"(?i)clap|genlip|genlap": "vfm has no models of audio and no generative training of open_clip",
}


def convert_open_clip(draft: Draft) -> None:
    """Add a training with its evaluations, or the evaluations of a pretrained model, to a draft.

    Raises:
        UserError: If vfm has nothing like it.
    """
    arguments = draft.arguments
    model = arguments.text("model", "RN50").replace("/", "-")
    if arguments.flag("force-quick-gelu") and not model.endswith("-quickgelu"):
        model += "-quickgelu"
    for pattern, why in WITHOUT_COUNTERPART.items():
        if re.search(pattern, model):
            raise UserError(f"--model {model}: {why}")
    train = arguments.text("train-data") or arguments.text("dataset-type").startswith("synthetic")
    pretrained = arguments.text("pretrained")
    if not train and not pretrained:
        raise UserError("expected --train-data to train, or --pretrained to evaluate a model, got neither")
    name = _training(draft, model) if train else draft.add("models.clip", "clip", source=model, pretrained=pretrained)
    _evaluations(draft, name)
    if not train and not draft.stages[1:]:
        raise UserError("expected --val-data or --imagenet-val to evaluate on")


def _training(draft: Draft, model: str) -> str:
    arguments = draft.arguments
    if arguments.text("dataset-type") in ("webdataset-audio", "synthetic-audio"):
        raise UserError(f"--dataset-type {arguments.text('dataset-type')}: vfm has no models of audio")
    data = _training_data(draft)
    start = arguments.text("pretrained") or arguments.text("resume")
    fields: Fields = {"model": model, "data": data}
    # The checkpoint determines the architecture, so the model is not named a second time.
    if start and start != "latest":
        del fields["model"]
        fields["init"] = draft.add("models.clip", "start", source=model, pretrained=start)
    if "resume" in arguments.values:
        draft.notes.append("--resume: the same vfm run resumes. A file of open_clip gives its weights only")
    if arguments.flag("pretrained-image"):
        source = open_clip_configuration(model).get("vision_cfg", {}).get("timm_model_name")
        if not source:
            raise UserError(f"--pretrained-image: expected a model with a vision tower of timm, got {model}")
        fields["init_vision"] = draft.add("models.vision", "encoder", source=source)
    # Empty groups of fields are left out of the recipe.
    fields |= not_empty({"vision": _vision(draft), "text": _text(draft), "loss": _loss(draft)})
    if arguments.texts("force-image-size"):
        fields["image_size"] = int(arguments.texts("force-image-size")[0])
    fields |= _length(draft) | _optimizer(draft, model)
    fields |= not_empty({"augmentation": _augmentation(draft)})
    precision = arguments.text("precision", "amp_bf16")
    fields["precision"] = PRECISIONS.get(precision, precision)
    if precision in ("fp16", "pure_fp16"):
        draft.lose("precision", "the recipe has amp_fp16")
    if arguments.flag("grad-checkpointing"):
        fields["grad_checkpointing"] = True
    log_every = arguments.count("log-every-n-steps", 100)
    seed = arguments.count("seed", 0)
    return draft.add("clip.train", "clip", **fields, log_every=log_every, seed=seed)


def _training_data(draft: Draft) -> str | list[Fields]:
    """Add the stages of the training pairs, and return the value of `data`."""
    arguments = draft.arguments
    if arguments.text("dataset-type") == "synthetic":
        draft.notes.append("--dataset-type synthetic: drawn shapes with captions in place of noise")
        return draft.add("shapes.pool", "pool")
    paths = arguments.text("train-data").split("::")
    weights = arguments.text("train-data-upsampling-factors").split("::")
    if len(paths) == 1:
        return draft.add("data.pairs", "pool", **_pairs(draft, paths[0], "train-data"))
    parts = []
    for number, path in enumerate(paths):
        name = draft.add("data.pairs", f"pool{number}", **_pairs(draft, path, "train-data"))
        parts.append({"data": name} | ({"weight": float(weights[number])} if weights[0] else {}))
    draft.notes.append("weights of several data are shares of a batch here, there factors of their sizes")
    return parts


def _pairs(draft: Draft, path: str, option: str) -> Fields:
    """Choose the fields of `data.pairs`."""
    arguments = draft.arguments
    piped = PIPE.fullmatch(path)
    if path.startswith("pipe:") and not piped:
        raise UserError(f"--{option}: expected paths, or pipe:aws s3 cp PATHS -, got {path[:60]}")
    paths: str | list[str] = piped[1] if piped else path
    is_table = arguments.text("dataset-type") == "csv" or path.endswith((".csv", ".tsv"))
    if is_table:
        draft.notes.append(f"paths of images in {path}: below image_root, by default the folder of the table")
        column = arguments.text("csv-caption-key", "title")
        return {"path": paths, "image_key": arguments.text("csv-img-key", "filepath"), "texts": {"en": column}}
    fields: Fields = {"path": paths}
    if "image-key" in arguments.values:
        fields["image_key"] = arguments.text("image-key").replace(";", ",")
    caption = arguments.text("json-text-key") or arguments.text("text-key")
    if caption:
        first, *others = caption.split(";")
        fields["texts"] = {"en": f"json.{first}" if "json-text-key" in arguments.values else first}
        if others:
            draft.notes.append(f"captions: only {first}; language: of clip.train may choose among several texts")
    return fields


def _vision(draft: Draft) -> Fields:
    arguments = draft.arguments
    fields: Fields = {}
    if arguments.flag("lock-image"):
        fields["trained"] = _locked(arguments.count("lock-image-unlocked-groups", 0) - 1)
    elif "image-layer-decay" in arguments.values:
        fields["trained"] = {"type": "all", "layer_decay": arguments.number("image-layer-decay")}
    dropout = arguments.number("force-patch-dropout")
    return fields | ({"patch_dropout": dropout} if dropout is not None else {})


def _text(draft: Draft) -> Fields:
    arguments = draft.arguments
    if arguments.flag("lock-text"):
        if not arguments.text("pretrained"):
            raise UserError("--lock-text without --pretrained: vfm does not start from a language model of the hub")
        return {"trained": _locked(arguments.count("lock-text-unlocked-layers", 0) or -1)}
    decay = arguments.number("text-layer-decay")
    return {} if decay is None else {"trained": {"type": "all", "layer_decay": decay}}


def _locked(blocks: int) -> Fields:
    return {"type": "frozen"} if blocks < 0 else {"type": "last_blocks", "blocks": blocks}


def _loss(draft: Draft) -> Fields:
    arguments = draft.arguments
    teacher = arguments.text("distill-model").replace("/", "-")
    if teacher:
        pretrained = arguments.text("distill-pretrained")
        draft.add("models.clip", "teacher", source=teacher, pretrained=pretrained)
        return {"type": "distillation", "teacher": "teacher"}
    return {"type": "siglip"} if arguments.flag("siglip") else {}


def _length(draft: Draft) -> Fields:
    """Choose the batch and the length. open_clip's batch size is for each process."""
    arguments = draft.arguments
    command = draft.command
    batch = arguments.count("batch-size", 64)
    accumulated = arguments.count("accum-freq", 1)
    # open_clip's batch is for one process and one accumulation step, vfm's is for a whole step.
    fields: Fields = {"global_batch_size": batch * command.all_processes * accumulated}
    if fields["global_batch_size"] != batch:
        draft.notes.append(
            f"--batch-size {batch} is for a process there: {batch} x {command.all_processes} processes"
            + f" x {accumulated} accumulated" * (accumulated > 1)
        )
    if accumulated > 1:
        fields["micro_batch_size"] = batch
    epochs = arguments.number("epochs", 32) or 0
    samples = round(arguments.number("train-num-samples") or 0)
    draft.runtime |= {"processes": command.processes} if command.processes > 1 else {}
    if command.machines > 1:
        draft.notes.append(f"{command.machines} machines: vfm run RECIPE --prepare clip, or --on slurm --job nodes=N")
    if "workers" in arguments.values:
        draft.runtime["workers"] = arguments.count("workers", 4)
    if arguments.flag("fsdp"):
        draft.runtime |= {"parallel": "fsdp"}
        draft.runtime |= {"reshard": False} if arguments.flag("fsdp-no-reshard-after-forward") else {}
        draft.runtime |= {"cpu_offload": True} if arguments.flag("fsdp-offload-cpu") else {}
    draft.runtime |= {"compile": "blocks"} if arguments.flag("torchcompile") else {}
    draft.runtime |= {"sync_batch_norm": True} if arguments.flag("use-bn-sync") else {}
    return fields | ({"samples_seen": round(samples * epochs)} if samples else {"epochs": epochs})


def _optimizer(draft: Draft, model: str) -> Fields:
    """Choose the learning rate, the optimizer and the schedule, with open_clip's defaults for the model."""
    arguments = draft.arguments
    is_vit = "vit" in model.lower()
    family, _, algorithm = arguments.text("opt", "adamw").rpartition("/")
    # open_clip's defaults, which differ for vision transformers and ResNets.
    betas = [arguments.number("beta1", 0.9), arguments.number("beta2", 0.98 if is_vit else 0.999)]
    fields: Fields = {"type": algorithm, "betas": betas, "eps": arguments.number("eps", 1e-6 if is_vit else 1e-8)}
    if algorithm == "sgd":
        fields = {"type": algorithm, "momentum": arguments.number("momentum", 0.9)}
    elif algorithm in get_args(Algorithm):
        fields = {"type": "timm", "algorithm": algorithm}
        draft.notes.append(f"--opt {family}/{algorithm}: further settings are optimizer: {{options: {{...}}}}")
    elif algorithm not in ("adamw", "lamb"):
        raise UserError(
            f"--opt {algorithm}: expected adamw, lamb, sgd or timm/NAME with {', '.join(get_args(Algorithm))}"
        )
    fields["weight_decay"] = arguments.number("wd", 0.2)
    fields |= not_empty({"grad_clip_norm": arguments.number("grad-clip-norm")})
    return {"lr": arguments.number("lr", 5e-4), "optimizer": fields, "schedule": _schedule(draft)}


def _schedule(draft: Draft) -> Fields:
    arguments = draft.arguments
    if arguments.flag("skip-scheduler"):
        return {"type": "constant"}
    warmup = arguments.count("warmup", 10000)
    shape = arguments.text("lr-scheduler", "cosine")
    if shape == "cosine":
        return {"type": "cosine", "warmup_steps": warmup}
    samples = round(arguments.number("train-num-samples") or 0)
    epochs = arguments.number("epochs-cooldown")
    if shape == "const-cooldown" and samples and epochs:
        batch = arguments.count("batch-size", 64) * draft.command.all_processes * arguments.count("accum-freq", 1)
        decay = {"decay_steps": round(epochs * samples / batch), "min_lr": arguments.number("lr-cooldown-end", 0.0)}
        if arguments.number("lr-cooldown-power", 1.0) != 1:
            draft.lose("lr-cooldown-power", "schedule: {shape: linear, sqrt or cosine}")
        return {"type": "wsd", "warmup_steps": warmup, **decay}
    if shape == "const-cooldown":
        draft.lose(
            "lr-scheduler", "without --train-num-samples the last steps are unknown: {type: wsd, decay_steps: N}"
        )
    return {"type": "constant", "warmup_steps": warmup}


def _augmentation(draft: Draft) -> Fields:
    settings: Fields = {}
    for word in draft.arguments.texts("aug-cfg"):
        key, _, text = word.partition("=")
        name = {"scale": "crop_scale", "ratio": "crop_ratio"}.get(key)
        if name is None:
            draft.lost.append(f"--aug-cfg {word}")
            continue
        try:
            settings[name] = list(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError):
            raise UserError(f"--aug-cfg {word}: expected two numbers, such as {key}=(0.4,1.0)") from None
    return settings


def _evaluations(draft: Draft, model: str) -> None:
    arguments = draft.arguments
    val = arguments.text("val-data")
    if val:
        draft.add("data.pairs", "val", **_pairs(draft, val, "val-data"))
        draft.add("eval.retrieval", "retrieval", models=[model], data="val")
    for option, name in (("imagenet-val", "imagenet"), ("imagenet-v2", "imagenet_v2")):
        path = arguments.text(option)
        if path:
            draft.add("data.labeled", name, path=path, names_of="imagenet1k")
            draft.add("eval.zero_shot", f"{name}_zero_shot", models=[model], data=name)


OPEN_CLIP = Tool(
    re.compile(r"(open_clip_train|training)\.(legacy_)?main|(.*/)?(open_clip_train|training)/(legacy_)?main\.py"),
    OPTIONS,
    convert_open_clip,
)
