"""Register the stages of core by the same hook as every other plugin.

A stage's configuration is imported when its kind is used, and the code that it runs, which its `work` names, when it
runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from vfm.interfaces import hookimpl

STAGES = {
    "data.images": "vfm.data.pairs.stages:Images",
    "data.pairs": "vfm.data.pairs.stages:Pairs",
    "data.stream": "vfm.data.streaming.stages:Stream",
    "data.labeled": "vfm.data.labeled.stages:Labeled",
    "data.tagged": "vfm.data.labeled.stages:Tagged",
    "data.digits": "vfm.data.labeled.stages:Digits",
    "data.caption_labels": "vfm.data.labeled.stages:CaptionLabels",
    "data.choices": "vfm.data.choices.stages:ChoiceFiles",
    "data.pooled_choices": "vfm.data.choices.stages:PooledChoices",
    "data.annotated": "vfm.data.annotated.stages:Annotated",
    "data.videos": "vfm.data.videos.stages:Videos",
    "data.video_union": "vfm.data.videos.stages:VideoUnion",
    "shapes.pool": "vfm.data.synthetic.stages:ShapesPool",
    "shapes.classes": "vfm.data.synthetic.stages:ShapesClasses",
    "shapes.choices": "vfm.data.synthetic.stages:ShapesChoices",
    "shapes.questions": "vfm.data.synthetic.stages:ShapesQuestions",
    "shapes.scenes": "vfm.data.synthetic.stages:ShapesScenes",
    "shapes.videos": "vfm.data.synthetic.stages:ShapesVideos",
    "models.clip": "vfm.models.stages:ImportClip",
    "models.vision": "vfm.models.stages:ImportVision",
    "models.generator": "vfm.models.stages:ImportGenerator",
    "models.export": "vfm.models.stages:Export",
    "models.interpolate": "vfm.eval.interpolation.stages:Interpolate",
    "eval.linear_probe": "vfm.eval.classify.stages:LinearProbe",
    "eval.attentive_probe": "vfm.eval.classify.stages:AttentiveProbe",
    "eval.knn": "vfm.eval.classify.stages:Knn",
    "eval.few_shot": "vfm.eval.classify.stages:FewShot",
    "eval.classify": "vfm.eval.classify.stages:Classify",
    "eval.zero_shot": "vfm.eval.classify.stages:ZeroShot",
    "eval.retrieval": "vfm.eval.retrieval.stages:Retrieval",
    "eval.mmvp_vlm": "vfm.eval.choices.stages:MmvpVlm",
    "eval.choices": "vfm.eval.choices.stages:Choices",
    "eval.detection": "vfm.eval.dense.stages:Detection",
    "eval.segmentation": "vfm.eval.dense.stages:Segmentation",
    "eval.panoptic": "vfm.eval.dense.stages:Panoptic",
    "eval.dense_probe": "vfm.eval.dense.stages:DenseProbe",
    "eval.open_segmentation": "vfm.eval.open_segmentation.stages:OpenSegmentation",
    "eval.video": "vfm.eval.video.stages:VideoEvaluation",
    "eval.curves": "vfm.eval.compare.stages:CurveComparison",
    "eval.summary": "vfm.eval.compare.stages:ReportSummary",
    "eval.ablation": "vfm.eval.compare.stages:Ablation",
}


@hookimpl
def vfm_stages() -> Mapping[str, str]:
    """List core's stage types by kind.

    They import data, draw synthetic shapes, import pretrained models, and evaluate.
    """
    return STAGES
