"""Read released CLIP checkpoints that hold other models too, have a prefix, or hold a single tower.

    DIVA       as released: the names of open_clip, which are OpenAI's. As its script saves: with the prefix
               `class_model.model.`, and next to the weights of Stable Diffusion and of the adapter
    un2CLIP    the vision tower, with or without `visual.` (for SigLIP `visual.trunk.`) before its keys
    GenHancer  a folder of transformers, see `hugging_face` and `hugging_face_siglip_import`

Sources: the public repositories of DIVA (arXiv:2407.20171), un2CLIP (arXiv:2505.24517), GenHancer (arXiv:2503.19480).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from vfm.base import UserError
from vfm.models.clip.clip import ClipModel, build_clip
from vfm.models.weight_transfer import KeyReport

VISUAL = "visual."
# In order of preference if several fit equally well.
PREFIXES = ("", "model.", "module.", "class_model.model.")
OTHER_MODELS = ("unet.", "vae.", "text_encoder.", "visual_proj.", "final_fc.", "class_model.final_fc.")
_TEXT = ("text.", "transformer.", "token_embedding.", "ln_final.")
_TEXT_NAMES = ("positional_embedding", "text_projection")
LOGIT_SCALE = "logit_scale"
_SCALES = (LOGIT_SCALE, "logit_bias")
# A key of a vision tower that is saved without the rest of its CLIP model -> the prefix that it has in one.
_LONE_TOWERS = {
    "class_embedding": VISUAL,  # open_clip's own
    "trunk.patch_embed.proj.weight": VISUAL,  # timm's, in open_clip
    "attn_pool.latent": f"{VISUAL}trunk.",  # SigLIP's, in timm
}


def clip_tensors(tensors: Mapping[str, Tensor], report: KeyReport) -> dict[str, Tensor]:
    """Select the tensors of the CLIP model in a file, under their names in open_clip.

    A file that holds nothing else is returned unchanged, without a report.

    Args:
        tensors: Tensors of the file.
        report: Filled with the keys that are taken, and with the keys of other models. Those are left out.
    """
    for key, prefix in _LONE_TOWERS.items():
        if key in tensors:
            return _renamed({name: f"{prefix}{name}" for name in tensors}, tensors, report)
    prefix = max(PREFIXES, key=lambda candidate: _count_clip_keys(candidate, tensors))
    if prefix:
        names = {f"{prefix}{name}": name for name in _under(prefix, tensors)}
    else:
        names = {name: name for name in tensors if not name.startswith(OTHER_MODELS)}
        if len(names) == len(tensors):
            return dict(tensors)
    return _renamed(names, tensors, report)


def missing_part(names: Iterable[str]) -> str:
    """Find the missing part of a CLIP model with a vision tower.

    Returns:
        The text tower, the logit scale, or "" if nothing is missing.
    """
    names = set(names)
    if not any(name.startswith(VISUAL) for name in names):  # another layout, which open_clip may know
        return ""
    has_text = any(name.startswith(_TEXT) or name in _TEXT_NAMES for name in names)
    if not has_text:
        return "text tower"
    return "" if LOGIT_SCALE in names else LOGIT_SCALE


def with_text_of(other: ClipModel | None, model: ClipModel) -> ClipModel:
    """Combine a model with the text tower, logit scale and preprocessing of another model, if there is one.

    Raises:
        UserError: See `tensors_with_text_of`. Also if the text towers have other keys.
    """
    if other is None:
        return model
    combined = build_clip({**model.config, "text_cfg": other.config["text_cfg"]})
    combined.name = model.name
    combined.preprocess = other.preprocess
    combined.folder = other.folder
    try:
        combined.module.load_state_dict(tensors_with_text_of(other, model.module.state_dict(), model.name))
    except RuntimeError:
        raise UserError(f"text_from: the towers of {other.name} and {model.name} do not fit together") from None
    combined.module.eval()
    return combined


def tensors_with_text_of(other: ClipModel, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Combine the vision tower of `tensors` with everything else of another model.

    Args:
        other: Model with the text tower and the scalars.
        tensors: Tensors of the vision tower.
        where: Their file, for errors.

    Raises:
        UserError: If the vision towers of the two models have different shapes.
    """
    theirs: dict[str, Tensor] = other.module.state_dict()
    combined = {}
    for key, value in tensors.items():
        if not key.startswith(VISUAL):
            continue
        if key in theirs and theirs[key].shape != value.shape:
            shapes = f"{tuple(value.shape)}, that of text_from ({other.name}) {tuple(theirs[key].shape)}"
            raise UserError(f"{where}: its {key} is {shapes}")
        combined[key] = value
    for key, value in theirs.items():
        if not key.startswith(VISUAL):
            combined[key] = value
    return combined


def _count_clip_keys(prefix: str, tensors: Mapping[str, Tensor]) -> int:
    return sum(_is_clip(name) for name in _under(prefix, tensors))


def _is_clip(name: str) -> bool:
    return name.startswith((VISUAL, *_TEXT)) or name in (*_TEXT_NAMES, *_SCALES)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> list[str]:
    return [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]


def _renamed(names: Mapping[str, str], tensors: Mapping[str, Tensor], report: KeyReport) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, ours in names.items():
        if name == ours:
            report.taken.append(name)
        else:
            report.renamed[name] = ours
        renamed[ours] = tensors[name]
    for name in tensors:
        if name not in names:
            report.dropped[name] = "not of the CLIP model"
    return renamed
