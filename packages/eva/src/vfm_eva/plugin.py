"""The stages that this package adds to vfm."""

from __future__ import annotations

from collections.abc import Mapping

from vfm.plugin import hookimpl

# Pre-training with its targets and evaluation, fine-tuning, and dense tasks.
STAGES = {
    "eva.targets": "vfm_eva.targets.stages:EvaTargets",
    "eva.pretrain": "vfm_eva.pretrain.stages:EvaPretrain",
    "eva.clip": "vfm_eva.pretrain.stages:EvaClip",
    "eva.finetune": "vfm_eva.finetune.stages:EvaFinetune",
    "eva.video": "vfm_eva.video.stages:EvaVideo",
    "eval.masked_patches": "vfm_eva.pretrain.held_out_stages:MaskedPatches",
    "eva.detect": "vfm_eva.dense.detect.stages:EvaDetect",
    "eva.import_detector": "vfm_eva.dense.detect.stages:ImportDetector",
    "eva.segment": "vfm_eva.dense.segment.stages:EvaSegment",
    "eva.import_segmenter": "vfm_eva.dense.segment.stages:ImportSegmenter",
    "eva.import_dense": "vfm_eva.dense.imported.stages:ImportDense",
}


@hookimpl
def vfm_stages() -> Mapping[str, str]:
    """List the stages of EVA by kind."""
    return STAGES
