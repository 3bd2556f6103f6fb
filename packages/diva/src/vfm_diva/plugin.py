"""Entry point of this package."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_diva.forecast import stages as stages_forecast
from vfm_diva.generator.stages import DivaLatents
from vfm_diva.mllm import stages as stages_mllm
from vfm_diva.prior.stages import DivaPrior
from vfm_diva.tune.stages import DivaTune


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """List the stages of DIVA: latents, prior, tuning, predicted gains, language models."""
    return [DivaLatents, DivaPrior, DivaTune, *stages_forecast.STAGES, *stages_mllm.STAGES]
