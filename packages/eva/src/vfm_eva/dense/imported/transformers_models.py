"""Copy a model in transformers' layout, and match its classes to a dataset's (`eva.import_dense`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import transformers

from vfm.models import model_folder, without_custom_code
from vfm.plugin import AnnotatedImages, Context, DenseCheckpoint, Preflight, UserError, did_you_mean, store_files
from vfm_eva.dense.imported.stages import ImportDense

MODEL_FOLDER = "model"
RECORD_FILE = "classes.json"
FILES = ("*.json", "*.safetensors")
Family = Literal["ObjectDetection", "SemanticSegmentation", "UniversalSegmentation"]
FAMILIES: tuple[Family, ...] = ("ObjectDetection", "SemanticSegmentation", "UniversalSegmentation")
TASKS: dict[str, list[Any]] = {
    "boxes": ["boxes"],
    "semantic": ["semantic"],
    "instance": ["boxes", "masks"],
    "panoptic": ["panoptic", "semantic", "boxes", "masks"],
}


@dataclass(frozen=True)
class ClassRecord:
    """The classes of an imported model.

    Attributes:
        family: End of the model's class in transformers, after `For`.
        task: Boxes, semantic, instance or panoptic.
        labels: Label of each of the model's classes, -1 if it is left out.
        things: Whether each label has instances.
    """

    family: Family
    task: str
    labels: list[int]
    things: list[bool]

    @classmethod
    def read(cls, checkpoint: DenseCheckpoint) -> ClassRecord:
        """Read the record of a checkpoint."""
        record = store_files.read_record(checkpoint.path / RECORD_FILE)
        with store_files.naming(checkpoint.path / RECORD_FILE, "the classes of an imported model"):
            return cls(**record)


def check_import_dense(config: ImportDense, ctx: Preflight) -> None:
    """Check the model and its classes, if its folder and the data exist.

    Raises:
        UserError: If the model has no dense task, or no class of the data.
    """
    folder = Path(config.source)
    if folder.is_dir():
        record = read_config(folder, config.source)
        data = ctx.artifact(config.data) if config.data else None
        class_record(config, record, data)


def import_dense(config: ImportDense, ctx: Context) -> DenseCheckpoint:
    """Load a model with transformers' classes, and save it with its image processor.

    Raises:
        UserError: If the model cannot be loaded, has no dense task, or no class of the data.
    """
    folder = model_folder(config.source, FILES)
    record = read_config(folder, config.source)
    data = ctx.load(config.data) if config.data else None
    classes = class_record(config, record, data)
    names = data.class_names if data else model_classes(record)
    lacking = [name for label, name in enumerate(names) if label not in classes.labels]
    if lacking:
        ctx.warn(f"{config.source}: has no class {', '.join(lacking[:8])}{' …' if len(lacking) > 8 else ''}")
    left_out = classes.labels.count(-1)
    if left_out:
        ctx.log(f"{left_out} of {len(classes.labels)} classes of the model are not in {config.data}")
    # A model that needs Python from its own files is refused.
    with without_custom_code(config.source):
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        model = auto_class(classes.family).from_pretrained(folder, use_safetensors=True)
    model.save_pretrained(ctx.directory / MODEL_FOLDER)
    processor.save_pretrained(ctx.directory / MODEL_FOLDER)
    (ctx.directory / RECORD_FILE).write_text(json.dumps(asdict(classes)) + "\n", encoding="utf-8")
    return DenseCheckpoint.create(
        ctx.directory,
        encoder="",
        tasks=TASKS[classes.task],
        class_names=list(names),
        image_size=input_side(processor),
        predictor=ImportDense.predictor,
    )


def auto_class(family: Family) -> Any:
    """Look up transformers' class that loads the models of a family."""
    return getattr(transformers, f"AutoModelFor{family}")


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """Read the configuration of a model.

    Raises:
        UserError: If the folder is not in transformers' layout.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{source}: expected a folder in transformers' layout, got one without config.json")
    record: dict[str, Any] = store_files.read_record(folder / "config.json")
    return record


def family_of(record: Mapping[str, Any], source: str) -> Family:
    """Find the family of a model by the name of its class.

    Raises:
        UserError: If it is another kind of model.
    """
    architectures = list(record.get("architectures") or [])
    for name in architectures:
        for family in FAMILIES:
            if name.endswith(f"For{family}"):
                return family
    expected = ", ".join(f"...For{family}" for family in FAMILIES)
    raise UserError(f"{source}: expected a model {expected}, got {', '.join(architectures) or 'no architectures'}")


def model_classes(record: Mapping[str, Any]) -> list[str]:
    """List the names of a model's classes in their order."""
    by_number = {int(number): str(name) for number, name in (record.get("id2label") or {}).items()}
    count = max(by_number, default=-1) + 1 or int(record.get("num_labels", 2))
    return [by_number.get(number, f"LABEL_{number}") for number in range(count)]


def class_record(config: ImportDense, record: Mapping[str, Any], data: AnnotatedImages | None) -> ClassRecord:
    """Match the classes of a model to the data's by their names.

    Args:
        config: Settings of the import.
        record: Configuration of the model.
        data: Dataset whose classes are wanted. Default: the model's classes.

    Raises:
        UserError: If a name in `renamed` does not exist, or no class matches.
    """
    family = family_of(record, config.source)
    task = {"ObjectDetection": "boxes", "SemanticSegmentation": "semantic"}.get(family, config.task)
    names = model_classes(record)
    if data is None:
        return ClassRecord(family, task, list(range(len(names))), [True] * len(names))
    labels = match_classes(names, data.class_names, config.renamed, config.source)
    return ClassRecord(family, task, labels, data.things)


def match_classes(names: Sequence[str], wanted: Sequence[str], renamed: Mapping[str, str], source: str) -> list[int]:
    """Find the label of each of the model's classes among the wanted names.

    Upper and lower case are equal.

    Args:
        names: Classes of the model.
        wanted: Classes of the data.
        renamed: Maps names of the model to names of the data.
        source: Name of the model, for messages.

    Returns:
        Label of each class, or -1 without one.

    Raises:
        UserError: If a name in `renamed` does not exist, or no class matches.
    """
    for old, new in renamed.items():
        if old not in names:
            raise UserError(f"renamed: {source} has no class {old!r}{did_you_mean(old, list(names))}")
        if new not in wanted:
            raise UserError(f"renamed: the data have no class {new!r}{did_you_mean(new, list(wanted))}")
    numbers = {name.casefold(): label for label, name in enumerate(wanted)}
    labels = [numbers.get(renamed.get(name, name).casefold(), -1) for name in names]
    if max(labels, default=-1) < 0:
        raise UserError(
            f"{source}: expected classes of the data ({', '.join(wanted[:3])}, ...), got {', '.join(names[:3])}, ...;"
            " set renamed"
        )
    return labels


def input_side(processor: Any) -> int:
    """Find the side of the square that a model's crops have."""
    size = dict(processor.size)
    side = size.get("height") or size.get("shortest_edge") or size.get("longest_edge")
    if not side:
        raise UserError(f"preprocessor_config.json: expected a size in pixels, got {size}")
    return int(side)
