"""Command lines of CLIP_benchmark's `eval`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain, product
from pathlib import Path

from vfm.base import UserError
from vfm.flow.conversion.arguments import OptionTable
from vfm.flow.conversion.draft import Draft, Fields, Tool, not_empty
from vfm.flow.recipe.shipped import shipped_files
from vfm.flow.requests.inputs import stage_name
from vfm.flow.requests.suites import load_suite

OPTIONS = OptionTable(
    "clip_benchmark eval",
    converted="""
        dataset* dataset_root split|test_split train_split* val_split* val_proportion* model* pretrained*
        pretrained_model* task num_workers recall_k* fewshot_k fewshot_epochs fewshot_lr seed batch_size
        custom_classname_file custom_template_file language* model_type
    """,
    elsewhere={
        "output": "results/ of the run, in the same JSON, and vfm eval --out FOLDER",
        "skip_existing! skip_load! feature_root": "not needed: finished stages and features are cached",
        "no_amp!": "not needed: fp32, or precision: bf16 of an evaluation",
        "distributed!": "runtime: {processes: N}",
        "quiet!": "vfm run RECIPE --quiet",
        "model_cache_dir": "the environment variable HF_HOME",
        "wds_cache_dir": "not needed: local tars are read in place",
        "annotation_file": "path of data.pairs, if it is COCO's",
        "normalize": "features: {normalize: true} of a probe",
        "dump_classnames! dump_templates!": "not needed: they are in the manifest of the data",
    },
    missing="save_clf load_clfs*",
)
MODELS = {
    "openai": ("ViT-B-32,openai", "ViT-B-16,openai", "ViT-L-14,openai", "ViT-L-14-336,openai"),
    "openclip_base": (
        "ViT-B-32-quickgelu,laion400m_e32", "ViT-B-32,laion2b_e16", "ViT-B-32,laion2b_s34b_b79k",
        "ViT-B-16,laion400m_e32", "ViT-B-16-plus-240,laion400m_e32", "ViT-L-14,laion400m_e32",
        "ViT-L-14,laion2b_s32b_b82k", "ViT-H-14,laion2b_s32b_b79k", "ViT-g-14,laion2b_s12b_b42k",
    ),
    "openclip_multilingual": (
        "xlm-roberta-base-ViT-B-32,laion5b_s13b_b90k", "xlm-roberta-large-ViT-H-14,frozen_laion5b_s13b_b90k",
    ),
}  # fmt: skip
VTAB = """
    vtab/caltech101 vtab/cifar100 vtab/clevr_count_all vtab/clevr_closest_object_distance vtab/diabetic_retinopathy
    vtab/dmlab vtab/dsprites_label_orientation vtab/dsprites_label_x_position vtab/dtd vtab/eurosat
    vtab/kitti_closest_vehicle_distance vtab/flowers vtab/pets vtab/pcam vtab/resisc45 vtab/smallnorb_label_azimuth
    vtab/smallnorb_label_elevation sun397 vtab/svhn
"""
ROBUSTNESS = "imagenetv2 imagenet_sketch imagenet-a imagenet-r objectnet"
OTHERS = """
    fer2013 voc2007 voc2007_multilabel cars fgvc_aircraft mnist stl10 gtsrb country211 renderedsst2 vtab/cifar10
"""
COLLECTIONS = {
    "vtab": VTAB.split(),
    "vtab+": f"imagenet1k {ROBUSTNESS} {OTHERS} {VTAB}".split(),
    "retrieval": ["mscoco_captions", "flickr8k", "flickr30k"],
    "imagenet_robustness": ROBUSTNESS.split(),
}
CAPTIONED = {
    "flickr30k", "flickr8k", "mscoco_captions", "multilingual_mscoco_captions", "flickr30k-200", "crossmodal3600",
    "xtd10", "xtd200",
}  # fmt: skip
HUB = re.compile(r"https://huggingface\.co/datasets/(.+?)/tree/main/?")


def convert_eval(draft: Draft) -> None:
    """Add the models to a draft, and for each dataset and language an evaluation of all models.

    Raises:
        UserError: If vfm has nothing like it.
    """
    arguments = draft.arguments
    if arguments.positional[:1] != ["eval"]:
        raise UserError(f"expected clip_benchmark eval, got {' '.join(draft.command.words[:2])}")
    if arguments.text("model_type", "open_clip") != "open_clip":
        raise UserError(f"--model_type {arguments.text('model_type')}: expected a model of open_clip")
    models = list(dict.fromkeys(_models(draft)))
    names = []
    for model in models:
        source, _, tag = model.partition(",")
        short = tag if "/" not in tag else Path(tag).stem
        names.append(draft.add("models.clip", stage_name(f"{source}-{short}"), source=source, pretrained=tag))
    datasets = _expanded(arguments.texts("dataset") or ["cifar10"], COLLECTIONS)
    for dataset, language in product(datasets, arguments.texts("language") or ["en"]):
        _evaluation(draft, dataset, language, names)
    if "num_workers" in arguments.values:
        draft.runtime["workers"] = arguments.count("num_workers", 4)


def _models(draft: Draft) -> list[str]:
    arguments = draft.arguments
    whole = arguments.texts("pretrained_model")
    if whole:
        return _expanded(whole, MODELS)
    tags = arguments.texts("pretrained") or [arguments.text("pretrained", "laion400m_e32")]
    architectures = arguments.texts("model") or [arguments.text("model", "ViT-B-32-quickgelu")]
    return [f"{name},{tag}" for name, tag in product(architectures, tags)]


def _expanded(words: Sequence[str], collections: Mapping[str, Sequence[str]]) -> list[str]:
    """Replace names of collections, and files with a name in each line.

    Raises:
        UserError: If a file is missing.
    """
    names: list[str] = []
    for word in words:
        if word in collections:
            names += collections[word]
        elif word.endswith(".txt"):
            if not Path(word).is_file():
                raise UserError(f"{word}: no such file; expected a name in each line")
            names += Path(word).read_text(encoding="utf-8").split()
        else:
            names.append(word)
    return names


def _evaluation(draft: Draft, dataset: str, language: str, models: list[str]) -> None:
    """Add a dataset, unless it is there, and its evaluation."""
    arguments = draft.arguments
    plain = dataset.removeprefix("wds/")
    task = arguments.text("task")
    if task in ("", "auto"):
        task = _usual_task(plain)
    if task == "captioning":
        raise UserError("--task captioning: vfm evaluates contrastive models, which write no captions")
    name = stage_name(plain.replace("/", "-"))
    suffix = f"-{language}" if len(arguments.texts("language")) > 1 else ""
    path = _path(draft, plain)
    short = plain.rsplit("/", 1)[-1]
    if task == "zeroshot_retrieval":
        _add_once(draft, {"kind": "data.pairs", "name": name, "path": path})
        fields: Fields = {"recall_k": list(map(int, arguments.texts("recall_k")))}
        fields |= {"language": language} if language != "en" else {}
        draft.add("eval.retrieval", f"{name}-retrieval{suffix}", models=models, data=name, **fields)
        return
    if task == "image_caption_selection":
        _add_once(draft, {"kind": "data.choices", "name": name, "path": path})
        draft.add("eval.choices", f"{name}-choices", models=models, data=name)
        return
    images = _images(draft, dataset, path)
    if language != "en":
        name = f"{name}{suffix or '-' + language}"
        images = images | {"names_of": f"{short}/{language}"}
    _add_once(draft, {**images, "name": name})
    if task == "linear_probe":
        _probe(draft, name, images, models)
        return
    prompts = arguments.text("custom_template_file")
    if prompts:
        draft.notes.append(f"{prompts}: prompts: takes a file {{class: [sentences]}}; lists of prompts are templates:")
    fields = not_empty({"prompts": prompts, "language": language if language != "en" else ""})
    draft.add("eval.zero_shot", f"{name}-zero_shot", models=models, data=name, **fields)


def _usual_task(dataset: str) -> str:
    if dataset in CAPTIONED:
        return "zeroshot_retrieval"
    chosen = dataset.startswith("sugar_crepe") or dataset == "winoground"
    if chosen:
        return "image_caption_selection"
    return "zeroshot_classification"


def _path(draft: Draft, dataset: str) -> str:
    root = draft.arguments.text("dataset_root", "root")
    path = root.replace("{dataset}", dataset).replace("{dataset_cleaned}", dataset.replace("/", "-"))
    hub = HUB.fullmatch(path)
    return f"hf://datasets/{hub[1]}" if hub else path


def _images(draft: Draft, dataset: str, path: str) -> Fields:
    """Choose the fields of a dataset with classes.

    It is in CLIP_benchmark's tars, or a dataset of torchvision.
    """
    plain = dataset.removeprefix("wds/")
    short = plain.rsplit("/", 1)[-1]
    kind = "data.tagged" if plain.endswith("multilabel") else "data.labeled"
    fields: Fields = {"kind": kind, "path": path}
    split = draft.arguments.text("split", "test")
    if split != "test":
        fields["split"] = split
    if draft.arguments.text("custom_classname_file"):
        draft.notes.append(
            "--custom_classname_file: class_names of the data, a list or a file with a name in each line"
        )
    if dataset.startswith("wds/"):
        return fields
    sets = chain.from_iterable(load_suite(suite).sets for suite in shipped_files("suites"))
    in_torchvision = {entry.name.rsplit("/", 1)[-1]: entry.torchvision.name for entry in sets if entry.torchvision}
    if short in in_torchvision and not plain.startswith("tfds/"):
        return fields | {"torchvision": in_torchvision[short], "names_of": short}
    draft.notes.append(f"{plain}: path is a folder of classes, or CLIP_benchmark's tars of clip_benchmark_export_wds")
    return fields


def _probe(draft: Draft, name: str, images: Fields, models: list[str]) -> None:
    arguments = draft.arguments
    train = {**images, "name": f"{name}-train", "split": next(iter(arguments.texts("train_split")), "train")}
    _add_once(draft, train)
    shots = arguments.count("fewshot_k", -1)
    common: Fields = {"models": models, "data": name, "train": f"{name}-train", "seed": arguments.count("seed", 0)}
    if shots > 0:
        for option in ("fewshot_lr", "fewshot_epochs"):
            draft.lose(option, "eval.few_shot finds the optimum of its loss")
        draft.add("eval.few_shot", f"{name}-few_shot", **common, shots=[shots])
        return
    if "val_split" in arguments.values:
        draft.lose("val_split", "a part of the training images chooses the rate: validation_fraction")
    share = arguments.numbers("val_proportion")
    settings: Fields = {"solver": "sgd", "lrs": [arguments.number("fewshot_lr", 0.1)]}
    settings |= {"epochs": arguments.count("fewshot_epochs", 10), "train_batch_size": arguments.count("batch_size", 64)}
    settings |= {"validation_fraction": share[0]} if share else {}
    draft.notes.append("a probe of CLIP_benchmark is trained by AdamW, here by SGD, or lbfgs without `solver`")
    draft.add("eval.linear_probe", f"{name}-linear_probe", **common, **settings)


def _add_once(draft: Draft, fields: Fields) -> None:
    if all(stage["name"] != fields["name"] for stage in draft.stages):
        draft.add(**fields)


CLIP_BENCHMARK = Tool(
    re.compile(r"(.*/)?clip_benchmark(/cli\.py)?|clip_benchmark\.cli|(.*/)?cli\.py"), OPTIONS, convert_eval
)
