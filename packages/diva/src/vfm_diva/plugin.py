"""Entry point of this package."""

from __future__ import annotations

from collections.abc import Mapping

from vfm.plugin import hookimpl

# Latents, prior, tuning, predicted gains, language models.
STAGES = {
    "diva.latents": "vfm_diva.generator.stages:DivaLatents",
    "diva.prior": "vfm_diva.prior.stages:DivaPrior",
    "diva.tune": "vfm_diva.tune.stages:DivaTune",
    "diva.predict": "vfm_diva.forecast.stages:DivaPredict",
    "diva.law": "vfm_diva.forecast.stages:DivaLaw",
    "mllm.train": "vfm_diva.mllm.stages:MllmTrain",
    "mllm.questions": "vfm_diva.mllm.stages:MllmQuestions",
    "mllm.pope": "vfm_diva.mllm.stages:MllmPope",
    "eval.mllm": "vfm_diva.mllm.stages:EvalMllm",
    "eval.lmms": "vfm_diva.mllm.stages:EvalLmms",
}


@hookimpl
def vfm_stages() -> Mapping[str, str]:
    """List the stages of DIVA by kind."""
    return STAGES
