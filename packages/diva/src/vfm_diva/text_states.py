"""What a CLIP's text tower says of each token of a caption: the context of a text-to-image prior."""

# B batch, L context length, W width of the text tower

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vfm.config import UserError
from vfm.models.clip import ClipModel


def states_width(clip: ClipModel) -> int:
    """W; looks at no weights.

    Raises:
        UserError: the text tower is not open_clip's own.
    """
    tower: Any = getattr(clip.module, "text", clip.module)
    if not hasattr(tower, "ln_final") or not hasattr(clip.module, "forward_intermediates"):
        raise UserError(f"{clip.name}: states of single tokens are read from open_clip's own text towers alone")
    return int(tower.ln_final.weight.shape[0])


def text_states(module: nn.Module, tokens: Tensor) -> Tensor:
    """The states of captions (B, L) after the tower's final norm, float32 (B, L, W); padding has states as well."""
    clip: Any = module
    said = clip.forward_intermediates(
        text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True, text_output_fmt="NLC"
    )
    states: Tensor = said["text_intermediates"][-1]
    return states.float()
