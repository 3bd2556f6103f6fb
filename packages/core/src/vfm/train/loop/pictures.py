"""Pictures of a finished training for its report, which may fail without a loss of the training."""

from __future__ import annotations

from collections.abc import Callable

from vfm.interfaces import Context, Panel
from vfm.train.parallel.dist import is_main


def show_panels(ctx: Context, *draws: Callable[[], Panel]) -> None:
    """Draw panels in the first process and leave them beside the artifact; one that cannot be drawn is a warning.

    Call it after the export: hours of training must not be lost because a decomposition does not converge or a picture
    needs too much memory.
    """
    if not is_main():
        return
    for draw in draws:
        try:
            ctx.panel(draw())
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or "no message"
            ctx.warn(f"{ctx.stage}: a picture of the report cannot be drawn: {type(error).__name__}: {reason}")
