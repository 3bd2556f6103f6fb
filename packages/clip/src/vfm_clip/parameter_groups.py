"""Learning rates and weight decay by tower and layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vfm.models import ClipModel
from vfm.train import ParamGroup
from vfm_clip.towers import TowerName, tower_groups

__all__ = ["TowerRates", "parameter_groups"]

# Learned tables of positions and kinds of tokens in Hugging Face's text towers, which declare no exemptions themselves.
TABLES = ("position_embeddings", "token_type_embeddings", "relative_attention_bias", "embed_positions")


@dataclass(frozen=True)
class TowerRates:
    """How fast a tower learns.

    lr_scale: factor of the training's learning rate.
    layer_decay: learning rate of a group as a factor of that of the next one; the last group has the full rate.
    weight_decay: None for the optimizer's.
    """

    lr_scale: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float | None = None


def parameter_groups(
    clip: ClipModel, exempt: Collection[str], vision: TowerRates, text: TowerRates
) -> list[ParamGroup]:
    """Return the trained parameters of a model; vectors, scalars, tables of positions and `exempt` are not decayed.

    Args:
        clip: the model.
        exempt: names in `clip.module` of further weights without decay, as its parts declare them.
        vision: the vision tower's rates.
        text: the text tower's rates.

    Sources: Sun et al. 2023, EVA-CLIP (arXiv:2303.15389). EVA's code gives the final norm the rate of the projection;
    here, as in timm, it has that of the last block. What is not decayed is the rule of open_clip's main branch
    (4.2.0.dev0, `make_wd_exclude`); its release 3.3 decays all matrices.
    """
    rates: dict[str, tuple[float, float | None]] = {}
    towers: dict[TowerName, TowerRates] = {"image": vision, "text": text}
    for tower, rate in towers.items():
        for distance, names in enumerate(reversed(tower_groups(clip, tower))):
            rates |= dict.fromkeys(names, (rate.lr_scale * rate.layer_decay**distance, rate.weight_decay))
    groups: dict[tuple[float, float | None], ParamGroup] = {}
    for name, parameter in clip.module.named_parameters():
        if parameter.requires_grad:
            lr_scale, decay = rates.get(name, (1.0, None))  # the temperature and the bias have no rates of their own
            plain = parameter.ndim < 2 or name in exempt or any(table in name for table in TABLES)
            key = (lr_scale, 0.0 if plain else decay)
            groups.setdefault(key, ParamGroup([], *key)).params.append(parameter)
    # Decayed groups first, as in `Task.parameter_groups`: checkpoints store the optimizer's state in this order.
    return sorted(groups.values(), key=lambda group: group.weight_decay == 0.0)
