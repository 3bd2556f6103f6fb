"""The blocks of a model, which are gathered, compiled or recomputed as units."""

from __future__ import annotations

from collections import Counter

from torch import nn


def blocks(module: nn.Module) -> list[nn.Module]:
    """Find the modules that are gathered as units.

    They are the elements of the outermost lists of equal modules, such as blocks. A block that shares a weight with
    another module is left out.
    """
    uses = _uses(module)
    units: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for container in module.modules():
        if isinstance(container, (nn.ModuleList, nn.Sequential)):
            parts = list(container.children())
        else:
            parts = []
        # A list of one element, or of different layers such as a stem, gains nothing from being a unit.
        if container in inside or len(parts) < 2 or len(set(map(type, parts))) > 1:
            continue
        for part in parts:
            inside.update(part.modules())
            uses_in_part = _uses(part)
            # FSDP cannot gather a weight with one unit that another unit uses too.
            is_unshared = all(uses[key] == count for key, count in uses_in_part.items())
            if uses_in_part and is_unshared:
                units.append(part)
    return units


def _uses(module: nn.Module) -> Counter[int]:
    return Counter(id(param) for _, param in module.named_parameters(remove_duplicate=False))
