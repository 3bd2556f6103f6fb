"""Sources of pretrained models: `hf-hub:org/model`, `local-dir:folder`, a path, or a name in open_clip or timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import timm
from huggingface_hub import hf_hub_download, snapshot_download

from vfm.base import UserError, did_you_mean
from vfm.models import small_models  # noqa: F401  (registers the small architectures)
from vfm.models.clip.clip_config import CONFIG_FILE
from vfm.models.stages import FOLDER_PREFIX, HUB_PREFIX
from vfm.models.transformers_folders.encoders import is_transformers_encoder
from vfm.models.weights import load_state_dict
from vfm.storage.store_files import read_record

T = TypeVar("T")


def local_folder(source: str) -> Path | None:
    """Find the folder that a source names with `local-dir:` or by its path, if it names one.

    Raises:
        UserError: If the folder after `local-dir:` does not exist.
    """
    folder = Path(source.removeprefix(FOLDER_PREFIX))
    if source.startswith(FOLDER_PREFIX) and not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return folder if folder.is_dir() else None


def existing_folder(source: str) -> Path | None:
    """Find the folder that a source names, None for a model of the hub.

    Raises:
        UserError: If the source names neither.
    """
    folder = local_folder(source)
    if not folder and not source.startswith(HUB_PREFIX):
        raise UserError(f"{source}: no such folder; write a model of the hub as hf-hub:org/model")
    return folder


def model_folder(source: str, wanted: Sequence[str], ignored: Sequence[str] = ()) -> Path:
    """Find the folder of a model, downloaded to the cache if it is a model of the hub.

    Args:
        source: A folder, or `hf-hub:org/model`, with `@revision` for another than the newest.
        wanted: Patterns of the files to download.
        ignored: Patterns of the files among them that are not downloaded.

    Raises:
        UserError: If there is no such folder, or the download fails.
    """
    folder = existing_folder(source)
    if folder:
        return folder
    repo, revision = repository(source)
    files: dict[str, Any] = {"allow_patterns": list(wanted), "ignore_patterns": list(ignored), "revision": revision}
    return Path(fetch(source, lambda: snapshot_download(repo, **files)))


def repository(source: str) -> tuple[str, str | None]:
    """Split `hf-hub:org/model@revision` into repository and revision. None means the hub's newest."""
    repo, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    return repo, revision or None


def hub_record(source: str) -> dict[str, Any]:
    """Read `config.json` of a model of the hub; empty if it has none, or it cannot be downloaded."""
    repo, revision = repository(source)
    try:
        return read_record(Path(hf_hub_download(repo, "config.json", revision=revision)))
    except Exception:  # no such file, or no network; each has several exception types
        return {}


def weights_file_as_source(source: str | Mapping[str, Any], pretrained: str | None) -> Path | None:
    """Find the weights file that a source names without `pretrained`, if it names one."""
    if pretrained or not isinstance(source, str):
        return None
    file = Path(source)
    return file if file.is_file() else None


def check_weights_file(name: str) -> None:
    """Check that a file of weights exists.

    Raises:
        UserError: If the file does not exist.
    """
    if not Path(name).is_file():
        raise UserError(f"{name}: no such checkpoint file")


def fetch(name: str, download: Callable[[], T]) -> T:
    """Call `download`, and convert any of its many possible errors to a single line.

    Raises:
        UserError: If the download failed.
    """
    try:
        return download()
    except Exception as error:
        raise UserError(f"{name}: not on this machine and cannot be downloaded: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """Extract the first line of an exception's message, cut at 200 characters, to quote in a one-line error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def is_vision_source(source: str, pretrained: str | None) -> bool:
    """Check whether a source names a timm encoder rather than a CLIP model.

    Args:
        source: Name or folder of the model.
        pretrained: Tag of the weights. Where timm and open_clip share a name, a tag of open_clip decides for the CLIP
            model.

    Raises:
        UserError: If the model does not exist.
    """
    folder = local_folder(source)
    if folder:
        return not (folder / CONFIG_FILE).is_file() and _has_encoder(folder)
    if source.startswith(HUB_PREFIX):
        return _is_vision_repo(source.removeprefix(HUB_PREFIX))
    # Some names are both open_clip's and timm's. Weights by a tag are open_clip's.
    if pretrained and open_clip.get_pretrained_cfg(source.replace("/", "-"), pretrained):
        return False
    if timm.is_model(source.removeprefix("timm/").split(".")[0]):
        return True
    if Path(source).is_file():
        return not any(key.startswith(("visual.", "text")) for key in load_state_dict(source))
    known = [*open_clip.list_models(), *timm.list_models()]
    if source.replace("/", "-") not in known:
        raise UserError(f"{source}: no such folder, file, or model of open_clip or timm{did_you_mean(source, known)}")
    return False


def _is_vision_repo(repo: str) -> bool:
    """Check whether a repository of the hub holds an encoder and not open_clip's layout; False if it cannot be read.

    `import_clip` then reports why the repository cannot be read.
    """
    try:
        hf_hub_download(repo, CONFIG_FILE)
    except Exception:  # no such file, or no network; each has several exception types
        try:
            return _has_encoder(Path(hf_hub_download(repo, "config.json")).parent)
        except Exception:
            return False
    return False


def _has_encoder(folder: Path) -> bool:
    """Check whether a folder holds an encoder in timm's layout or in transformers'."""
    file = folder / "config.json"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return '"architecture"' in text or is_transformers_encoder(folder)
