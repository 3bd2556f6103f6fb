"""The check of `eval.retrieval` before a run. This module does not import torch."""

from __future__ import annotations

from vfm.eval.retrieval.stages import Retrieval
from vfm.interfaces import Preflight


def check_retrieval(config: Retrieval, ctx: Preflight) -> None:
    """Check that the dataset has the configured language, if the dataset already exists."""
    data = ctx.artifact(config.data)
    if data:
        data.check_languages([config.language], config.data)
