"""Stochastic depth on part of the batch."""

import pytest
import torch

from vfm_kernels import residual_of_subset, subset_drop_path


def test_the_branch_runs_on_a_fixed_number_of_samples():
    x, seen = torch.randn(10, 3, 4), []

    def branch(kept, index):
        assert torch.equal(kept, x[index])
        seen.append(len(kept))
        return kept.sin()

    result = residual_of_subset(x, branch, 0.4, torch.Generator().manual_seed(0))
    assert seen == [6]
    kept = (result != x).flatten(1).any(dim=1)
    assert kept.sum() == 6
    torch.testing.assert_close(result[kept], x[kept] + x[kept].sin() * 10 / 6)


def test_its_mean_is_that_of_the_whole_branch_and_gradients_flow():
    x, generator = torch.randn(5, 4, requires_grad=True), torch.Generator().manual_seed(1)
    mean = torch.stack([residual_of_subset(x, lambda kept, _: kept.sin(), 0.5, generator) for _ in range(3000)]).mean(
        dim=0
    )
    torch.testing.assert_close(mean, x + x.sin(), rtol=0, atol=0.06)
    mean.sum().backward()
    torch.testing.assert_close(x.grad, 1 + x.detach().cos(), rtol=0, atol=0.06)


def test_a_rate_of_zero_keeps_all_and_one_raises():
    x = torch.randn(3, 4)
    assert torch.equal(residual_of_subset(x, lambda kept, _: kept.sin(), 0.0), x + x.sin())
    with pytest.raises(ValueError, match=r"drop_rate must be in \[0, 1\), got 1"):
        residual_of_subset(x, lambda kept, _: kept.sin(), 1)


@pytest.mark.parametrize("kind", ["Eva", "VisionTransformer"])
def test_blocks_of_a_model_drop_only_in_training(kind):
    timm = pytest.importorskip("timm")
    options = {"use_rot_pos_emb": True, "patch_drop_rate": 0.5} if kind == "Eva" else {}
    model_class = timm.models.eva.Eva if kind == "Eva" else timm.models.VisionTransformer
    model = model_class(
        img_size=16, patch_size=8, embed_dim=8, depth=3, num_heads=2, num_classes=2, drop_path_rate=0.5, **options
    )
    images, sizes = torch.randn(8, 3, 16, 16), []
    expected = model.eval()(images)
    with subset_drop_path(model) as done:
        assert done.replaced == {
            "blocks.1": "residual_of_subset",
            "blocks.2": "residual_of_subset",
        }  # block 0 has rate 0
        assert torch.equal(model(images), expected)
        for block in model.blocks:
            block.mlp.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        model.train()(images).sum().backward()
        assert sizes == [8, 6, 4]
    assert type(model.blocks[1]) is type(model.blocks[0])


def test_a_model_without_drop_path_raises():
    with pytest.raises(ValueError, match="no block with drop path"):
        subset_drop_path(torch.nn.Linear(2, 2))
