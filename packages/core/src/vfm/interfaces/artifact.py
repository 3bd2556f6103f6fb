"""Artifacts: typed folders on disk, the only way to pass data from one stage to the next.

`artifact.json` holds the facts. Other files hold the bulk of the data, as safetensors, parquet or npy, never as pickle.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import PrivateAttr, ValidationError

from vfm.base import Record, UserError, error_lines, load_function
from vfm.storage.folder_checks import check_folder
from vfm.storage.store_files import read_json

FACTS_FILE = "artifact.json"
MANIFEST_FILE = "manifest.json"  # how a published artifact was made, with sizes and hashes of its files


class Artifact(Record):
    """A typed folder.

    The fields are its facts, and `path` is the folder.
    """

    types: ClassVar[dict[str, type["Artifact"]]] = {}
    caches: ClassVar[tuple[str, ...]] = ()  # folders that can be rebuilt, so they may change after publishing
    _path: Path = PrivateAttr(default=Path())

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        other = Artifact.types.setdefault(cls.__name__, cls)
        if other.__module__ != cls.__module__:
            raise TypeError(
                f"two artifact types are named {cls.__name__}, in {other.__module__} and in {cls.__module__}"
            )
        Artifact.types[cls.__name__] = cls

    @property
    def path(self) -> Path:
        """Folder of the artifact."""
        return self._path

    @classmethod
    def create(cls, directory: Path, **facts: Any) -> Self:
        """Write the facts into `directory` and build the artifact. The caller writes the bulk."""
        artifact = cls(**facts)
        artifact._path = directory
        directory.mkdir(parents=True, exist_ok=True)
        record = {"type": cls.__name__, **artifact.model_dump(mode="json")}
        (directory / FACTS_FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return artifact

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True) -> Self:
        """Load an artifact of this type or a subtype.

        Args:
            directory: Its folder.
            verify: Compare the hashes of its files with its manifest.

        Raises:
            UserError: If the folder has no artifact, has one of another type or of a package that is not installed, or
                a file is missing or damaged.
        """
        directory = Path(directory)
        if not (directory / FACTS_FILE).exists():
            raise UserError(f"{directory}: no artifact found ({FACTS_FILE} is missing)")
        record = read_json(directory / FACTS_FILE)
        name = record.pop("type", None) if isinstance(record, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{directory / FACTS_FILE}: expected the facts of an artifact, got no 'type'")
        if name not in Artifact.types:
            load_function("vfm.interfaces.plugins:import_stages")()  # it may be defined by a plugin's stages
        artifact_type = Artifact.types.get(name)
        if artifact_type is None:
            raise UserError(f"{directory}: unknown artifact type {name!r}; is the package that makes it installed?")
        if not issubclass(artifact_type, cls):
            raise UserError(f"{directory}: expected {cls.__name__}, got {name}")
        try:
            artifact = artifact_type(**record)
        except ValidationError as error:
            where, line = error_lines(error, artifact_type)[0]
            raise UserError(f"{directory / FACTS_FILE}: {'.'.join(map(str, where))}: {line}") from None
        artifact._path = directory
        if verify:
            artifact.verify()
        return artifact

    def verify(self, on_much: Callable[[int], None] = lambda count: None) -> None:
        """Compare the hashes of the files with the manifest, unless this process has done so.

        Args:
            on_much: Called with the number of bytes to read if there are many.

        Raises:
            UserError: If a file is missing or damaged.
        """
        check_folder(self.path, MANIFEST_FILE, on_much=on_much)

    def reference(self, base: Path) -> str:
        """Build an address for the facts of another artifact in `base`.

        It is relative in the same store, and otherwise absolute.
        """
        same_store = self.path.resolve().parent == base.resolve().parent
        return f"../{self.path.name}" if same_store else str(self.path.resolve())

    def linked(self, address: str) -> Path:
        """Resolve an address that `reference` built for this artifact to its folder."""
        return self.path / address  # an absolute address replaces the path
