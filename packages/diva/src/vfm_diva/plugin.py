"""What this package brings to vfm."""

from __future__ import annotations

from collections.abc import Iterable

import vfm
from vfm_diva.prior_stage import DivaPrior
from vfm_diva.tune_stage import DivaTune


@vfm.hookimpl
def vfm_stages() -> Iterable[type[vfm.Stage]]:
    """The diffusion prior, and the feedback through it."""
    return [DivaPrior, DivaTune]
