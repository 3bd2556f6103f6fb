"""Inspect any path, such as a recipe, a model, an image, a video or a dataset."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from vfm.base import UserError, load_function
from vfm.data.annotated.marks import DATA_YAML
from vfm.data.samples.images import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, open_image
from vfm.data.samples.sample import BadSample
from vfm.data.videos.media import Media
from vfm.flow.looks.datasets import look_at_data
from vfm.flow.looks.facts import Look
from vfm.flow.plan.store import LINKS, Store
from vfm.flow.recipe.recipe import parse_recipe
from vfm.flow.recognition.annotations import annotated_fields
from vfm.flow.records.runs import RUN_FILE, kept_runs
from vfm.flow.requests.inputs import saved_artifact
from vfm.interfaces import Artifact, ClipCheckpoint, Event, Stage, VideoClassifier, VisionCheckpoint
from vfm.models.model_description import ModelDescription
from vfm.models.oracle.record import recorded_differences
from vfm.storage import files
from vfm.storage.path_patterns import expand_paths

WEIGHTS = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".pth.tar", ".pt.tar")
MODEL_FILES = ("model_index.json", "open_clip_config.json", "config.json")
RECIPE_KEYS = ("stages:", "base:")
MODELS = (ClipCheckpoint, VisionCheckpoint, VideoClassifier)
SHOWN = ("architecture", "model", "image_size", "embed_dim", "width", "context_length", "num_classes", "num_frames")
NUM_NAMES = 10  # runs and stages of a store that are shown


def look_at(path: str, known: Mapping[str, type[Stage]], folder: Path, send: Callable[[Event], None]) -> Look:
    """Recognise the contents of a path, and choose the commands that use it.

    Args:
        path: A file or a folder, local or remote.
        known: Stage types by kind.
        folder: An empty folder for the index of a dataset.
        send: Receives progress.

    Raises:
        UserError: If the path does not exist, or nothing recognises it.
    """
    if not files.is_remote(path) and not Path(path).exists() and not expand_paths(path):
        raise UserError(f"{path}: no such file or folder")
    if path.endswith((".yaml", ".yml")) and not annotated_fields(path):
        return _look_at_recipe(path, known)
    artifact = None if files.is_remote(path) else saved_artifact(path)
    if isinstance(artifact, MODELS):
        return _look_at_saved(artifact, path)
    if path.endswith(WEIGHTS) and Path(path).is_file():
        return _look_at_model(load_function("vfm.models.interchange.descriptions:describe_weights")(path))
    if path.endswith(".onnx"):
        return _look_at_onnx(path)
    if any((Path(path) / name).is_file() for name in MODEL_FILES):
        description = load_function("vfm.models.interchange.descriptions:describe_folder")(path)
        return _look_at_model(description)
    suffix = path.rsplit(".", 1)[-1].lower()
    if suffix in IMAGE_EXTENSIONS and Path(path).is_file():
        return look_at_image(path)
    if suffix in VIDEO_EXTENSIONS and Path(path).is_file():
        return look_at_video(path)
    store = None if files.is_remote(path) else look_at_store(path)
    return store or look_at_data(path, known, folder, send)


def _look_at_recipe(path: str, known: Mapping[str, type[Stage]]) -> Look:
    text = files.read_text(path)
    if not any(line.startswith(RECIPE_KEYS) for line in text.splitlines()):
        return Look("yaml", problems=[f"expected a recipe with `stages`, or {DATA_YAML} of a dataset with `names`"])
    look = Look("a recipe of vfm", commands=[f"vfm plan {shlex.quote(path)}", f"vfm run {shlex.quote(path)}"])
    try:
        recipe = parse_recipe(text, known, (), name=Path(path).stem, where=path)
    except UserError as error:
        look.problems += str(error).splitlines()
        look.commands = look.commands[:1]
    else:
        look.facts += [f"{stage.name}: {stage.kind_name()}" for stage in recipe.stages]
    return look


def _look_at_onnx(path: str) -> Look:
    """Describe a program of ONNX. It is not trained. The command shows its inputs and outputs."""
    script = (
        f"import onnxruntime; s = onnxruntime.InferenceSession({path!r});"
        " print([(i.name, i.shape) for i in (*s.get_inputs(), *s.get_outputs())])"
    )
    problem = "an exported program, which can be run and not trained; look at the weights that it was made of"
    return Look("ONNX", problems=[problem], commands=[f"python -c {shlex.quote(script)}"])


def _look_at_saved(artifact: Artifact, path: str) -> Look:
    """Describe a model of a store by its facts, and by the comparison when it was imported."""
    look = Look(f"a {type(artifact).__name__} of vfm")
    facts = artifact.model_dump(mode="json")
    look.facts += [f"{key}: {facts[key]}" for key in SHOWN if facts.get(key)]
    compared = recorded_differences(artifact.path)
    look.facts += [compared] if compared else []
    return _with_model(look, path)


def _look_at_model(description: ModelDescription) -> Look:
    look = Look(description.format, description.facts, description.problems)
    return _with_model(look, description.model)


def _with_model(look: Look, model: str) -> Look:
    """Add the commands for a model, unless its architecture is unknown."""
    if model:
        look.commands.append(f"vfm eval {shlex.quote(model)} --data digits")
    return look


def look_at_image(path: str) -> Look:
    """Decode an image, and report its size."""
    look = Look("an image")
    try:
        image = open_image(files.read_bytes(path), path)
        look.facts += [f"format: {image.format}, {image.width} x {image.height} pixels, {image.mode}"]
        image.load()
    except (BadSample, OSError) as error:
        look.problems.append(f"it cannot be decoded: {error}")
        return look
    classes = shlex.quote("a photo,a drawing,a page of text")
    look.commands.append(f"vfm predict ViT-B-32 {shlex.quote(path)} --pretrained openai --classes {classes}")
    return look


def look_at_video(path: str) -> Look:
    """Open a video, and report its length. Its folder is the dataset."""
    probe = load_function("vfm.data.videos.probing:probe")  # needs vfm-core[video]
    folder = shlex.quote(str(Path(path).parent))
    look = Look("a video", commands=[f"vfm data {folder} --kind data.videos"])
    try:
        facts = probe(Media(path))
        look.facts.append(
            f"{facts.num_frames} frames at {facts.rate:.3g} per second, {facts.width} x {facts.height} pixels"
        )
    except BadSample as error:
        look.problems.append(f"it cannot be decoded: {error.reason}")
        look.commands.clear()
    return look


def look_at_store(path: str) -> Look | None:
    """Describe a store, or a run in it. Any other folder gives None."""
    folder = Path(path)
    word = shlex.quote(path)
    if (folder / RUN_FILE).is_file():
        links = sorted(link.name for link in (folder / LINKS).glob("[!.]*"))
        return Look("a run of vfm", [f"artifacts: {_named(links)}"], commands=[f"vfm report {word}"])
    store = Store(folder)
    if not store.runs.is_dir() or not store.artifacts():
        return None
    runs = sorted({run.name for run in kept_runs(store)})
    facts = [f"artifacts: {len(store.artifacts()):,}", f"runs: {_named(runs)}"]
    return Look("a store of vfm", facts, commands=[f"vfm runs --store {word}", f"vfm models --store {word}"])


def _named(names: list[str]) -> str:
    more = ", ..." if len(names) > NUM_NAMES else ""
    return f"{len(names):,} ({', '.join(names[:NUM_NAMES])}{more})"
