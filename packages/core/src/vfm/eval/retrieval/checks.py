"""The check of `eval.retrieval` before a run, without torch."""

from __future__ import annotations

from vfm.eval.retrieval.stages import Retrieval
from vfm.interfaces import Preflight


def check_retrieval(config: Retrieval, ctx: Preflight) -> None:
    """Check the language where the dataset exists."""
    if data := ctx.artifact(config.data):
        data.check_languages([config.language], config.data)
