"""Problems to measure: ops at the shapes of EVA, CLIP and SigLIP with all implementations and their least costs."""

# B batch, N tokens, H heads, D width of a head, C channels, K kept tokens

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import vfm_kernels as vk
from vfm_kernels.dispatch.choosing import OURS, Size
from vfm_kernels.multihead.backends import BACKENDS
from vfm_kernels.multihead.problem import problem_on
from vfm_kernels.multihead.rope import rotate

Function = Callable[..., Any]
CHUNK = 4096  # rows of logits at once
FP32 = torch.float32
# The interpreter computes on the bits of bf16 as if they were integers.
HALF = torch.float16 if os.environ.get("TRITON_INTERPRET") == "1" else torch.bfloat16


@dataclass(frozen=True)
class Cost:
    """Least work of an op: bytes from and to memory, and floating-point operations."""

    num_bytes: float
    flops: float = 0.0


@dataclass(frozen=True)
class Problem:
    """One op at one shape.

    Attributes:
        op: name.
        shape: label on the page.
        inputs: tensors that require a gradient.
        plain: the specification, for float64 and for the allowed error.
        implementations: name -> function of the inputs.
        forward: cost of the op.
        backward: cost of its gradient.
        refused: name of a backend -> why it cannot run.
        table_size: rows, length and width in the table of measurements. Default: sizes of the first input.
        kind: words for the kind of attention.
    """

    op: str
    shape: str
    inputs: list[Tensor]
    plain: Function
    implementations: dict[str, Function]
    forward: Cost
    backward: Cost
    refused: dict[str, str] = field(default_factory=dict)
    table_size: tuple[int, int, int] | None = None
    kind: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """Return what the table of measurements knows it by."""
        first, width = self.inputs[0], max(1, self.inputs[0].shape[-1])
        rows, length, width = self.table_size or (first.numel() // width, 0, width)
        return Size(self.op, rows, length, width, str(first.dtype).removeprefix("torch."), kind=self.kind)

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """Return the keys of its rows of results."""
        directions = [(direction, name) for name in self.implementations for direction in ("forward", "backward")]
        return [(self.op, self.shape, *rest) for rest in [*directions, *(("", name) for name in self.refused)]]


def under(choice: vk.Kernels, function: Function) -> Function:
    """Return the function with a choice of kernels."""

    def run(*inputs: Tensor) -> Any:
        with vk.use_kernels(choice):
            return function(*inputs)

    return run


def op_problem(
    op: str,
    shape: str,
    inputs: list[Tensor],
    function: Function,
    forward: Cost,
    backward: Cost,
    ours: Function | None = None,
    size: tuple[int, int, int] | None = None,
) -> Problem:
    """Return the problem of our op, which is forced to launch its kernels, torch's plain ops, and those compiled.

    Where kernels cannot run there is no implementation "ours": torch's ops under that name would be measured twice.
    """
    plain = under("reference", function)
    ways = {"torch": plain, "torch.compile": under("reference", torch.compile(function))}
    reasons = vk.not_supported_reasons(*inputs)
    if not reasons:
        ways = {"ours": under("triton", ours or function), **ways}
    refused = {"ours": "; ".join(reasons)} if reasons else {}
    return Problem(op, shape, inputs, plain, ways, forward, backward, refused, size)


def random(device: torch.device, *shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def attention(
    device: torch.device, batch: int, tokens: int, heads: int, width: int, rope: bool = False, **kind: Any
) -> Problem:
    """Return packed attention; with `crops`, images of `tokens` and 37 tokens are in one long row."""
    squares, longest = batch * tokens**2, tokens
    options, label = dict(kind), "".join(f" {word}" for word, is_set in kind.items() if is_set)
    if options.pop("crops", False):
        each = [tokens, *[37] * 8] * batch
        longest, squares = max(each), sum(length**2 for length in each)
        lengths = torch.tensor([0, *each]).cumsum(0).to(torch.int32)
        options |= {"cu_seqlens": lengths.to(device), "max_seqlen": longest}
        batch, tokens = 1, int(lengths[-1])
    if rope:
        angles = torch.rand(tokens - 1, width // 2, device=device)
        options |= {"sin": angles.sin(), "cos": angles.cos(), "num_prefix_tokens": 1}
    qkv = random(device, batch, tokens, 3, heads, width)
    sizes, causal = (batch, tokens, heads, width), kind.get("causal", False)
    problem = problem_on(device, qkv.dtype, (*sizes, longest), causal, "crops" in kind, rope)
    implementations, refused = {}, {}
    for backend in BACKENDS:
        if reasons := backend.not_supported_reasons(problem):
            refused[backend.name] = "; ".join(reasons)
        else:
            implementations[backend.name] = _attention_by(backend.name, options)
    elements = batch * tokens * heads * width
    product = 2 * squares * heads * width / (2 if causal else 1)
    return Problem(
        "attention",
        f"({','.join(map(str, sizes))}){label}{' rope' if rope else ''}",
        [qkv],
        _attention_by("eager", options),
        implementations,
        Cost(8 * elements, 2 * product),
        Cost(16 * elements, 5 * product),
        refused,
        (problem.size.rows, problem.size.length, width),
        problem.size.kind,
    )


def _attention_by(name: str, options: dict[str, Any]) -> Function:
    """Return attention by one backend; a library's positions must not be rotated by our kernel."""
    choice: vk.Kernels = "triton" if name in OURS else "reference"
    return under(choice, lambda qkv: vk.attention_packed(qkv, backend=name, **options))


def rotation(device: torch.device, batch: int, tokens: int, heads: int, width: int) -> Problem:
    """Return rotary positions of queries and keys, whose tables all samples share."""
    sin, cos = (random(device, 1, tokens, width // 2, dtype=torch.float32).expand(batch, -1, -1) for _ in range(2))
    elements, label = batch * tokens * 2 * heads * width, f"({batch},{tokens},{2 * heads},{width})"
    inputs, cost = [random(device, batch, tokens, 2 * heads, width)], Cost(4 * elements)
    return op_problem(
        "rotate", label, inputs, lambda x: rotate(x, sin.to(x.dtype), cos.to(x.dtype), 0, None), cost, cost
    )


def matmul(device: torch.device, rows: int, inner: int, outer: int) -> Problem:
    """Return a linear layer of torch at a width that is or is not padded: what `pad_swiglu` gains."""
    inputs = [random(device, rows, inner), random(device, outer, inner)]
    flops, num_bytes = 2 * rows * inner * outer, 2 * (rows * inner + rows * outer + inner * outer)
    costs = (Cost(num_bytes, flops), Cost(2 * num_bytes, 2 * flops))
    product = torch.nn.functional.linear
    return Problem("matmul", f"({rows},{inner},{outer})", inputs, product, {"torch": product}, *costs)


def swiglu(device: torch.device, rows: int, width: int, padded: int) -> Problem:
    inputs = [random(device, rows, padded), random(device, rows, padded)]
    inputs += [random(device, width, dtype=torch.float32) for _ in range(2)]
    label, hidden = f"({rows},{width} in {padded})", rows * padded
    return op_problem("swiglu_subln", label, inputs, vk.swiglu_subln, Cost(6 * hidden), Cost(10 * hidden))


def add_layer_norm(device: torch.device, batch: int, tokens: int, channels: int, stream: torch.dtype) -> Problem:
    inputs = [random(device, batch, tokens, channels, dtype=stream), random(device, batch, tokens, channels)]
    inputs += [random(device, channels, dtype=torch.float32) for _ in range(2)]
    elements = batch * tokens * channels
    forward, backward = (12, 18) if stream == torch.float32 else (8, 12)
    label = f"({batch},{tokens},{channels}) {str(stream).removeprefix('torch.')} stream"
    costs = (Cost(forward * elements), Cost(backward * elements))
    return op_problem("add_layer_norm", label, inputs, vk.add_layer_norm, *costs)


def mask_tokens(device: torch.device, batch: int, tokens: int, channels: int) -> Problem:
    bool_mask = torch.rand(batch, tokens, device=device) < 0.41
    cls_token, pos_embed = random(device, channels), random(device, tokens + 1, channels)

    def function(patches: Tensor, mask_token: Tensor) -> Tensor:
        return vk.mask_tokens(patches, mask_token, bool_mask, cls_token=cls_token, pos_embed=pos_embed)

    elements = batch * tokens * channels
    inputs = [random(device, batch, tokens, channels), random(device, channels)]
    label = f"({batch},{tokens},{channels})"
    return op_problem("mask_tokens", label, inputs, function, Cost(3.2 * elements), Cost(4 * elements))


def gather_tokens(device: torch.device, batch: int, tokens: int, kept: int, channels: int) -> Problem:
    index = torch.rand(batch, tokens, device=device).argsort(dim=1)[:, :kept]
    costs = (Cost(4 * batch * kept * channels), Cost(2 * batch * (kept + tokens) * channels))
    label = f"({batch},{kept} of {tokens},{channels})"
    inputs = [random(device, batch, tokens, channels)]
    return op_problem("gather_tokens", label, inputs, lambda x: vk.gather_tokens(x, index), *costs)


def scatter_tokens(device: torch.device, batch: int, tokens: int, kept: int, channels: int) -> Problem:
    index = torch.rand(batch, tokens, device=device).argsort(dim=1)[:, :kept]
    costs = (Cost(2 * batch * (kept + tokens) * channels), Cost(4 * batch * kept * channels))
    label = f"({batch},{kept} of {tokens},{channels})"
    inputs = [random(device, batch, kept, channels)]
    return op_problem("scatter_tokens", label, inputs, lambda x: vk.scatter_tokens(x, index, tokens), *costs)


def masked_cosine(device: torch.device, batch: int, tokens: int, channels: int) -> Problem:
    bool_mask = torch.rand(batch, tokens, device=device) < 0.41
    target = random(device, batch, tokens, channels)
    masked = 0.41 * batch * tokens * channels
    costs = (Cost(6 * masked), Cost(4 * batch * tokens * channels))

    def function(prediction: Tensor) -> Tensor:
        return vk.masked_cosine_loss(prediction, target.to(prediction.dtype), bool_mask)

    inputs, label = [random(device, batch, tokens, channels)], f"({batch},{tokens},{channels})"
    return op_problem("masked_cosine_loss", label, inputs, function, *costs)


def contrastive(device: torch.device, batch: int, channels: int, loss: str) -> Problem:
    """Return the loss of one process; ours in chunks of rows, torch's with all logits at once."""
    # On the device already: a copy from the host cannot be part of a CUDA graph.
    scale, bias = torch.full((), 20.0, device=device), torch.full((), -10.0, device=device)
    more = (bias,) if loss == "siglip_loss" else ()
    function = vk.siglip_loss if more else vk.info_nce
    inputs = [torch.nn.functional.normalize(random(device, batch, channels).float(), dim=1) for _ in range(2)]

    def whole(image: Tensor, text: Tensor) -> Tensor:
        return function(image, text, scale, *more)

    def chunked(image: Tensor, text: Tensor) -> Tensor:
        # Features of all processes, though they are one, for the form that several processes need.
        gathered = {"all_image_features": image, "all_text_features": text} if loss == "info_nce" else {}
        return function(image, text, scale, *more, chunk_size=CHUNK, **gathered)

    product = 2 * batch**2 * channels
    costs = (Cost(8 * batch * channels, product), Cost(16 * batch * channels, (2 if more else 3) * product))
    size = None if loss == "info_nce_all_pairs" else (min(batch, CHUNK), 0, batch)
    return op_problem(loss, f"({batch},{channels})", inputs, whole, *costs, chunked, size)
