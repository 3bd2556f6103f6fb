"""The tools whose command lines can be converted."""

from __future__ import annotations

from collections.abc import Sequence

from vfm.base import UserError
from vfm.flow.conversion.clip_benchmark import CLIP_BENCHMARK
from vfm.flow.conversion.command_lines import read_command_line
from vfm.flow.conversion.draft import ConvertedRecipe, Draft, Tool, finished
from vfm.flow.conversion.llava import LLAVA
from vfm.flow.conversion.open_clip import OPEN_CLIP
from vfm.flow.conversion.timm import TIMM_TRAIN, TIMM_VALIDATE

TOOLS: dict[str, tuple[Tool, ...]] = {
    "open_clip": (OPEN_CLIP,),
    "timm": (TIMM_TRAIN, TIMM_VALIDATE),
    "clip_benchmark": (CLIP_BENCHMARK,),
    "llava": (LLAVA,),
}


def convert(name: str, words: Sequence[str]) -> ConvertedRecipe:
    """Convert a command line of a tool to a recipe.

    Args:
        name: Name of the tool.
        words: The words of the command, or a single text that was pasted.

    Raises:
        UserError: If the tool or an option is unknown, or nothing in vfm does what the command does.
    """
    key = name.lower().replace("-", "_")
    if key not in TOOLS:
        raise UserError(f"expected a command of {', '.join(TOOLS)}, got {name}")
    tool, *others = TOOLS[key]
    for other in others:
        if any(map(other.programs.fullmatch, " ".join(words).split())):
            tool = other
    command = read_command_line(words, tool.programs)
    draft = Draft(command, tool.table.read(command.words))
    tool.convert(draft)
    return finished(draft)
