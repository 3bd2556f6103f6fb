"""Every kernel on a GPU: forward and backward against float64, repeats, strides, streams, autocast, compiled graphs.

What the interpreter cannot show is shown here: races, uninitialised shared memory, vectorised access, real bf16.
"""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from conftest import INTERPRETED
from error_rule import evaluate

pytestmark = pytest.mark.gpu
only_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
TOKENS = [17] if INTERPRETED else [1, 2, 16, 17, 63, 64, 65, 129, 197, 257]
DTYPES = [torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
REPEATS = 2 if INTERPRETED else 20


@pytest.fixture(params=list(CASES))
def build(request: pytest.FixtureRequest, device: torch.device):
    """Return a function that makes a case of each op."""

    def make(dtype: torch.dtype = torch.float16, batch: int = 2, tokens: int = TOKENS[-1]) -> Case:
        case = CASES[request.param](device, dtype, batch, tokens)
        if dtype == torch.float32 and not case.fp32 and not INTERPRETED:
            pytest.skip("attention's tiles are for half precision")
        return case

    return make


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"result {number} differs"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_outputs_and_gradients_against_float64(agrees, build, dtype, tokens):
    case = build(dtype, tokens=tokens)
    agrees(case.op, case.plain, case.inputs)


@pytest.mark.parametrize("dtype", DTYPES[-1:], ids=str)
def test_twenty_repeats_are_bit_equal(build, dtype):
    """Races and uninitialised memory would differ between runs; the kernels use no atomics."""
    case = build(dtype, batch=2 if INTERPRETED else 64)
    first = evaluate(case.op, case.inputs)
    for _ in range(REPEATS - 1):
        assert_equal(evaluate(case.op, case.inputs), first)


def test_inputs_that_are_views_between_poisoned_values(agrees, build):
    """Strides that no power of two divides, and NaN in what must not be read.

    Other strides are another compiled kernel, whose sums and products may be fused otherwise: not the same bits.
    """
    case = build()
    views = []
    for value in case.inputs:
        if value.ndim < 2:
            views.append(value)
            continue
        buffer = torch.full((*value.shape[:-2], value.shape[-2] + 3, value.shape[-1]), float("nan")).to(value)
        view = buffer[..., 1:-2, :]
        view.copy_(value)
        views.append(view)
    agrees(case.op, case.plain, views)


def test_an_empty_batch(build, request):
    name = request.node.callspec.params["build"]
    if name.startswith(("info_nce", "siglip_loss", "masked_cosine_loss")) or "crops" in name:
        pytest.skip("a loss or a row of sequences has no empty batch")
    case = build(batch=0)
    results = evaluate(case.op, case.inputs)
    assert [result.shape for result in results] == [result.shape for result in evaluate(case.plain, case.inputs)]


def test_activation_checkpointing_gives_the_same_bits(build):
    case = build()
    again = evaluate(lambda *x: checkpoint(case.op, *x, use_reentrant=False), case.inputs)
    assert_equal(again, evaluate(case.op, case.inputs))


def test_autocast_keeps_the_results(build, device):
    case = build()
    expected = evaluate(case.op, case.inputs)

    def under_autocast(*inputs: Tensor):
        with torch.autocast(device.type, torch.bfloat16):
            return case.op(*inputs)

    assert_equal(evaluate(under_autocast, case.inputs), expected)


def test_a_whole_graph_compiles(agrees, build):
    """Inductor fuses products and sums around the kernels, so the bits may differ from those of eager calls."""
    case = build()
    backend = "aot_eager" if INTERPRETED else "inductor"
    torch.compiler.reset()
    agrees(torch.compile(case.op, fullgraph=True, backend=backend), case.plain, case.inputs)


@only_gpu
def test_two_streams_do_not_disturb_each_other(build, device):
    case = build(batch=64)
    expected = evaluate(case.op, case.inputs)
    streams = [torch.cuda.Stream(device) for _ in range(2)]
    results: list[list[Tensor]] = [[], []]
    for _ in range(5):
        for number, stream in enumerate(streams):
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                results[number] = evaluate(case.op, case.inputs)
    torch.cuda.synchronize(device)
    for result in results:
        assert_equal(result, expected)
