"""GenHancer's lightweight denoiser: equal to plain formulas, trained from scratch on images alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diva_toy import prior_config, run, tune_config, weights
from vfm.data.pairs.stages import Images
from vfm.interfaces import ImageDataset, ImagesPanel, TablePanel, load_panels
from vfm.models import load_clip
from vfm.plugin import ClipCheckpoint, Pool, UserError
from vfm_diva import FlowTransformer
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.generator import load_generator
from vfm_diva.generator.networks import predict

HEADS, WIDTH = 2, 16
NETWORK = FlowTransformer(double_blocks=2, single_blocks=2, num_heads=HEADS, head_width=WIDTH, vector_width=12)


class PlainFlow:
    """The transformer from its formulas, one sample and one head at a time where that is plainer."""

    def __init__(self, weights: dict[str, Tensor], axes: tuple[int, int, int]) -> None:
        self.w, self.axes = weights, axes

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def mlp(self, first: str, second: str, x: Tensor, act: Any) -> Tensor:
        return self.linear(second, act(self.linear(first, x)))

    def heads(self, name: str, norm: str, x: Tensor) -> Tensor:
        """Project tokens (N, D) to heads (H, N, D / H), each scaled to a root mean square of 1 and by a weight."""
        q = self.linear(name, x).unflatten(-1, (HEADS, WIDTH)).transpose(0, 1)
        return q / (q.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{norm}.weight"]

    def rotate(self, q: Tensor, places: Tensor) -> Tensor:
        """Rotate pairs of channels by angles that grow with the index, row and column of a token."""
        angles = []
        for axis, width in enumerate(self.axes):
            rates = 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
            angles.append(places[:, axis, None].double() * rates)
        turn = torch.cat(angles, dim=1).float()  # (N, D / H / 2)
        even, odd = q[..., 0::2], q[..., 1::2]
        turned = (even * turn.cos() - odd * turn.sin(), even * turn.sin() + odd * turn.cos())
        return torch.stack(turned, dim=-1).flatten(-2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
        q, k = self.rotate(q, places), self.rotate(k, places)
        mixed = (q @ k.transpose(1, 2) / math.sqrt(WIDTH)).softmax(dim=-1) @ v
        return mixed.transpose(0, 1).flatten(1)

    def value(self, name: str, x: Tensor) -> Tensor:
        return self.linear(name, x).unflatten(-1, (HEADS, WIDTH)).transpose(0, 1)

    def modulation(self, name: str, vector: Tensor, parts: int) -> tuple[Tensor, ...]:
        return self.linear(name, F.silu(vector)).chunk(parts)

    @staticmethod
    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def __call__(self, noisy: Tensor, time: float, tokens: Tensor, pooled: Tensor) -> Tensor:
        """Denoise one sample, (C, h, w), at a time from 0 to 1000."""
        channels, height, width = noisy.shape
        squares, rows = [], []
        for row in range(height // 2):
            for column in range(width // 2):
                squares.append(noisy[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten())
                rows.append([0.0, row, column])
        gelu = lambda x: F.gelu(x, approximate="tanh")  # noqa: E731
        rates = torch.exp(-math.log(10000) * torch.arange(128) / 128) * time
        code = torch.cat([rates.cos(), rates.sin()])
        vector = self.mlp(
            "time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2", code, F.silu
        )
        vector = vector + self.mlp(
            "time_text_embed.text_embedder.linear_1", "time_text_embed.text_embedder.linear_2", pooled, F.silu
        )
        image, context = self.linear("x_embedder", torch.stack(squares)), self.linear("context_embedder", tokens)
        places = torch.cat([torch.zeros(len(context), 3), torch.tensor(rows)])
        split = len(context)
        for number in range(NETWORK.double_blocks):
            block = f"transformer_blocks.{number}."
            own = self.modulation(f"{block}norm1.linear", vector, 6)
            other = self.modulation(f"{block}norm1_context.linear", vector, 6)
            x, c = self.norm(image, own[0], own[1]), self.norm(context, other[0], other[1])
            a = f"{block}attn."
            q = torch.cat(
                [self.heads(f"{a}add_q_proj", f"{a}norm_added_q", c), self.heads(f"{a}to_q", f"{a}norm_q", x)], dim=1
            )
            k = torch.cat(
                [self.heads(f"{a}add_k_proj", f"{a}norm_added_k", c), self.heads(f"{a}to_k", f"{a}norm_k", x)], dim=1
            )
            v = torch.cat([self.value(f"{a}add_v_proj", c), self.value(f"{a}to_v", x)], dim=1)
            mixed = self.attend(q, k, v, places)
            image = image + own[2] * self.linear(f"{a}to_out.0", mixed[split:])
            context = context + other[2] * self.linear(f"{a}to_add_out", mixed[:split])
            image = image + own[5] * self.mlp(
                f"{block}ff.net.0.proj", f"{block}ff.net.2", self.norm(image, own[3], own[4]), gelu
            )
            context = context + other[5] * self.mlp(
                f"{block}ff_context.net.0.proj",
                f"{block}ff_context.net.2",
                self.norm(context, other[3], other[4]),
                gelu,
            )
        both = torch.cat([context, image])
        for number in range(NETWORK.single_blocks):
            block = f"single_transformer_blocks.{number}."
            shift, scale, gate = self.modulation(f"{block}norm.linear", vector, 3)
            x, a = self.norm(both, shift, scale), f"{block}attn."
            q, k = (self.heads(f"{a}to_{n}", f"{a}norm_{n}", x) for n in "qk")
            mixed = self.attend(q, k, self.value(f"{a}to_v", x), places)
            hidden = gelu(self.linear(f"{block}proj_mlp", x))
            both = both + gate * self.linear(f"{block}proj_out", torch.cat([mixed, hidden], dim=1))
        scale, shift = self.modulation("norm_out.linear", vector, 2)
        out = self.linear("proj_out", self.norm(both[split:], shift, scale))
        whole = torch.empty_like(noisy)
        for place, token in zip(rows, out, strict=True):
            row, column = int(place[1]), int(place[2])
            whole[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = token.view(channels, 2, 2)
        return whole


def test_the_network_equals_its_formulas() -> None:
    torch.manual_seed(0)
    network = NETWORK.build(sample_size=6, channels=4, context_width=10)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    noisy, times = torch.randn(2, 4, 6, 4), torch.tensor([130.0, 870.0])
    conditioning = Conditioning(torch.randn(2, 3, 10), torch.randn(2, 12))
    plain = PlainFlow(network.state_dict(), NETWORK.rotary_widths)
    assert conditioning.pooled is not None
    with torch.no_grad():
        ours = predict(network, noisy, times, conditioning)
        theirs = [plain(noisy[i], times[i].item(), conditioning.tokens[i], conditioning.pooled[i]) for i in range(2)]
    torch.testing.assert_close(ours, torch.stack(theirs), atol=1e-4, rtol=1e-4)


def test_rotary_widths_are_even_and_fill_a_head() -> None:
    for width in range(8, 264, 8):
        axes = FlowTransformer(head_width=width).rotary_widths
        assert sum(axes) == width
        assert all(axis > 0 and axis % 2 == 0 for axis in axes)
    assert FlowTransformer(head_width=128).rotary_widths == (16, 56, 56)  # Flux's own


@pytest.fixture(scope="module")
def images(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Return the pool's images without their captions."""
    folder = tmp_path_factory.mktemp("images")
    tars = sorted(str(file) for file in pool.path.glob("**/*.tar"))
    dataset: ImageDataset = run(Images(name="images", path=tars), folder)
    return dataset


def test_it_is_trained_on_images_alone_and_tunes_a_clip(
    images: ImageDataset, clip: ClipCheckpoint, tmp_path: Path
) -> None:
    config = prior_config(
        denoiser=NETWORK,
        prediction="flow",
        condition={"source": "image", "num_tokens": 1, "layers": "mlp", "noise": 0.0},
        timesteps={"type": "logit_normal", "mean": 0.0, "std": 1.0},
        steps=40,
        lr=3e-3,
    )
    prior = run(config, tmp_path / "prior", pool=images, clip=clip)
    panels = {panel.title: panel for panel in load_panels(prior.path)}
    assert isinstance(panels["Images generated from embeddings"], ImagesPanel)
    table = panels["Effect of the condition on the prior's loss"]
    assert isinstance(table, TablePanel)
    ((name, own, other, *_),) = table.rows
    assert name == "image embedding"
    assert own < other  # the images' own embeddings help: there is something to teach
    loaded = load_generator(prior)
    assert loaded.condition_map is not None
    assert loaded.condition_map.sizes["vector_width"] == 12
    tuned = run(tune_config(steps=2), tmp_path / "tuned", clip=clip, prior=prior, pool=images)
    before, after = (weights(load_clip(model).module) for model in (clip, tuned))
    assert {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])} == {"visual"}


def test_what_needs_captions_or_a_vector_says_so(images: ImageDataset, clip: ClipCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pool has no captions, which condition.source: both needs") as caught:
        run(prior_config(), tmp_path, pool=images, clip=clip)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="flow_transformer takes a vector, which text_states do not have"):
        prior_config(denoiser=NETWORK, condition={"source": "text_states"})
