"""The entry point of this package."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_diva.stages import DivaLatents, DivaPrior, DivaTune


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Return the stages of DIVA: cached latents, the diffusion prior, and the tuning by its feedback."""
    return [DivaLatents, DivaPrior, DivaTune]
