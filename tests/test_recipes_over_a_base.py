"""Recipes over a base resolve to the same stages as ever."""

from __future__ import annotations

import hashlib
import json

from vfm.flow.recipe.recipe_source import read_source, read_text
from vfm.flow.recipe.shipped import shipped_files

# Hashes of the stages that these recipes had before they were laid over a base. A change on purpose changes the hash.
STAGES_OVER_BASE = {
    "eva_02_l_k400": "6de3a96487a3",
    "eva_claim_more": "964677825ca3",
    "eva_claim_rates": "f62e0174def5",
    "mask_claim_controls": "fbea7da8624a",
    "mask_images_blank": "3780458f3a08",
    "mask_images_controls": "9223e05ea9d9",
    "mask_images_long": "2804b3e1ce3c",
    "vocabulary_claim_matched": "d25673bfd000",
    "open_segmentation_tiny": "13ad130a68c9",
    "clip_b32": "ce6db29f38b1",
    "clip_l14": "99620856d696",
    "metaclip_b16": "fa7ee8b94502",
    "metaclip_b32": "1653abe5b9d3",
    "metaclip_l14": "03b595d70473",
    "eva_02_ti": "47662636506b",
    "eva_02_s": "29254f57f60e",
    "eva_02_l": "fd47628d96a4",
    "eva_02_l_ade20k": "d56c429fdd4d",
    "eva_02_l_coco_stuff": "078ac0426ab8",
    "eva_02_b_448": "be4e855656c7",
    "eva_02_b_coco_1536": "16b73cdbc5d1",
    "eva_02_b_lvis": "4f32f568aea8",
    "eva_02_l_coco": "250538bb75d1",
    "eva_02_l_coco_1536": "239cbe8e6fca",
    "eva_02_l_lvis": "1d107ed43e18",
    "eva_02_l_lvis_1536": "12e12e438fbb",
    "eva_g_lvis": "b79d00165a97",
}


def test_shipped_recipes_over_a_base_resolve_to_their_papers_values() -> None:
    found = {}
    for file in shipped_files("recipes").values():
        source = read_source(read_text(file), file.name, file.parent)
        if source.bases:
            stages = json.dumps(source.value["stages"], sort_keys=True)
            found[file.stem] = hashlib.sha256(stages.encode()).hexdigest()[:12]
    assert found == STAGES_OVER_BASE
