"""Whether a name from outside is that of a CLIP model or of an encoder alone."""

from __future__ import annotations

from pathlib import Path

import open_clip
import timm
from huggingface_hub import hf_hub_download

from vfm.config import UserError, did_you_mean
from vfm.models import presets  # noqa: F401  (registers the small architectures)
from vfm.models.clip_config import CONFIG_FILE
from vfm.models.sources import HUB, local_folder
from vfm.models.weights import load_state_dict


def is_encoder(source: str, pretrained: str | None) -> bool:
    """Whether a source is a timm encoder rather than a CLIP model; a name of both is what its tag is of.

    Raises:
        UserError: there is no such model.
    """
    if folder := local_folder(source):
        return not (folder / CONFIG_FILE).is_file() and '"architecture"' in _text(folder / "config.json")
    if source.startswith(HUB):
        return _encoder_on_hub(source.removeprefix(HUB))
    if pretrained and open_clip.get_pretrained_cfg(source.replace("/", "-"), pretrained):
        return False
    if timm.is_model(source.removeprefix("timm/").split(".")[0]):
        return True
    if Path(source).is_file():
        return not any(key.startswith(("visual.", "text")) for key in load_state_dict(source))
    known = [*open_clip.list_models(), *timm.list_models()]
    if source.replace("/", "-") not in known:
        raise UserError(f"{source}: no folder or file, and no model of open_clip or timm{did_you_mean(source, known)}")
    return False


def _encoder_on_hub(repo: str) -> bool:
    """Whether a repository holds timm's layout and not open_clip's; where it cannot be seen, import_clip says why."""
    try:
        hf_hub_download(repo, CONFIG_FILE)
    except Exception:  # not there, or no network: each has errors of its own
        try:
            return '"architecture"' in _text(Path(hf_hub_download(repo, "config.json")))
        except Exception:
            return False
    return False


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
