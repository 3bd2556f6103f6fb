"""Panels of a finished training run for its report, whose errors must not end the stage."""

from __future__ import annotations

from collections.abc import Callable

from vfm.interfaces import Context, Panel
from vfm.train.parallel.dist import is_main


def show_panels(ctx: Context, *draws: Callable[[], Panel]) -> None:
    """Draw panels in rank 0 and store them with the artifact. A panel that cannot be drawn gives a warning.

    Call it after the export, since hours of training must not be lost because a decomposition does not converge or an
    image needs too much memory.
    """
    if not is_main():
        return
    for draw in draws:
        try:
            ctx.panel(draw())
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or "no message"
            ctx.warn(f"{ctx.stage}: an image of the report cannot be drawn: {type(error).__name__}: {reason}")
