"""Compare a prior's loss with an image's own statement and with a wrong one."""

# P images, N times

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vfm.data import Choice, ImageTransform, SampleDraw, decode_image, to_tensor
from vfm.models import eval_mode
from vfm.plugin import TablePanel
from vfm.statistics import bootstrap_interval
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.denoiser import error_over_times
from vfm_diva.generator.noise import NoiseSampler
from vfm_diva.prior.prior_task import PriorTask

NUM_TIMES = 8  # per image: the loss at a single time is mostly noise
BATCH_SIZE = 32


@dataclass(frozen=True)
class StatementPair:
    """An image of an item, a statement that is true of it, and one that is not."""

    item: str
    pattern: str
    image: bytes
    right: str
    wrong: str


class StatementSource(Protocol):
    """Module with a denoiser that statements condition."""

    @property
    def denoiser(self) -> Any:
        """Denoiser."""
        ...

    @property
    def space(self) -> Any:
        """Space in which it denoises."""
        ...

    def condition_on_texts(self, texts: Sequence[str]) -> Conditioning:
        """Compute the conditioning on statements."""
        ...


def statement_pairs(choices: Iterable[Choice]) -> Iterator[StatementPair]:
    """Yield a pair for each image that has both a true and a wrong statement."""
    for choice in choices:
        statements = list(zip(choice.statements, choice.truth, strict=True))
        for index, image in enumerate(choice.images):
            right = [statement for statement, truth in statements if truth == index]
            wrong = [statement for statement, truth in statements if truth != index]
            if right and wrong:
                yield StatementPair(choice.key, choice.pattern, image, right[0], wrong[0])


@torch.no_grad()
def statement_losses(
    task: Any,
    pairs: Sequence[StatementPair],
    transform: ImageTransform,
    sampler: NoiseSampler,
    *,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Compute each image's loss with the right and with the wrong statement, averaged over the same times, (P, 2).

    Args:
        task: A `StatementSource` and a module, such as a `PriorTask` after training.
        pairs: P images with their statements.
        transform: Makes the generator's image.
        sampler: Draws noise and N times for each image.
        seed: Seed of the draws, together with an image's index.
    """
    device = next(task.denoiser.parameters()).device
    rows = []
    with eval_mode(task):
        for start in range(0, len(pairs), BATCH_SIZE):
            chunk = pairs[start : start + BATCH_SIZE]
            seeds = []
            images = []
            right = []
            wrong = []
            for index, pair in enumerate(chunk, start=start):
                seeds.append(SampleDraw.of(seed, 0, index).seed)
                image = decode_image(pair.image, pair.item)
                images.append(to_tensor(transform.apply(image, seeds[-1])))
                right.append(pair.right)
                wrong.append(pair.wrong)
            noise, times = sampler(seeds)
            noise = noise.to(device)
            times = times.to(device)
            x0 = task.space(torch.stack(images).to(device))
            errors = []
            for texts in (right, wrong):
                conditioning = task.condition_on_texts(texts)
                errors.append(error_over_times(task.denoiser, x0, noise, times, conditioning))
            rows.append(torch.stack(errors, dim=1).cpu().double().numpy())
    return np.concatenate(rows)


def patterns_and_items(pairs: Sequence[StatementPair]) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Collect the pattern and the item of each image, (P,) each."""
    labels = [(pair.pattern, pair.item) for pair in pairs]
    patterns, items = np.array(labels).T
    return patterns, items


def rises(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Check whether each image's loss rises with the wrong statement, (P,). Ties count as 1/2.

    Args:
        losses: Losses with the right and with the wrong statement, (P, 2).
    """
    right, wrong = losses.T
    return np.asarray((wrong > right) + 0.5 * (wrong == right))


def statement_panel(
    task: PriorTask, choices: Iterable[Choice], transform: ImageTransform, sampler: NoiseSampler, *, seed: int = 0
) -> TablePanel:
    """Compare the prior's losses under true and wrong statements about images.

    The two images of a pair count as one item in the bootstrap interval.

    Args:
        task: The trained prior.
        choices: Images with true and wrong statements.
        transform: Preprocessing of the images.
        sampler: Sampler of times and noise.
        seed: Seed of the noise.

    Returns:
        Table of the share of images whose loss rises with the wrong statement, by pattern.

    Raises:
        ValueError: If no image has both a true and a wrong statement.
    """
    pairs = list(statement_pairs(choices))
    if not pairs:
        raise ValueError("no image of the choices has both a right and a wrong statement")
    losses = statement_losses(task, pairs, transform, sampler, seed=seed)
    patterns, items = patterns_and_items(pairs)
    rows: list[list[str | float | int | None]] = []
    for name in (*dict.fromkeys(patterns.tolist()), "all"):
        here = (patterns == name) | (name == "all")
        right, wrong = losses[here].T
        prefers = rises(losses[here])
        low, high = bootstrap_interval(prefers, items[here], seed=seed)
        rise = 100 * (wrong.mean() / right.mean() - 1)
        share = (round(100 * float(value), 1) for value in (prefers.mean(), low, high))
        rows.append([name, int(here.sum()), round(float(right.mean()), 4), round(float(rise), 2), *share])
    return TablePanel(
        title="Effect of a wrong statement on the prior's loss",
        note="Denoising loss of the images of pairs with the same noise, with their own statement and the other's; "
        "chance is 50 %. The prior cannot teach what does not change its loss.",
        order=22,
        columns=["pattern", "images", "loss, own", "rise, %", "images whose loss rises, %", "low", "high"],
        rows=rows,
    )
