"""Whether the parts of a tuning fit one another, seen from their configurations alone."""

from __future__ import annotations

from vfm.config import UserError
from vfm.models.clip import ClipModel
from vfm.models.patch_features import vision_tower
from vfm_diva.adapter import NoAdapter
from vfm_diva.condition import Embedding
from vfm_diva.feedback import Feedback
from vfm_diva.generator import Generator
from vfm_diva.update import LastBlocks, WholeTower


def check_fit(clip: ClipModel, generator: Generator, how: Feedback) -> None:
    """Refuses parts of which a `TuneTask` cannot be made. Looks at no weights, so they may lie on the meta device.

    Raises:
        UserError: widths or sizes do not fit, or the CLIP model has no patch tokens or blocks and they are asked for.
    """
    generator.noise_shape_at(how.image_size or generator.image_size)
    width = how.condition.width(clip)
    if isinstance(how.adapter, NoAdapter):
        _check_own_way(clip, generator, how, width)
    if isinstance(how.update, WholeTower):
        return
    depth = vision_tower(clip).depth
    if isinstance(how.update, LastBlocks) and how.update.blocks > depth:
        raise UserError(f"update: the last {how.update.blocks} blocks are asked for; {clip.name} has {depth}")


def _check_own_way(clip: ClipModel, generator: Generator, how: Feedback, width: int) -> None:
    """Without an adapter, the generator must have a way of its own with tokens of this width."""
    wants, is_class = generator.wants, takes_class(clip, generator)
    if generator.condition_map or is_class:
        own = "a condition map" if generator.condition_map else "a class embedding"
        if not isinstance(how.condition, Embedding):
            raise UserError(f"the generator has {own}, which takes the embedding alone: set condition.type: embedding")
        if generator.condition_map:
            generator.condition_map.check_width(clip)
    elif wants.class_width:
        raise UserError(
            f"the generator's class embedding is of images with embeddings of width {wants.class_width // 2}; "
            f"{clip.name} makes {clip.embed_dim}: set adapter.type: linear"
        )
    elif width != wants.context_width:
        raise UserError(
            f"the generator has no condition map from a CLIP's joint space (its context has width "
            f"{wants.context_width}, the tokens of {clip.name} {width}): set adapter.type: linear"
        )


def takes_class(clip: ClipModel, generator: Generator) -> bool:
    """Whether the generator is an un-CLIP over embeddings as wide as this CLIP model's."""
    return generator.wants.class_width == 2 * clip.embed_dim


def needs_prompt(clip: ClipModel, generator: Generator, how: Feedback) -> bool:
    """Whether what is told is not complete without a prompt."""
    if how.combine != "replace":
        return True
    if not isinstance(how.adapter, NoAdapter) or generator.condition_map:
        return False
    return takes_class(clip, generator) or generator.wants.pooled_width > 0
