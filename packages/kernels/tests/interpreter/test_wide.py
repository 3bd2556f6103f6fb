"""The kernels at the shapes of real models, which takes minutes: `make kernels-wide`."""

import pytest
import torch

from vfm_kernels import add_layer_norm, mask_tokens, masked_cosine_loss, swiglu_subln, use_kernels as choose
from vfm_kernels.multihead.rope import rotate, rotate_plain

pytestmark = pytest.mark.slow
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def reference(function):
    def plain(*inputs):
        with choose("reference"):
            return function(*inputs)

    return plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 72, 80, 88, 104, 112, 128])
def test_rope_of_257_tokens_and_every_head_width(agrees, guarded, dtype, width):
    angles = torch.rand(1, 256, width // 2) * 6
    agrees(
        lambda x: rotate(x, angles.sin(), angles.cos(), 1, None),
        lambda x: rotate_plain(x, angles.sin(), angles.cos(), 1, None),
        [guarded(torch.randn(1, 257, 4, width).to(dtype))],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "padded"), [(2048, 2048), (2730, 2752), (2730, 2730)])
def test_swiglu_of_eva_02(agrees, guarded, dtype, width, padded):
    gate, value = torch.randn(2, 33, padded).to(dtype), torch.randn(2, 33, padded).to(dtype)
    inputs = [gate, value, 1 + 0.3 * torch.randn(width), 0.1 * torch.randn(width)]
    agrees(swiglu_subln, reference(swiglu_subln), [guarded(t) for t in inputs])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [768, 1024, 1152, 1280, 1408, 1664, 1792, 4096])
def test_residual_sums_of_every_width(agrees, guarded, dtype, width):
    def function(residual, branch, weight, bias, layer_scale):
        drop_scale = torch.tensor([0.0, 1.25])
        return add_layer_norm(residual, branch, weight, bias, layer_scale=layer_scale, drop_scale=drop_scale)

    streams = [torch.randn(2, 17, width), torch.randn(2, 17, width).to(dtype)]
    agrees(function, reference(function), [guarded(t) for t in [*streams, *torch.randn(3, width)]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_student_and_loss_of_257_tokens(agrees, guarded, dtype):
    bool_mask, target = torch.rand(1, 256) < 0.41, torch.randn(1, 256, 1024).to(dtype)

    def student(patches, token, positions):
        return mask_tokens(patches, token, bool_mask, cls_token=token, pos_embed=positions)

    inputs = [torch.randn(1, 256, 192).to(dtype), torch.randn(192), torch.randn(257, 192)]
    agrees(student, reference(student), [guarded(t) for t in inputs])

    def loss(prediction):
        return masked_cosine_loss(prediction, target.to(prediction.dtype), bool_mask)

    agrees(loss, reference(loss), [guarded(torch.randn(1, 256, 1024).to(dtype))])
