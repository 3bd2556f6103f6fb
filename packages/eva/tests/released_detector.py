"""EVA's names of a detector's weights, to write files as released ones."""

from __future__ import annotations

import re

from vfm_eva.dense.detect.eva_layout import _NAMES, _RESAMPLING, ENCODER, _renamed

_OUR_RELATIVE = re.compile(r"relative\.(\d+)\.(rows|columns)")
_OUR_LEVEL = re.compile(r"pyramid\.levels\.(\d)\.(\d+)\.(\w+)")
_OUR_CONV = re.compile(r"cascade\.(?:stages\.(\d+)|mask_head)\.convs\.(\d+)\.([01])\.(\w+)")


def official_name(key: str) -> str:
    """Convert the name of a `DetectorHead` weight to EVA's official name. This inverts `head_name`."""
    match = _OUR_RELATIVE.fullmatch(key)
    if match:
        axis = "h" if match[2] == "rows" else "w"
        return f"{ENCODER}blocks.{match[1]}.attn.rel_pos_{axis}"
    match = _OUR_LEVEL.fullmatch(key)
    if match:
        level = int(match[1])
        layer = int(match[2])
        is_norm = 0
        first = _RESAMPLING[level]
        if layer >= first:
            layer, is_norm = divmod(layer - first, 2)
            layer += first
        norm = "norm." if is_norm else ""
        return f"backbone.simfp_{level + 2}.{layer}.{norm}{match[3]}"
    match = _OUR_CONV.fullmatch(key)
    if match:
        stage = match[1]
        number = int(match[2]) + 1
        kind = match[4]
        norm = "norm." if match[3] == "1" else ""
        prefix = f"box_head.{stage}.conv" if stage else "mask_head.mask_fcn"
        return f"roi_heads.{prefix}{number}.{norm}{kind}"
    return _renamed(key, [(ours, official) for official, ours in _NAMES])
