"""Statement losses: equal to those of one image and one time after another, and shares with the right symmetry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diva_toy import WORLD, context, prior_config, prior_task, run, tune_config
from test_diva_stages import known, refusal
from vfm.data import Choice, ImageTransform, SampleDraw, decode_image, load_choices, to_tensor, write_choices
from vfm.data.synthetic.stages import ShapesChoices
from vfm.interfaces import Event, load_panels
from vfm.plugin import ChoiceDataset, ClipCheckpoint, Pool
from vfm_diva import LogitNormal
from vfm_diva.generator.generator import load_generator
from vfm_diva.generator.noise import NoiseSampler
from vfm_diva.prior.prior_task import PriorTask
from vfm_diva.prior.statement_losses import statement_losses, statement_pairs, statement_panel

TRANSFORM, SAMPLER = ImageTransform(8, "crop"), NoiseSampler((3, 8, 8), 3, LogitNormal())


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> ChoiceDataset:
    stage = ShapesChoices(name="pairs", world=WORLD, pairs_per_pattern=20)
    return run(stage, tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("states", [False, True])
def test_losses_equal_those_of_one_image_and_one_time_after_another(
    states: bool, clip: ClipCheckpoint, choices: ChoiceDataset
) -> None:
    task = prior_task(clip, **({"embed_dim": None} if states else {}))
    pairs = list(statement_pairs(load_choices(choices)))[:34]
    losses = statement_losses(task, pairs, TRANSFORM, SAMPLER, seed=5)
    assert losses.shape == (34, 2)
    for place in (0, 33):
        pair, seed = pairs[place], SampleDraw.of(5, 0, place).seed
        image = to_tensor(TRANSFORM.apply(decode_image(pair.image, ""), seed))
        noise, times = (drawn[0] for drawn in SAMPLER([seed]))
        for column, statement in enumerate((pair.right, pair.wrong)):
            with torch.no_grad():
                conditioning = task.condition_on_texts([statement])
                x0 = task.space(image[None])
                plain = [task.denoiser(x0, noise[n : n + 1], times[n : n + 1], conditioning).item() for n in range(3)]
            assert losses[place, column] == pytest.approx(sum(plain) / 3, rel=1e-5)


def panel_rows(task: PriorTask, choices: Sequence[Choice]) -> Any:
    return statement_panel(task, choices, TRANSFORM, SAMPLER).rows


def test_equal_losses_rise_in_half_of_the_images_and_swapped_statements_invert_the_share(
    clip: ClipCheckpoint, choices: ChoiceDataset
) -> None:
    task, items = prior_task(clip), list(load_choices(choices))
    equal = [replace(choice, statements=[choice.statements[0]] * 2) for choice in items]
    mean = float(statement_losses(task, list(statement_pairs(equal)), TRANSFORM, SAMPLER)[:, 0].mean())
    assert panel_rows(task, equal)[-1][1:] == pytest.approx([40, round(mean, 4), 0, 50, 50, 50])
    swapped = [replace(choice, truth=choice.truth[::-1]) for choice in items]
    assert sum(panel_rows(task, each)[-1][4] for each in (items, swapped)) == pytest.approx(100, abs=0.1)


def test_images_without_a_statement_of_their_own_are_left_out() -> None:
    sugar = Choice("a", "object", [b"x"], ["right", "wrong"], [0, -1])
    winoground = Choice("b", "swap", [b"x", b"y"], ["one", "other"], [0, 1])
    nothing = Choice("c", "none", [b"x"], ["wrong"], [-1])
    pairs = [(pair.item, pair.image, pair.right, pair.wrong) for pair in statement_pairs([sugar, winoground, nothing])]
    assert pairs == [("a", b"x", "right", "wrong"), ("b", b"x", "one", "other"), ("b", b"y", "other", "one")]


def test_a_prior_of_text_states_reports_statement_losses_and_needs_an_adapter(
    clip: ClipCheckpoint, pool: Pool, choices: ChoiceDataset, tmp_path: Path
) -> None:
    config = prior_config(condition={"source": "text_states", "width": 24}, choices="pairs", steps=2)
    config.preflight(known(clip=clip, pool=pool))
    prior = run(config, tmp_path / "prior", clip=clip, pool=pool, pairs=choices)
    generator = load_generator(prior)
    assert generator.condition_map is None
    assert generator.inputs.context_width == 16  # the text tower's
    titles = [panel.title for panel in load_panels(prior.path)]
    assert "Effect of a wrong statement on the prior's loss" in titles
    assert "set adapter.type: linear" in refusal(tune_config(), clip=clip, prior=prior)
    run(tune_config(adapter={"type": "linear"}, steps=2), tmp_path / "tuned", clip=clip, pool=pool, prior=prior)
    with pytest.raises(ValueError, match=r"choices needs a prior conditioned on text, got condition.source: image"):
        prior_config(condition={"source": "image"}, choices="pairs")


def test_a_table_that_cannot_be_made_is_a_warning_and_the_prior_is_exported(
    clip: ClipCheckpoint, pool: Pool, choices: ChoiceDataset, tmp_path: Path
) -> None:
    alone = (replace(choice, statements=["of no image"], truth=[-1]) for choice in load_choices(choices))
    pairs = write_choices(tmp_path / "pairs", alone)
    config, folder = prior_config(choices="pairs", steps=2), tmp_path / "prior"
    ctx = context(config, folder, clip=clip, pool=pool, pairs=pairs)
    for made in (ctx.directory, ctx.work):
        made.mkdir(parents=True)
    events: list[Event] = []
    prior = config.run(replace(ctx, send=events.append))
    assert load_generator(prior).condition_map
    (warning,) = [event.data["message"] for event in events if event.type == "warning"]
    assert warning == (
        "prior: an image of the report cannot be drawn: ValueError: no image of the choices has both a right and a"
        " wrong statement"
    )
