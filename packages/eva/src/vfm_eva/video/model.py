"""A vision transformer for clips, with joint, divided or per-frame attention.

Sources: Fang et al. 2022, EVA (arXiv:2211.07636), section 2.2.2, and its released code for joint attention with
positions that start tiled. Bertasius et al. 2021, TimeSformer (arXiv:2102.05095) for divided attention. Arnab et al.
2021, ViViT (arXiv:2103.15691) for tubelets and the repeated patch embedding.
"""

# B clips, T frames, F = T / tubelet times, N patches of a frame, P prefix tokens, D width, C classes

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vfm.eval import AttentiveHead
from vfm.plugin import UserError
from vfm_eva.dense.trunks import Trunk, unrotated_rows
from vfm_eva.video.stages import VideoModel
from vfm_eva.video.time import rotated_in_time


class VideoTransformer(nn.Module):
    """A clip classifier around a timm encoder.

    The encoder keeps its parameters and their names. With a single frame the classifier equals the encoder as an image
    classifier. While all frames have equal positions, the order of frames does not change the logits.

    Args:
        visual: timm's vision transformer with its head and pooling, or without a head for attentive pooling.
        num_frames: Frames of a clip, T.
        settings: Attention, time, tubelets and pooling.
        num_classes: Number of classes of the attentive head, C.
        seed: Seed of new weights.

    Raises:
        UserError: If the encoder lacks a part that the settings need.
    """

    def __init__(
        self, visual: nn.Module, num_frames: int, settings: VideoModel, num_classes: int, seed: int = 0
    ) -> None:
        super().__init__()
        trunk = Trunk(visual)
        self._trunk = [trunk]  # in a list, so that its modules are registered once
        self.visual: Any = visual
        self.settings = settings
        self.num_frames = num_frames
        self.num_classes = num_classes
        self.times = num_frames // settings.tubelet
        self.grad_checkpointing = False
        weight = next(visual.parameters())
        self.positions = self.time = self.tubelets = self.temporal = self.attentive = None
        start = trunk.positions(trunk.grid)
        if settings.time == "frames":
            if start is None:
                raise UserError(f"{trunk.name}: it has no learned positions to tile; set video.time to table or rope")
            self.positions = nn.Parameter(start.detach().repeat(self.times, 1, 1))  # (F, N, D)
        if settings.time == "rope" and getattr(visual, "rope", None) is None:
            raise UserError(f"{trunk.name}: it has no rotary positions; set video.time to frames or table")
        if settings.time == "table":
            self.time = nn.Parameter(weight.new_zeros(self.times, 1, trunk.width))
        if settings.tubelet > 1:
            kernel = visual.patch_embed.proj.weight.detach()[:, :, None]  # type: ignore[union-attr, operator]
            # Divided by the number of frames, so that equal frames give the image's embedding.
            self.tubelets = nn.Parameter(kernel.repeat(1, 1, settings.tubelet, 1, 1) / settings.tubelet)
        if settings.attention == "divided":
            self.temporal = nn.ModuleList(_TemporalAttention(block) for block in trunk.blocks)
        if settings.pool == "token" and not trunk.prefix().shape[1]:
            raise UserError(f"{trunk.name}: it has no class token; set video.pool to mean or attentive")
        if settings.pool == "attentive":
            self.attentive = AttentiveHead(trunk.width, num_classes, torch.Generator().manual_seed(seed))
            self.attentive_time = nn.Parameter(weight.new_zeros(self.times, 1, trunk.width))

    @property
    def trunk(self) -> Trunk:
        """The parts of the encoder."""
        return self._trunk[0]

    def forward(self, clips: Tensor) -> Tensor:
        """Compute the score of each class, (B, C).

        Args:
            clips: Normalised frames, (B, T, 3, H, W).
        """
        tokens = self.tokens(clips)
        if self.attentive is None:
            logits: Tensor = self.visual.forward_head(tokens)
            return logits
        patches = tokens[:, tokens.shape[1] - self.times * self._num_patches :]
        timed = patches.unflatten(1, (self.times, -1))  # type: ignore[no-untyped-call]
        if self.settings.time != "none":
            timed = F.layer_norm(timed, timed.shape[-1:]) + self.attentive_time
        scores: Tensor = self.attentive(timed.flatten(1, 2))
        return scores

    def features(self, clips: Tensor) -> Tensor:
        """Compute the pooled feature of each clip before the head, (B, D). With an attentive head: the mean patch."""
        tokens = self.tokens(clips)
        if self.attentive is not None:
            return tokens[:, tokens.shape[1] - self.times * self._num_patches :].mean(dim=1)
        pooled: Tensor = self.visual.forward_head(tokens, pre_logits=True)
        return pooled

    def tokens(self, clips: Tensor) -> Tensor:
        """Compute prefix tokens and patches of all frames after the encoder's final norm, (B, P + F N, D)."""
        patches, joint = self._embedded(clips), self.settings.attention == "joint"  # (B, F, N, D)
        batch = len(patches)
        values = patches.flatten(1, 2) if joint else patches.flatten(0, 1)
        prefix = self.trunk.prefix().to(values.dtype)
        values = self.trunk.before_blocks(torch.cat([prefix.expand(len(values), -1, -1), values], dim=1))
        rope = self._rope(prefix.shape[1], joint)
        num_prefix = prefix.shape[1]
        for number in range(len(self.trunk.blocks)):
            if self.grad_checkpointing and self.training:
                values = checkpoint(self._block, number, values, rope, num_prefix, use_reentrant=False)
            else:
                values = self._block(number, values, rope, num_prefix)
        if not joint:  # each frame has its prefix tokens, and the clip gets their mean
            frames = values.unflatten(0, (batch, self.times))  # type: ignore[no-untyped-call]
            values = torch.cat([frames[:, :, :num_prefix].mean(dim=1), frames[:, :, num_prefix:].flatten(1, 2)], dim=1)
        normed: Tensor = self.visual.norm(values)
        return normed

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass to save memory."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """List the position parameters. They are not decayed."""
        return {"positions", "time", "attentive_time"}

    @torch.no_grad()
    def start_from_encoder(self) -> None:
        """Initialize the added parts from the encoder.

        Positions are tiled, patches repeated, and the attention is copied.
        """
        image_positions = self.trunk.positions(self.trunk.grid)
        if self.positions is not None and image_positions is not None:
            self.positions.copy_(image_positions.expand_as(self.positions))
        if self.tubelets is not None:
            weight: Tensor = self.visual.patch_embed.proj.weight
            self.tubelets.copy_(weight[:, :, None].expand_as(self.tubelets) / self.settings.tubelet)
        for added, block in zip(self.temporal or (), self.trunk.blocks, strict=False):
            added.copy_from(block)  # type: ignore[operator]

    @torch.no_grad()
    def write_back(self) -> None:
        """Set the encoder's positions and patches to the mean over frames, so that it takes images."""
        if self.positions is not None:
            pos_embed = self.visual.pos_embed
            pos_embed[:, pos_embed.shape[1] - self._num_patches :] = self.positions.mean(dim=0)
        if self.tubelets is not None:
            self.visual.patch_embed.proj.weight.copy_(self.tubelets.sum(dim=2))

    @property
    def _num_patches(self) -> int:
        rows, columns = self.trunk.grid
        return rows * columns

    def _embedded(self, clips: Tensor) -> Tensor:
        """Embed the patches, and add positions in space and time, (B, F, N, D)."""
        if self.tubelets is None:
            maps = self.trunk.patches(clips.flatten(0, 1))
            maps = maps.view(*clips.shape[:2], *maps.shape[1:])  # (B, T, D, rows, columns)
        else:
            embed = self.visual.patch_embed
            stride = (self.settings.tubelet, *embed.patch_size)
            maps = F.conv3d(clips.transpose(1, 2), self.tubelets, embed.proj.bias, stride).transpose(1, 2)
            maps = embed.norm(maps.movedim(2, -1)).movedim(-1, 2)
        values = maps.flatten(3).transpose(2, 3)
        if self.positions is None:
            positions = self.trunk.positions(self.trunk.grid)
        else:
            positions = self.positions
        if positions is not None:
            values = values + positions
        timed: Tensor = values if self.time is None else values + self.time
        return timed

    def _block(self, number: int, values: Tensor, rope: Tensor | None, num_prefix: int) -> Tensor:
        if self.temporal is not None:
            clips = values.unflatten(0, (-1, self.times))  # type: ignore[no-untyped-call]
            patches = self.temporal[number](clips[:, :, num_prefix:])
            values = torch.cat([clips[:, :, :num_prefix], patches], dim=2).flatten(0, 1)
        return self.trunk.apply_block(number, values, rope)

    def _rope(self, num_prefix: int, joint: bool) -> Tensor | None:
        """Compute rotary positions.

        All frames have the same spatial angles. With `time: rope`, angles of time are added.
        """
        rope = self.trunk.rotary(self.trunk.grid)
        if rope is None:
            return None
        if joint and self.settings.time == "rope":
            rope = rotated_in_time(rope, self.times)
        elif joint:
            rope = torch.cat([rope] * self.times, dim=-2)
        if not num_prefix:
            return rope
        return unrotated_rows(rope, num_prefix)


class _TemporalAttention(nn.Module):
    """Attention of each patch over time: a copy of the block's attention with an output layer that starts at zero."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm = deepcopy(block.norm1)
        self.attn = deepcopy(block.attn)
        width = self.norm.weight.shape[0]
        self.out = nn.Linear(width, width, device=self.norm.weight.device)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def copy_from(self, block: Any) -> None:
        """Copy the weights of the block's norm and attention."""
        self.norm.load_state_dict(block.norm1.state_dict())
        self.attn.load_state_dict(block.attn.state_dict())

    def forward(self, patches: Tensor) -> Tensor:
        """Attend over time and add the result to the patches, (B, F, N, D)."""
        by_patch = patches.transpose(1, 2)  # (B, N, F, D)
        attended = self.out(self.attn(self.norm(by_patch.flatten(0, 1)))).unflatten(0, by_patch.shape[:2])
        added: Tensor = patches + attended.transpose(1, 2)
        return added
