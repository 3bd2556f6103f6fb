"""Write the recipe of `vfm forecast`, with a CLIP model, a generator, pairs, and the expected gain from feedback."""

from __future__ import annotations

from collections.abc import Mapping

from vfm.base import UserError, how_to_install
from vfm.flow.recipe.yaml_lines import dump
from vfm.flow.requests.inputs import Fields, Input, saved_artifact
from vfm.interfaces import ChoiceDataset, ClipCheckpoint, GeneratorCheckpoint, Stage

METHOD = "diva.predict"


def forecast_recipe(clip: Input, generator: str, pairs: str, preset: str, known: Mapping[str, type[Stage]]) -> str:
    """Write the recipe as YAML.

    Args:
        clip: The CLIP model.
        generator: A saved artifact, a folder in diffusers' layout, or hf-hub:org/model.
        pairs: A saved artifact, or a path in any format of `data.choices`.
        preset: Preset of the tuning whose GPU hours are computed.
        known: Stage types by kind.

    Raises:
        UserError: If the package with the method is not installed, or an input is of another type.
    """
    if METHOD not in known:
        raise UserError(f"vfm forecast needs the stage {METHOD}: {how_to_install('vfm-diva')}")
    if not issubclass(clip.makes, ClipCheckpoint):
        raise UserError(f"{clip.name}: expected a CLIP model, got an encoder without texts")
    stages: list[Fields] = [clip.stage] if clip.stage else []
    refs = {}
    for name, word, makes, kind, field in (
        ("generator", generator, GeneratorCheckpoint, "models.generator", "source"),
        ("pairs", pairs, ChoiceDataset, "data.choices", "path"),
    ):
        artifact = saved_artifact(word)
        if artifact and not isinstance(artifact, makes):
            raise UserError(f"{word}: expected a {makes.__name__}, got a {type(artifact).__name__}")
        # A saved artifact is used as it is, other words become a stage that imports them.
        refs[name] = word if artifact else name
        if not artifact:
            stages.append({"kind": kind, "name": name, field: word})
    stages.append(
        {
            "kind": METHOD,
            "name": "forecast",
            "clip": clip.ref,
            "generator": refs["generator"],
            "data": refs["pairs"],
            "preset": preset,
        }
    )
    return dump({"description": f"The gain to expect of feedback on {clip.name}.", "stages": stages})
