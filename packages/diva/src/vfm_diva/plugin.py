"""What this package brings to vfm."""

from __future__ import annotations

from collections.abc import Iterable

import vfm
from vfm_diva.latents_stage import DivaLatents
from vfm_diva.prior_stage import DivaPrior
from vfm_diva.tune_stage import DivaTune


@vfm.hookimpl
def vfm_stages() -> Iterable[type[vfm.Stage]]:
    """Kept latents, the diffusion prior, and the feedback through it."""
    return [DivaLatents, DivaPrior, DivaTune]
