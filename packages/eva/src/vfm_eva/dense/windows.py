"""Split the tokens of a map into square windows, and join them again."""

# B images, N tokens, C channels, w side of a window in patches

from __future__ import annotations

from torch import Tensor

from vfm.plugin import UserError

Grid = tuple[int, int]


def check_window(grid: Grid, window: int, patch_size: int) -> None:
    """Check that windows tile a map of patches.

    Padding is not supported: detectron2 pads after a block's first norm, but here windows wrap the whole block.

    Args:
        grid: Rows and columns of the patches.
        window: Side of a window in patches.
        patch_size: Side of a patch in pixels, for the message.

    Raises:
        UserError: If they do not.
    """
    if any(side % window for side in grid):
        pixels = " x ".join(str(side * patch_size) for side in grid)
        step = window * patch_size
        raise UserError(
            f"window: {pixels} pixels are {grid[0]} x {grid[1]} patches, which windows of {window} do not tile;"
            f" expected sides that are multiples of {step} pixels ({window} patches of {patch_size})"
        )


def to_windows(tokens: Tensor, grid: Grid, window: int) -> Tensor:
    """Cut the tokens of maps into windows.

    Args:
        tokens: (B, N, C), row by row.
        grid: Rows and columns, multiples of `window`.
        window: Side of a window in patches, w.

    Returns:
        (B N / w^2, w^2, C): the windows of an image row by row, and the tokens of each window row by row.
    """
    batch, _, channels = tokens.shape
    rows, columns = grid[0] // window, grid[1] // window
    cut = tokens.view(batch, rows, window, columns, window, channels).transpose(2, 3)
    return cut.reshape(batch * rows * columns, window * window, channels)


def from_windows(windows: Tensor, grid: Grid, window: int) -> Tensor:
    """Join the windows cut by `to_windows` into maps.

    Args:
        windows: Windows of all maps.
        grid: Rows and columns of the patches.
        window: Side of a window in patches.

    Returns:
        (B, N, C).
    """
    rows = grid[0] // window
    columns = grid[1] // window
    channels = windows.shape[-1]
    cut = windows.view(-1, rows, columns, window, window, channels).transpose(2, 3)
    return cut.reshape(-1, grid[0] * grid[1], channels)
