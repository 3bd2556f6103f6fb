"""LoRA in a vision tower, through peft: added before training, merged after it.

Source: Hu et al. 2021, LoRA (arXiv:2106.09685).
"""

from __future__ import annotations

import torch
from torch import nn

from vfm.config import UserError
from vfm.models.patch_features import vision_tower

BIAS_APART = "qkv_bias_separate"  # a timm attention's switch


class LowRank:
    """Low-rank changes of every linear layer in a tower's blocks; nothing else of the tower is trained then.

    Args:
        visual: changed in place.
        rank: of each change.
        alpha: a change is alpha / rank times the product of its factors.
        seed: draws the first factors; the second ones are 0, so that nothing changes at first.

    Raises:
        UserError: the tower has no blocks, or peft is not installed.
    """

    def __init__(self, visual: nn.Module, *, rank: int, alpha: int, seed: int = 0) -> None:
        try:
            from peft import LoraConfig
            from peft.tuners.lora import LoraModel
        except ImportError:
            raise UserError("update: {type: lora} needs peft: pip install 'vfm-diva[lora]'") from None
        self.visual = visual
        # EVA's fused projection adds its bias by hand and never calls the layer, unless it is told to add it after.
        self.fused = [part for part in visual.modules() if getattr(part, BIAS_APART, None) is False]
        for part in self.fused:
            setattr(part, BIAS_APART, True)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear_layers(visual))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = LoraModel(visual, config, "default")
        self.model.eval()

    @torch.no_grad()
    def restore(self, old: nn.Module) -> None:
        """Makes the weights below the changes those of the tower as it was, bit for bit.

        peft adds a change to an attention's weights before it is called and takes it off afterwards, which rounds.
        """
        values = old.state_dict()
        for name, value in self.visual.state_dict().items():
            if "lora_" not in name:
                value.copy_(values[name.replace(".base_layer", "")])

    def merge(self, old: nn.Module) -> None:
        """Makes the tower a plain one again: its old weights plus the changes."""
        self.restore(old)
        self.model.merge_and_unload()
        for part in self.fused:
            setattr(part, BIAS_APART, False)


def linear_layers(visual: nn.Module) -> list[str]:
    """Names of the linear layers in a tower's blocks; torch's own attention counts as one, with both of its."""
    inside = {id(part) for block in vision_tower(visual).blocks for part in block.modules()}
    whole = [
        name for name, part in visual.named_modules() if id(part) in inside and isinstance(part, nn.MultiheadAttention)
    ]
    single = [name for name, part in visual.named_modules() if id(part) in inside and isinstance(part, nn.Linear)]
    return whole + [name for name in single if name.rpartition(".")[0] not in whole]
