"""Ablation controls do what their names say, and the report names them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diva_toy import run, same, tune_config, weights
from test_tune import batch_for, gradients, make_task
from vfm.interfaces import load_panels
from vfm.plugin import ClipCheckpoint, GeneratorCheckpoint, Pool
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.generator import load_generator, randomize_weights
from vfm_diva.tune.panels import CONTROLS


def test_shuffled_conditions_each_image_on_another_images_tokens(
    clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool
) -> None:
    task, control = (make_task(clip, prior, control=name) for name in (None, "shuffled"))
    inputs = batch_for(task, pool).inputs
    with torch.no_grad():
        conditioning = task.conditioning(inputs)
        another = Conditioning(conditioning.tokens[[-1, *range(15)]])
        expected = task.errors(inputs, another).mean()
        assert control(inputs)[0] == pytest.approx(expected.item(), rel=1e-6)
        assert (expected - task(inputs)[0]).abs() > 1e-7


def test_a_random_prior_has_new_weights_and_keeps_everything_else(prior: GeneratorCheckpoint) -> None:
    whole, first, again, other = (load_generator(prior) for _ in range(4))
    for generator, seed in ((first, 5), (again, 5), (other, 6)):
        randomize_weights(generator, seed=seed)
    networks = [weights(generator.denoiser.network) for generator in (whole, first, again, other)]
    assert networks[0].keys() == networks[1].keys()
    assert same(networks[1], networks[2])
    for one, two in ((0, 1), (1, 3)):
        assert not torch.equal(networks[one]["conv_in.weight"], networks[two]["conv_in.weight"])
    assert same(weights(whole.condition_map), weights(first.condition_map))


@pytest.mark.parametrize("anchor", ["cosine", "relational", "l2_sp"])
def test_anchor_only_has_the_gradient_of_the_anchor(
    anchor: str, clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool
) -> None:
    both, none = make_task(clip, prior, anchor), make_task(clip, prior, "none")
    only = make_task(clip, prior, anchor, control="anchor_only")
    for task in (both, none, only):
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in task.visual.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    batch = batch_for(both, pool)
    of_both, of_none, of_only = (gradients(task, [batch]) for task in (both, none, only))
    assert of_only.keys() == of_both.keys()
    for name in of_none:
        torch.testing.assert_close(of_only[name], of_both[name] - of_none[name], atol=2e-5, rtol=1e-3)
    assert of_only["visual.proj"].abs().max() > 1e-5


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_runs_and_is_named_in_the_report(
    control: str, clip: ClipCheckpoint, prior: GeneratorCheckpoint, pool: Pool, tmp_path: Path
) -> None:
    made = run(tune_config(control=control, steps=2), tmp_path, clip=clip, prior=prior, pool=pool)
    (text,) = [panel.text for panel in load_panels(made.path) if panel.title == "Ablation control"]
    assert f"This is an ablation control ({control}), not the method" in text


def test_controls_that_cannot_work_are_rejected() -> None:
    with pytest.raises(ValueError, match="anchor_only needs an anchor"):
        tune_config(control="anchor_only", anchor={"type": "none"})
    for sizes in ((16, 1), (9, 4)):
        with pytest.raises(ValueError, match="needs at least 2 images per forward pass, got 1"):
            tune_config(control="shuffled", global_batch_size=sizes[0], micro_batch_size=sizes[1])
