"""The entry point of this package."""

from __future__ import annotations

from collections.abc import Iterable

from vfm.plugin import Stage, hookimpl
from vfm_diva import stages_mllm
from vfm_diva.stages import DivaLatents, DivaPrior, DivaTune


@hookimpl
def vfm_stages() -> Iterable[type[Stage]]:
    """Return the stages of DIVA (cached latents, prior, tuning) and of the language models that read its towers."""
    return [DivaLatents, DivaPrior, DivaTune, *stages_mllm.STAGES]
