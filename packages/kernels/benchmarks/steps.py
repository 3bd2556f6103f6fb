"""Whole training steps of EVA-g, EVA02-L and CLIP-L/14 with the libraries' layers and with ours."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager

import torch
from checking import misnamed, one_line
from problems import HALF
from records import Step
from timing import measure
from torch import Tensor, nn

import vfm_kernels as vk
from vfm_kernels.launches import recorded_launches

Loss = Callable[[], Tensor]
NAMES = ("EVA-g", "EVA02-L", "CLIP-L/14")
EAGER_WAYS = ("library", "library + padding", "ours", "ours + padding")
WAYS = (*EAGER_WAYS, *(f"{way} + torch.compile" for way in EAGER_WAYS))


def measured_steps(
    name: str, device: torch.device, tiny: bool, repeats: int, done: Container[tuple[str, str]] = ()
) -> Iterator[Step]:
    """Yield forward, loss, backward and AdamW of a model under autocast, in the ways that are not done yet.

    Padding is an arm of its own, so that what it gains is not credited to the kernels.

    Args:
        name: one of `NAMES`.
        device: where the model is trained.
        tiny: whether to take a meaningless size.
        repeats: number of timed steps.
        done: pairs of a model and a way that are not measured again.
    """
    for way in WAYS:
        if (name, way) in done:
            continue
        if way.startswith("ours") and (reasons := vk.not_supported_reasons(torch.empty(0, device=device))):
            yield Step(name, way, note="; ".join(reasons))
            continue
        try:
            yield _step(name, way, device, tiny, repeats)
        except ImportError as error:
            yield Step(name, way, note=f"absent: {error.name} is not installed")
        except Exception as error:  # the others are still measured
            yield Step(name, way, note=one_line(error))
        torch.compiler.reset()  # a graph of one way must not serve another


def _step(name: str, way: str, device: torch.device, tiny: bool, repeats: int) -> Step:
    with trained(name, way, device, tiny) as (train, notes):
        with recorded_launches() as launches:
            train()
        if reason := misnamed(way.startswith("ours"), launches):
            return Step(name, way, launches=len(launches), note=f"failed: {reason}")
        return Step.of(name, way, measure(train, device, repeats, replayed=False), len(launches), "; ".join(notes))


@contextmanager
def trained(name: str, way: str, device: torch.device, tiny: bool) -> Iterator[tuple[Callable[[], None], list[str]]]:
    """Build a model and yield a function that trains it by a step in a way, and notes of what was replaced."""
    torch.manual_seed(0)
    model, loss = build(name, device, tiny)
    accelerated, notes = way.startswith("ours"), []
    with ExitStack() as stack:
        stack.enter_context(vk.use_kernels("triton" if accelerated else "reference"))
        if "padding" in way:
            notes.append(stack.enter_context(vk.padded(model)))
        if accelerated:
            notes.append(str(stack.enter_context(vk.accelerate(model))))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
        forward = torch.compile(loss) if "torch.compile" in way else loss

        def train() -> None:
            with torch.autocast(device.type, HALF):
                value = forward()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        yield train, notes


def build(name: str, device: torch.device, tiny: bool) -> tuple[nn.Module, Loss]:
    """Return a model and a function that computes its loss of one fixed batch."""
    return (_clip if name.startswith("CLIP") else _eva)(name, device, tiny)


def _eva(name: str, device: torch.device, tiny: bool) -> tuple[nn.Module, Loss]:
    import timm

    large = name == "EVA02-L"
    if tiny:
        rotary = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True}
        options = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.625}
        model, batch, size = timm.models.eva.Eva(**options, **(rotary if large else {})), 2, 16
    else:
        named = "eva02_large_patch14_224" if large else "eva_giant_patch14_224"
        model, batch, size = timm.create_model(named), 64 if large else 32, 224
    model.head = nn.Linear(model.embed_dim, 16 if tiny else 1024)
    model = model.to(device).train()
    images = torch.randn(batch, 3, size, size, device=device)
    num_patches = model.patch_embed.num_patches
    target = torch.randn(batch, num_patches, model.head.out_features, device=device)
    bool_mask = torch.rand(batch, num_patches, device=device) < 0.41

    def loss() -> Tensor:
        patches = model.forward_features(images)[:, model.num_prefix_tokens :]
        return vk.masked_cosine_loss(model.head(patches), target, bool_mask)

    return model, loss


def _clip(name: str, device: torch.device, tiny: bool) -> tuple[nn.Module, Loss]:
    import open_clip

    if tiny:
        vision = {"layers": 1, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 16}
        text = {"context_length": 7, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1}
        model, batch = open_clip.CLIP(16, vision, text), 3
    else:
        model, batch = open_clip.create_model("ViT-L-14"), 128
    model = model.to(device).train()
    images = torch.randn(batch, 3, *model.visual.image_size, device=device)
    texts = torch.randint(1, model.vocab_size, (batch, model.context_length), device=device)

    def loss() -> Tensor:
        image_features, text_features, logit_scale = model(images, texts)[:3]
        return vk.info_nce(image_features, text_features, logit_scale)

    return model, loss
