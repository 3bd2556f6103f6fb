"""What a wrong word costs a prior: whether its loss rises where a statement is told that is another picture's."""

# P pictures, N times, K pictures at once

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vfm.data.choices import Choice
from vfm.data.images import decode_image
from vfm.data.loader import sample_seed
from vfm.eval.statistics import bootstrap_interval
from vfm.models.clip import evaluating
from vfm.panels import TablePanel
from vfm_diva.denoiser import error_over_times
from vfm_diva.prior_task import PriorTask
from vfm_diva.samples import MakeNoisy

NUM_TIMES = 8  # of each picture: the loss at one time is mostly noise
PICTURES_AT_ONCE = 32


@dataclass(frozen=True)
class Asked:
    """One picture of an item, the statement that is its own, and one that is not."""

    item: str
    pattern: str
    image: bytes
    right: str
    wrong: str


def asked_of(choices: Iterable[Choice]) -> Iterator[Asked]:
    """Each picture of the items that has a statement of its own and another one beside it."""
    for choice in choices:
        said = list(zip(choice.statements, choice.truth, strict=True))
        for place, image in enumerate(choice.images):
            right = [statement for statement, truth in said if truth == place]
            wrong = [statement for statement, truth in said if truth != place]
            if right and wrong:
                yield Asked(choice.key, choice.pattern, image, right[0], wrong[0])


@torch.no_grad()
def losses_of(task: PriorTask, asked: Sequence[Asked], noisy: MakeNoisy, *, seed: int = 0) -> NDArray[np.float64]:
    """Loss of each picture told its own statement and told the other, with the same noise, mean over times; (P, 2).

    Args:
        task: trained.
        asked: P pictures.
        noisy: brings pictures to the generator's size and draws noise and times, N of each.
        seed: with a picture's place it draws them.
    """
    device, rows = next(task.denoiser.parameters()).device, []
    with evaluating(task):
        for start in range(0, len(asked), PICTURES_AT_ONCE):
            some = asked[start : start + PICTURES_AT_ONCE]
            seeds = [sample_seed(seed, 0, place) for place in range(start, start + len(some))]
            made = [noisy(decode_image(one.image, one.item), drawn) for one, drawn in zip(some, seeds, strict=True)]
            batch = {name: torch.stack([each[name] for each in made]).to(device) for name in made[0]}
            x0 = task.space(batch["pictures"])
            told = [task.of_texts(said) for said in ([one.right for one in some], [one.wrong for one in some])]
            errors = [error_over_times(task.denoiser, x0, batch["noise"], batch["times"], each) for each in told]
            rows.append(torch.stack(errors, dim=1).cpu().double().numpy())
    return np.concatenate(rows)


def wrong_words(task: PriorTask, choices: Iterable[Choice], noisy: MakeNoisy, *, seed: int = 0) -> TablePanel:
    """The table of a data set of choices: by pattern, the share of pictures whose loss the other statement raises.

    The two pictures of a pair count as one where the interval is drawn.
    """
    asked = list(asked_of(choices))
    losses = losses_of(task, asked, noisy, seed=seed)
    patterns = np.array([one.pattern for one in asked])
    items = np.array([one.item for one in asked])
    rows: list[list[str | float | int | None]] = []
    for name in (*dict.fromkeys(patterns.tolist()), "all"):
        here = (patterns == name) | (name == "all")
        right, wrong = losses[here].T
        rises = (wrong > right) + 0.5 * (wrong == right)
        low, high = bootstrap_interval(rises, items[here], seed=seed)
        rise = 100 * (wrong.mean() / right.mean() - 1)
        share = (round(100 * float(value), 1) for value in (rises.mean(), low, high))
        rows.append([name, int(here.sum()), round(float(right.mean()), 4), round(float(rise), 2), *share])
    return TablePanel(
        title="What a wrong word costs the prior",
        note="Denoising loss of the pictures of pairs with the same noise, told their own statement and the other "
        "picture's; blind chance is 50 %. What a prior does not feel it cannot teach.",
        order=22,
        columns=["pattern", "pictures", "loss, own", "rise, %", "pictures whose loss rises, %", "low", "high"],
        rows=rows,
    )
