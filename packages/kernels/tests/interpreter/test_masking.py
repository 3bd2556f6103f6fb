"""Masks drawn by the kernel: those of their twin, seed by seed."""

import pytest
import torch

from vfm_kernels import block_mask, block_mask_exact, use_kernels

OPS = torch.ops.vfm_kernels


@pytest.mark.parametrize("draw", [block_mask, block_mask_exact])
@pytest.mark.parametrize(("grid", "num_masked"), [((7, 5), 30), ((4, 4), 7), ((2, 9), 17), ((5, 4), 1), ((2, 2), 0)])
def test_a_seeds_mask_is_that_of_the_twin(draw, grid, num_masked):
    seeds = torch.tensor([5, -(2**63), 2**63 - 1])
    with use_kernels("reference"):
        expected = draw(seeds, grid, num_masked)
    assert torch.equal(draw(seeds, grid, num_masked), expected)


def test_torch_approves_of_the_op_and_compiles_it_whole():
    seeds = torch.arange(3)
    torch.library.opcheck(
        OPS.block_mask.default, (seeds, 4, 4, 7, 1, True), test_utils=("test_schema", "test_faketensor")
    )
    compiled = torch.compile(lambda s: block_mask_exact(s, (4, 4), 7), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(seeds), block_mask_exact(seeds, (4, 4), 7))
