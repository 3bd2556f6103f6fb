"""Recipes over a base resolve to the values of their papers."""

from __future__ import annotations

import hashlib
import json

from vfm.flow.recipe.recipe_source import read_source, read_text
from vfm.flow.recipe.shipped import shipped_files

# Hashes of the stages that these recipes had before they were laid over a base. A change on purpose changes the hash.
STAGES_OVER_BASE = {
    "eva_02_l_k400": "8fe42f7fcfa1",
    "eva_claim_more": "3fe1cec9589a",
    "eva_claim_rates": "f62e0174def5",
    "open_segmentation_tiny": "2c3fe623d977",
    "clip_b32": "ce6db29f38b1",
    "clip_l14": "99620856d696",
    "metaclip_b16": "fa7ee8b94502",
    "metaclip_b32": "1653abe5b9d3",
    "metaclip_l14": "03b595d70473",
    "eva_02_ti": "47662636506b",
    "eva_02_s": "29254f57f60e",
    "eva_02_l": "fd47628d96a4",
    "eva_02_l_ade20k": "f3299a6aca66",
    "eva_02_l_coco_stuff": "9bcb13e8980b",
    "eva_02_b_448": "be4e855656c7",
    "eva_02_b_coco_1536": "ca9171b72c65",
    "eva_02_b_lvis": "f3064766defc",
    "eva_02_l_coco": "9db992e55957",
    "eva_02_l_coco_1536": "42888b43d88c",
    "eva_02_l_lvis": "ceb6ebfd45a5",
    "eva_02_l_lvis_1536": "5cc2a252c4b9",
    "eva_g_lvis": "dd4319dcdd20",
}


def test_shipped_recipes_over_a_base_resolve_to_their_papers_values() -> None:
    found = {}
    for file in shipped_files("recipes").values():
        source = read_source(read_text(file), file.name, file.parent)
        if source.bases:
            stages = json.dumps(source.value["stages"], sort_keys=True)
            found[file.stem] = hashlib.sha256(stages.encode()).hexdigest()[:12]
    assert found == STAGES_OVER_BASE
