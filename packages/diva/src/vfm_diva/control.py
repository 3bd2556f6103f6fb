"""Controls: trainings in which the feedback says nothing of the picture, beside which a gain is to be seen.

They show whether the gradient carries information. How large a gain is, is measured against the untouched model: a
control is not neutral, since a shuffled condition rewards the tower for saying less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import vfm.panels

if TYPE_CHECKING:
    from vfm_diva.generator import Generator

Control = Literal["shuffled", "random_prior", "anchor_only"]

WORDS: dict[Control, str] = {
    "shuffled": "each picture was denoised from the tokens of another one of its batch",
    "random_prior": "the denoiser had random weights and had learned nothing",
    "anchor_only": "the denoising error was left out of the loss, so the anchor alone trained the tower, from its "
    "minimum: what moves is rounding, which an adaptive optimiser enlarges",
}


def control_panel(control: Control) -> vfm.panels.TextPanel:
    """What was done instead of the method, for the report."""
    text = f"This is a control ({control}), not the method: {WORDS[control]}. It shows whether the method's gradient "
    text += "carries information; how large a gain is, is measured against the untouched model."
    return vfm.panels.TextPanel(title="A control", text=text, order=5)


def forget_weights(generator: Generator, *, seed: int) -> None:
    """Gives the generator's network random weights; its size, schedule, space and condition map stay."""
    import torch

    network = generator.denoiser.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator.denoiser.network = type(network).from_config(network.config)
