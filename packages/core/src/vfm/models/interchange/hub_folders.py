"""Files of a model of the hub, downloaded to a folder of the cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from vfm.base import UserError
from vfm.models.clip import clip_config
from vfm.models.clip.model_sources import first_line
from vfm.models.interchange import hugging_face
from vfm.models.stages import HUB_PREFIX
from vfm.models.transformers_folders.encoders import is_transformers_encoder
from vfm.models.transformers_folders.files import TOKENIZER_FILES
from vfm.models.transformers_folders.processor import PROCESSOR_FILES
from vfm.models.weights import INDEX_SUFFIX, weights_shards

# configuration -> the weights, of which the first that exist are taken, and files that a repository may have
_LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    clip_config.CONFIG_FILE: (clip_config.WEIGHTS_FILES, ()),
    hugging_face.CONFIG_FILE: (hugging_face.WEIGHTS_FILES, (*PROCESSOR_FILES, *TOKENIZER_FILES)),
}


def clip_folder_of_hub(repo: str) -> Path:
    """Download a CLIP model in open_clip's layout if the repository has it, otherwise in Hugging Face's.

    Raises:
        UserError: If there is no such repository, or no network.
    """
    repository = _Repository(repo)
    for config_name, (weights_names, optional) in _LAYOUTS.items():
        config = repository.fetch(config_name)
        if config:
            for name in optional:
                repository.fetch(name)
            _fetch_weights(repository, weights_names)
            return config.parent
    # "Not in the cache and no network" explains more than a missing file.
    errors = repository.errors
    causes = [error for error in errors if isinstance(error, LocalEntryNotFoundError)] or errors[-1:]
    raise UserError(f"{HUB_PREFIX}{repo}: cannot be downloaded: {first_line(causes[0])}")


def encoder_folder_of_hub(repo: str) -> Path | None:
    """Download a vision encoder in transformers' layout.

    The result is None if the repository has another layout, or cannot be read.
    """
    repository = _Repository(repo)
    config = repository.fetch(hugging_face.CONFIG_FILE)
    if not config or not is_transformers_encoder(config.parent):
        return None
    for name in PROCESSOR_FILES:
        repository.fetch(name)
    _fetch_weights(repository, hugging_face.WEIGHTS_FILES)
    return config.parent


class _Repository:
    """A repository, read from the cache alone once the network fails: each further attempt takes half a minute."""

    def __init__(self, name: str) -> None:
        self.name, self.offline = name, False
        self.errors: list[Exception] = []

    def fetch(self, file: str) -> Path | None:
        """Download a file.

        The result is None if the repository does not have it, or there is no network.
        """
        try:
            return Path(hf_hub_download(self.name, file, local_files_only=self.offline))
        except Exception as error:  # both have several exception types
            self.errors.append(error)
            self.offline = self.offline or isinstance(error, LocalEntryNotFoundError)
            return None


def _fetch_weights(repository: _Repository, names: tuple[str, ...]) -> None:
    for name in names:
        file = repository.fetch(name)
        if file and name.endswith(INDEX_SUFFIX):
            for shard in weights_shards(file):
                repository.fetch(shard.name)
        if file:
            return
