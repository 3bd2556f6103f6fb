"""Attention with a boolean mask, and the shapes of dense tasks: which backend takes them, and why not another."""

import pytest
import torch
from timm.layers import Attention
from timm.models.eva import EvaAttention
from torch import nn

from vfm_kernels import attention, attention_packed, explain
from vfm_kernels.layers.timm_attention import FusedAttention, FusedEvaAttention
from vfm_kernels.multihead.attention_plain import attention_plain
from vfm_kernels.multihead.backends import BY_NAME, first_choice
from vfm_kernels.multihead.explain import report
from vfm_kernels.multihead.problem import hypothetical_problem
from vfm_kernels.pattern import Pattern

ROUNDING = 1e-5


def heads(num_tokens=7, num_heads=2, width=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, num_tokens, num_heads, width, generator=generator) for _ in range(3)]


def mask(num_tokens=7):
    visible = torch.rand(2, 1, num_tokens, num_tokens, generator=torch.Generator().manual_seed(1)) > 0.5
    return visible | torch.eye(num_tokens, dtype=torch.bool)


@pytest.mark.parametrize("backend", [None, "sdpa", "eager"])
def test_a_masked_key_has_no_influence(backend):
    q, k, v = heads()
    found = attention(q, k, v, visible=mask(), backend=backend)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask(), float("-inf")).softmax(dim=-1)
    assert (found - torch.einsum("bhnm,bmhd->bnhd", weights, v)).abs().max() < ROUNDING
    assert torch.equal(attention_packed(torch.stack([q, k, v], dim=2), visible=mask(), backend=backend), found)


def test_a_mask_that_hides_nothing_changes_nothing():
    q, k, v = heads()
    everything = torch.ones(1, 1, 7, 7, dtype=torch.bool)
    expected = attention_plain(q, k, v, Pattern.from_arguments(q, k, v))[0]
    assert (attention(q, k, v, visible=everything) - expected).abs().max() < ROUNDING


@pytest.mark.parametrize(("plain", "fused"), [(Attention, FusedAttention), (EvaAttention, FusedEvaAttention)])
def test_fused_layers_take_the_mask_of_timms(plain, fused):
    arguments = {} if plain is Attention else {"norm_layer": nn.LayerNorm}
    torch.manual_seed(2)
    layer, x = plain(16, num_heads=2, **arguments), torch.randn(2, 7, 16)
    replaced = fused.__new__(fused)
    replaced.__dict__ = layer.__dict__
    assert (replaced(x, attn_mask=mask()) - layer(x, attn_mask=mask())).abs().max() < ROUNDING
    added = torch.zeros(2, 1, 7, 7).masked_fill(~mask(), float("-inf"))  # numbers to add are left to timm
    assert torch.equal(replaced(x, attn_mask=added), layer(x, attn_mask=added))


def test_a_wrong_mask_is_refused_in_a_line():
    q, k, v = heads()
    with pytest.raises(ValueError, match=r"expected visible as booleans .* got torch.float32 \(1, 1, 7, 7\)"):
        attention(q, k, v, visible=torch.zeros(1, 1, 7, 7))
    with pytest.raises(ValueError, match=r"got torch.bool \(7, 7\)"):
        attention(q, k, v, visible=mask()[0, 0])
    with pytest.raises(ValueError, match="excludes causal"):
        attention(q, k, v, visible=mask(), causal=True)


@pytest.mark.parametrize("width", [64, 88])
@pytest.mark.parametrize("num_tokens", [256, 4096, 16 * 196])
def test_backends_say_why_they_do_not_take_the_shapes_of_dense_tasks_and_videos(num_tokens, width, monkeypatch):
    problem = hypothetical_problem((16, num_tokens, 16, width), torch.bfloat16, (9, 0))
    masked = hypothetical_problem((16, num_tokens, 16, width), torch.bfloat16, (9, 0), masked=True)
    short = [reason for reason in BY_NAME["triton_short"].not_supported_reasons(problem) if "registers" in reason]
    assert bool(short) == (num_tokens > 272)
    assert first_choice(masked, "auto") == "sdpa_efficient"
    assert first_choice(masked, "triton") is None
    text = report(masked, device_exists=False)
    assert f"(16, {num_tokens}, 16, {width}) in bfloat16 on sm_90, boolean mask" in text
    assert text.count("boolean masks are given to torch's own") == 7
    assert "sdpa_efficient  chosen" in text


def test_explain_knows_the_mask(capsys):
    explain(*heads(), visible=mask())
    assert "boolean mask" in capsys.readouterr().out
