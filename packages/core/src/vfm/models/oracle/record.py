"""The differences between an imported model and its library, in the manifest of the import. Does not import torch."""

from __future__ import annotations

from pathlib import Path

from vfm.interfaces import MANIFEST_FILE
from vfm.storage.integrity import read_sealed

IMPORTS = ("models.clip", "models.vision")  # kinds of stages that compare
PREFIX = "import"


def metric_name(library: str, difference: str) -> str:
    """Name the metric of a difference: `import/open_clip/features`."""
    return f"{PREFIX}/{library}/{difference}"


def recorded_differences(folder: Path) -> str:
    """Describe in a line how an imported model differs from its library.

    The line is empty if the model was not imported.

    Args:
        folder: Folder of the artifact.

    Raises:
        UserError: If its manifest is damaged.
    """
    file = folder / MANIFEST_FILE
    manifest = read_sealed(file, "kind", "numbers") if file.is_file() else {}
    if manifest.get("kind") not in IMPORTS:
        return ""
    differences: dict[str, float] = {}
    libraries = set()
    for name, value in manifest["numbers"].items():
        prefix, *middle, difference = name.split("/")
        if prefix == PREFIX and middle:
            libraries.add(middle[0])
            differences[difference.replace("_", " ")] = value
    if not differences:
        return "not compared with the library that wrote it when it was imported"
    shown = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
    return f"differences to {', '.join(libraries)} when it was imported: {shown}"
