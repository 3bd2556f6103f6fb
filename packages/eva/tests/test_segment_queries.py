"""Tests of segmentation by queries against transformers' EoMT: forward pass, matching and losses."""

# B images, Q queries, K classes, D width

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vfm.models import build_vision
from vfm.plugin import UserError
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.segment.matching import LossWeights, match
from vfm_eva.dense.segment.points import at_points, many_at_points
from vfm_eva.dense.segment.queries import QueriesHead, QueryPredictions, QuerySegmenter, annealed
from vfm_eva.dense.segment.set_loss import PointSettings, Totals, set_loss

eomt = pytest.importorskip("transformers.models.eomt.modeling_eomt")
peer = pytest.importorskip("eomt_peer")

ROUNDING = 1e-5
SIDE, PATCH, WIDTH, QUERIES, CLASSES, BLOCKS, POINTS = 32, 8, 32, 7, 5, 2, 64
WEIGHTS = LossWeights(classes=2.0, mask=5.0, dice=5.0, none=0.1)
SIZES = peer.Sizes(SIDE, PATCH, WIDTH, 3, 2, QUERIES, CLASSES, BLOCKS, POINTS)


def pictures() -> Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def objects() -> tuple[list[Tensor], list[Tensor]]:
    """Return the classes and masks of the objects of three images, one of which has none."""
    generator = torch.Generator().manual_seed(2)
    labels = [torch.tensor([1, 3, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([0])]
    return labels, [(torch.rand(len(one), SIDE, SIDE, generator=generator) > 0.6).float() for one in labels]


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def test_the_forward_pass_equals_transformers() -> None:
    theirs = peer.their_model(SIZES, std=0.2).eval()
    ours = peer.our_model(theirs, SIZES).eval()
    with torch.no_grad():
        for keep in (0.0, 1.0):  # with plain attention, and with every query restricted to its mask
            theirs.attn_mask_probs.fill_(keep)
            expected = theirs(pictures())
            found = ours(pictures(), [keep] * BLOCKS)
            assert difference(found[-1].masks, expected.masks_queries_logits) < ROUNDING
            assert difference(found[-1].classes, expected.class_queries_logits) < ROUNDING
            assert found[-1].masks.shape == (3, QUERIES, SIDE // 4, SIDE // 4)
            assert len(found) == BLOCKS + 1
        assert torch.equal(ours(pictures())[0].masks, ours(pictures(), [0.0] * BLOCKS)[-1].masks)
        masked, plain = found[-1].masks, ours(pictures())[-1].masks
    assert difference(masked, plain) > 0.01  # the masks matter in this model


class Recorded:
    """Draws points, and gives them to transformers' code in the order in which it asks for them."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.drawn: list[Tensor] = []

    def __call__(self, *shape: int, device: Any = None) -> Tensor:
        self.drawn.append(torch.rand(*shape, generator=self.generator))
        return self.drawn[-1]

    def replay(self, num_depths: int, num_objects: int) -> Callable[..., Tensor]:
        matching, sample = self.drawn
        # They draw points for each mask, we for all of them; here all masks get the same.
        for_each = sample.repeat(num_objects, 1, 1)
        parts = (for_each[:, : 3 * POINTS].contiguous(), for_each[:, 3 * POINTS :])
        answers = iter([one for _ in range(num_depths) for one in (*matching[:, None], *parts)])
        return lambda *shape, device=None: next(answers)


def test_matching_and_losses_equal_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = peer.their_model(SIZES, std=0.2).train()
    ours = peer.our_model(theirs, SIZES).train()
    theirs.attn_mask_probs.fill_(1.0)
    labels, masks = objects()
    draw = Recorded()
    predictions = ours(pictures(), [1.0] * BLOCKS)
    counts = torch.tensor([len(one) for one in labels])
    totals = Totals.of(counts, QUERIES, 0.1)
    found = set_loss(predictions, labels, masks, totals, WEIGHTS, PointSettings(POINTS), draw)
    queries = match(predictions, labels, masks, draw.drawn[0], WEIGHTS)
    monkeypatch.setattr(eomt.torch, "rand", draw.replay(*queries.shape))
    monkeypatch.setattr(eomt, "is_accelerate_available", lambda: False)
    expected = theirs(pictures(), mask_labels=masks, class_labels=labels)
    loss = torch.stack(list(found.values())).sum()
    assert difference(loss, expected.loss) < ROUNDING
    loss.backward()
    expected.loss.backward()
    assert difference(ours.head.classify.weight.grad, theirs.class_predictor.weight.grad) < 1e-4
    patches: Any = ours.encoder.visual
    theirs_grad = theirs.embeddings.patch_embeddings.projection.weight.grad
    assert difference(patches.patch_embed.proj.weight.grad, theirs_grad) < 1e-4
    # The queries that they match, depth by depth.
    for depth, one in enumerate(predictions):
        rows = iter(draw.drawn[0])
        monkeypatch.setattr(eomt.torch, "rand", lambda *shape, device=None, rows=rows: next(rows)[None])
        theirs_pairs = theirs.criterion.matcher(one.masks, one.classes, masks, labels)
        ours_pairs = queries[depth].split([len(known) for known in labels])
        for (query, place), own in zip(theirs_pairs, ours_pairs, strict=True):
            assert own[place].tolist() == query.tolist()


def test_losses_do_not_depend_on_how_a_batch_is_cut() -> None:
    generator = torch.Generator().manual_seed(4)
    labels, masks = objects()
    classes = torch.randn(3, QUERIES, CLASSES + 1, generator=generator)
    scores = torch.randn(3, QUERIES, 8, 8, generator=generator)
    totals = Totals.of(torch.tensor([3, 0, 1]), QUERIES, 0.1)
    everywhere = PointSettings(64, oversample=1.0, importance=1.0)
    centres = (torch.cartesian_prod(torch.arange(8), torch.arange(8)) + 0.5) / 8

    def grid(count: int, num: int, two: int, device: Any = None) -> Tensor:
        return centres.expand(count, -1, -1)

    def loss(part: slice) -> Tensor:
        predictions = [QueryPredictions(classes[part], scores[part])]
        return torch.stack(
            list(set_loss(predictions, labels[part], masks[part], totals, WEIGHTS, everywhere, grid).values())
        )

    together = loss(slice(0, 3))
    apart = loss(slice(0, 1)) + loss(slice(1, 2)) + loss(slice(2, 3))
    assert difference(apart, together) < ROUNDING
    with pytest.raises(ValueError, match="at most 7 objects an image"):
        match([QueryPredictions(classes[:1], scores[:1])], [torch.zeros(8, dtype=torch.int64)], [torch.zeros(8, 8, 8)],
              centres[None], WEIGHTS)  # fmt: skip


def test_masks_are_matched_to_the_queries_that_have_them() -> None:
    labels, masks = [torch.tensor([2, 0])], [torch.zeros(2, 8, 8)]
    masks[0][0, :4], masks[0][1, 4:] = 1, 1
    scores = 20 * torch.stack([masks[0][1], masks[0][0], torch.zeros(8, 8)])[None] - 10
    classes = torch.zeros(1, 3, 4)
    points = torch.rand(1, 32, 2, generator=torch.Generator().manual_seed(5))
    assert match([QueryPredictions(classes, scores)], labels, masks, points, WEIGHTS).tolist() == [[1, 0]]


def test_points_are_sampled_as_one_mask_at_a_time() -> None:
    generator = torch.Generator().manual_seed(6)
    masks, points = torch.randn(3, 5, 6, generator=generator), torch.rand(1, 9, 2, generator=generator)
    assert difference(at_points(masks, points), at_points(masks, points.expand(3, -1, -1))) < ROUNDING
    assert difference(many_at_points(masks, points[0]), at_points(masks, points)) < ROUNDING
    middle = torch.tensor([[[2.5 / 6, 1.5 / 5]]])  # the centre of the pixel in row 1 and column 2
    assert torch.allclose(at_points(masks, middle)[:, 0], masks[:, 1, 2])
    rim = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])  # three of the four pixels are outside, and 0
    assert torch.allclose(many_at_points(masks, rim[0]), torch.stack([masks[:, 0, 0], masks[:, -1, -1]], dim=1) / 4)


def test_a_frozen_encoder_keeps_its_weights_and_starts_as_the_tuned_one() -> None:
    model = build_vision("eva02_pico_patch8_32", seed=0)
    head = QueriesHead(64, CLASSES, QUERIES, PATCH)
    tuned = QuerySegmenter(DenseEncoder(model), head, 1)
    frozen = QuerySegmenter(DenseEncoder(build_vision("eva02_pico_patch8_32", seed=0)), head, 1, frozen=True)
    found, expected = frozen(pictures(), [0.0]), tuned(pictures(), [0.0])
    assert torch.equal(found[-1].masks, expected[-1].masks)
    found[-1].masks_of(torch.arange(QUERIES).repeat(3), [QUERIES] * 3).square().mean().backward()
    assert not any(parameter.requires_grad for parameter in frozen.encoder.parameters())
    assert all(p.grad is not None for name, p in frozen.copies.named_parameters() if "k_bias" not in name)


def test_masks_are_annealed_block_after_block() -> None:
    assert annealed(0, 600, 4) == [1, 1, 1, 1]
    assert annealed(200, 600, 4) == [0, 1, 1, 1]
    assert annealed(250, 600, 4)[:2] == [0, pytest.approx(0.5**0.9)]
    assert annealed(500, 600, 4) == [0, 0, 0, 0]
    # EoMT's steps for COCO
    total = 88692
    starts = [step for step in range(0, total, 1) if step in (14782, 29564, 44346, 59128)]
    assert [annealed(step, total, 4)[place] for place, step in enumerate(starts)] == [1, 1, 1, 1]
    assert [annealed(step + 14782, total, 4)[place] for place, step in enumerate(starts)] == [0, 0, 0, 0]


def test_patches_of_14_are_one_line() -> None:
    with pytest.raises(UserError, match="patches must have 4, 8, 16 or 32, got 14"):
        QueriesHead(WIDTH, CLASSES, QUERIES, 14)
    with pytest.raises(UserError, match=r"head.num_blocks: expected 1 to 2, .*, got 3"):
        QuerySegmenter(DenseEncoder(build_vision("vit_pico_patch8_32")), QueriesHead(64, 2, 3, 8), 3)
