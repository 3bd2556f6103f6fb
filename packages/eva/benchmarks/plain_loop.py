"""The baseline: EVA's pre-training written by hand with timm and open_clip, without vfm."""

# B batch, N patches, D student width, T target width

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm_eva.targets.images import EvaInputs

Pixels = Callable[[Tensor], Tensor]


class PlainLoop:
    """Trains student, mask token and head with AdamW. The teacher is an open_clip vision transformer.

    Args:
        student: a timm `Eva`.
        head: linear layer from D to T.
        mask_token: (D,).
        visual: the teacher's `visual`.
        pixels: converts uint8 images to model inputs, for the student and for the teacher.
    """

    def __init__(
        self, student: Any, head: nn.Linear, mask_token: nn.Parameter, visual: Any, pixels: tuple[Pixels, Pixels]
    ) -> None:
        self.student, self.head, self.mask_token, self.visual, self.pixels = student, head, mask_token, visual, pixels
        named = [*student.named_parameters(), *head.named_parameters(), ("mask_token", mask_token)]
        plain = {*student.no_weight_decay()}
        decayed = [param for name, param in named if param.ndim > 1 and name not in plain]
        others = [param for name, param in named if not (param.ndim > 1 and name not in plain)]
        self.params = [*decayed, *others]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def step(self, inputs: EvaInputs) -> float:
        """Take an optimizer step, and return the loss."""
        loss = self.loss(inputs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 3.0)
        self.optimizer.step()
        return loss.item()

    def loss(self, inputs: EvaInputs) -> Tensor:
        """Compute the negative cosine on masked patches."""
        images, bool_mask, student = inputs.images, inputs.bool_mask, self.student
        teacher_images = images if inputs.teacher_images is None else inputs.teacher_images
        with torch.no_grad():
            _, patch_tokens = self.visual(self.pixels[1](teacher_images))
            target = (patch_tokens @ self.visual.proj)[bool_mask]
        tokens = student.patch_embed(self.pixels[0](images))
        tokens = torch.where(bool_mask[..., None], self.mask_token, tokens)
        tokens, rope = student._pos_embed(tokens)
        for block in student.blocks:
            tokens = block(tokens, rope=rope)
        tokens = student.fc_norm(student.norm(tokens))[:, student.num_prefix_tokens :]
        return -F.cosine_similarity(self.head(tokens[bool_mask]).float(), target.float(), dim=-1).mean()
