"""Sizes that are measured: of EVA, CLIP and SigLIP, more for the table of choices, and tiny ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import problems
from problems import FP32, HALF, Problem

# Builder, its arguments, and the arguments that are smaller for the comparison of numbers.
REAL: list[tuple[Callable[..., Problem], dict[str, Any], dict[str, Any]]] = [
    *(
        (problems.attention, {"batch": batch, "tokens": tokens, "heads": heads, "width": width, **kind}, {"batch": 2})
        for batch, tokens, heads, width, kind in [
            (256, 257, 16, 64, {}),
            (256, 257, 16, 64, {"rope": True}),
            (256, 256, 16, 64, {}),
            (256, 129, 16, 64, {}),
            (256, 128, 16, 64, {}),
            (256, 197, 16, 64, {}),
            (128, 257, 16, 88, {}),
            (128, 257, 16, 80, {}),
            (128, 256, 16, 72, {}),
            (64, 257, 16, 104, {}),
            (64, 257, 16, 112, {}),
            (16, 257, 40, 128, {}),
            (128, 577, 16, 64, {}),
            (64, 1025, 16, 64, {}),
            (512, 77, 12, 64, {"causal": True}),
            (64, 257, 16, 64, {"crops": True}),
            (64, 256, 16, 88, {}),  # windows of dense tasks
            (4, 4096, 16, 64, {}),  # their global blocks, and 16 x 256 tokens of a video
            (4, 4096, 16, 88, {}),
            (8, 3136, 12, 64, {}),  # 16 x 196 tokens of a video
        ]
    ),
    *(
        (problems.matmul, {"rows": 65792, "inner": inner, "outer": outer}, {"rows": 514})
        for inner, outer in [
            (1024, 2730),
            (1024, 2736),
            (1024, 2752),
            (2730, 1024),
            (2752, 1024),
            (588, 1024),
            (592, 1024),
        ]
    ),
    (problems.rotation, {"batch": 256, "tokens": 256, "heads": 16, "width": 64}, {"batch": 2}),
    (problems.rotation, {"batch": 128, "tokens": 256, "heads": 16, "width": 88}, {"batch": 2}),
    (problems.swiglu, {"rows": 65792, "width": 2730, "padded": 2752}, {"rows": 514}),
    (problems.swiglu, {"rows": 65792, "width": 2048, "padded": 2048}, {"rows": 514}),
    (problems.add_layer_norm, {"batch": 256, "tokens": 257, "channels": 1024, "stream": HALF}, {"batch": 2}),
    (problems.add_layer_norm, {"batch": 256, "tokens": 257, "channels": 1024, "stream": FP32}, {"batch": 2}),
    (problems.mask_tokens, {"batch": 256, "tokens": 256, "channels": 1024}, {"batch": 2}),
    (problems.gather_tokens, {"batch": 256, "tokens": 256, "kept": 64, "channels": 1024}, {"batch": 2}),
    (problems.scatter_tokens, {"batch": 256, "tokens": 256, "kept": 64, "channels": 1024}, {"batch": 2}),
    (problems.masked_cosine, {"batch": 256, "tokens": 256, "channels": 1024}, {"batch": 2}),
    (problems.contrastive, {"batch": 32768, "channels": 1024, "loss": "info_nce"}, {"batch": 512}),
    (problems.contrastive, {"batch": 32768, "channels": 1024, "loss": "info_nce_all_pairs"}, {"batch": 512}),
    (problems.contrastive, {"batch": 32768, "channels": 1024, "loss": "siglip_loss"}, {"batch": 512}),
]
SMALL = {"batch": 2, "tokens": 17, "heads": 2, "width": 16, "channels": 32, "rows": 8, "padded": 32, "kept": 5}
SMALL |= {"inner": 16, "outer": 8}
# The same list at sizes for a CPU, without duplicates, for tests of the runner.
_SMALL = [
    (build, {name: SMALL.get(name, value) for name, value in arguments.items()}, {}) for build, arguments, _ in REAL
]
TINY = [entry for number, entry in enumerate(_SMALL) if entry not in _SMALL[:number]]

# What `auto` chooses among: both sides of where the winner may change, by batch x heads, length and width of a head.
_HEADS = 16
GRID = [
    *(
        (problems.attention, {"batch": batch, "tokens": tokens, "heads": _HEADS, "width": width}, {"batch": 1})
        for width, tokens, batch in itertools.product((64, 88), (50, 129, 197, 257, 577, 1025), (1, 8, 64, 256))
    ),
    *((build, arguments, smaller) for build, arguments, smaller in REAL if build is not problems.matmul),
    *(
        (build, arguments | {name: arguments[name] // 16}, smaller)
        for build, arguments, smaller in REAL
        for name in ("rows", "batch")
        if name in arguments and build not in (problems.attention, problems.matmul)
    ),
]
