"""What a wrong word costs a prior: the same losses as one picture and one time at a time, and sane shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diva_toy import WORLD, prior_plan, prior_task, run, tune_plan
from test_stages import known, refusal
from vfm.artifacts import ChoiceDataset, ClipCheckpoint, Pool
from vfm.data.choices import Choice, load_choices
from vfm.data.images import decode_image
from vfm.data.loader import sample_seed
from vfm.stages.shapes import ShapesChoices
from vfm.data.transforms import ImageTransform
from vfm.panels import load_panels
from vfm_diva.generator import load_generator
from vfm_diva.samples import MakeNoisy
from vfm_diva.wrong_words import asked_of, losses_of, wrong_words

NOISY = MakeNoisy(ImageTransform(8, "crop"), (3, 8, 8), num_times=3)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ChoiceDataset:
    stage = ShapesChoices(name="pairs", world=WORLD, pairs_per_pattern=20)
    return run(stage, tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("states", [False, True])
def test_losses_are_those_of_one_picture_and_one_time_after_another(
    states: bool, clip: ClipCheckpoint, pairs: ChoiceDataset
) -> None:
    task = prior_task(clip, **({"embed_dim": None} if states else {}))
    asked = list(asked_of(load_choices(pairs)))[:34]
    losses = losses_of(task, asked, NOISY, seed=5)
    assert losses.shape == (34, 2)
    for place in (0, 33):
        one = asked[place]
        made = NOISY(decode_image(one.image, ""), sample_seed(5, 0, place))
        for column, statement in enumerate((one.right, one.wrong)):
            with torch.no_grad():
                told = task.of_texts([statement])
                x0 = task.space(made["pictures"][None])
                plain = [
                    task.denoiser(x0, noise[None], time[None], told).item()
                    for noise, time in zip(made["noise"], made["times"], strict=True)
                ]
            assert losses[place, column] == pytest.approx(sum(plain) / 3, rel=1e-5)


def test_a_loss_that_never_differs_rises_in_half_of_the_pictures_and_swapped_statements_turn_the_share_round(
    clip: ClipCheckpoint, pairs: ChoiceDataset
) -> None:
    task, choices = prior_task(clip), list(load_choices(pairs))
    alike = [replace(choice, statements=[choice.statements[0]] * 2) for choice in choices]
    assert wrong_words(task, alike, NOISY).rows[-1][1:] == pytest.approx([40, alike_loss(task, alike), 0, 50, 50, 50])
    swapped = [replace(choice, truth=choice.truth[::-1]) for choice in choices]
    shares = [wrong_words(task, each, NOISY).rows[-1][4] for each in (choices, swapped)]
    assert sum(shares) == pytest.approx(100, abs=0.1)


def alike_loss(task, choices) -> float:
    return round(float(losses_of(task, list(asked_of(choices)), NOISY)[:, 0].mean()), 4)


def test_a_picture_without_a_statement_of_its_own_is_left_out() -> None:
    sugar = Choice("a", "object", [b"x"], ["right", "wrong"], [0, -1])
    winoground = Choice("b", "swap", [b"x", b"y"], ["one", "other"], [0, 1])
    nothing = Choice("c", "none", [b"x"], ["wrong"], [-1])
    told = [(one.item, one.image, one.right, one.wrong) for one in asked_of([sugar, winoground, nothing])]
    assert told == [("a", b"x", "right", "wrong"), ("b", b"x", "one", "other"), ("b", b"y", "other", "one")]


def test_a_prior_of_text_states_runs_feels_words_and_wants_an_adapter(
    clip: ClipCheckpoint, pool: Pool, pairs: ChoiceDataset, tmp_path: Path
) -> None:
    plan = prior_plan(condition="text_states", condition_width=24, choices="pairs", steps=2)
    plan.preflight(known(clip=clip, pool=pool))
    prior = run(plan, tmp_path / "prior", clip=clip, pool=pool, pairs=pairs)
    generator = load_generator(prior)
    assert generator.condition_map is None
    assert generator.wants.context_width == 16  # the text tower's
    titles = [panel.title for panel in load_panels(prior.path)]
    assert "What a wrong word costs the prior" in titles
    assert "set adapter.type: linear" in refusal(tune_plan(), clip=clip, prior=prior)
    run(tune_plan(adapter={"type": "linear"}, steps=2), tmp_path / "tuned", clip=clip, pool=pool, prior=prior)
    with pytest.raises(ValueError, match="condition: image was told none"):
        prior_plan(condition="image", choices="pairs")
