"""Evaluation of vision and CLIP models, and what an evaluation of one's own needs.

An evaluation subclasses `vfm.plugin.ModelEvaluation`: it encodes a dataset (`encode_dataset`, `encode_labeled`) and
returns an `Evaluated` with a `ModelResult` per model, whose scores are `Accuracy`, `MeanAveragePrecision` or
`ResampledScore`. A model with a dense head is a `DensePredictor`, whose methods return `Instances` and `PanopticMap`.
Importing this package imports torch; configurations are in `vfm.stages.evaluation`, statistics in `vfm.statistics`,
without it.
"""

from vfm.eval.attentive_probe import AttentiveHead
from vfm.eval.classification import encode_with_targets, result_from_ranks, result_from_scores
from vfm.eval.classification_panels import hardest_panel
from vfm.eval.embeddings import embed_dataset, open_writer, read_embeddings
from vfm.eval.encoders import encode_texts, load_encoder, logit_scale
from vfm.eval.evaluation import report_models, write_report
from vfm.eval.features import Encoded, encode_dataset, encode_labeled
from vfm.eval.finite import check_finite
from vfm.eval.hashes import checkpoint_hash, data_hash, item_digest
from vfm.eval.image_panels import CaptionedImage, images_panel
from vfm.eval.patch_maps import (
    MAP_GAP,
    MAP_SIDE,
    NUM_PICTURES,
    compute_patch_maps,
    enlarge,
    pca_sheet,
    side_by_side,
)
from vfm.eval.ranking import best_ranks, hits_at, label_ranks
from vfm.eval.retrieval_ranks import nearest, retrieval_ranks
from vfm.eval.zero_shot import ensemble_templates, fill_templates, zero_shot_classifier
from vfm.interfaces.dense import DensePredictor, DenseTask, Instances, PanopticMap
from vfm.interfaces.video import VideoPredictor
from vfm.scores import Evaluated, ModelResult, Score
from vfm.stages.evaluation.base import ReadSettings
from vfm.statistics import Accuracy, MeanAveragePrecision, bootstrap_interval
from vfm.statistics.resampling import ResampledScore, image_weights

__all__ = [
    "MAP_GAP", "MAP_SIDE", "NUM_PICTURES", "Accuracy", "AttentiveHead", "CaptionedImage", "DensePredictor", "DenseTask",
    "Encoded", "Evaluated", "Instances", "MeanAveragePrecision", "ModelResult", "PanopticMap", "ReadSettings",
    "ResampledScore", "Score", "VideoPredictor",
    "best_ranks", "bootstrap_interval", "check_finite", "checkpoint_hash", "compute_patch_maps", "data_hash",
    "embed_dataset", "encode_dataset", "encode_labeled", "encode_texts", "encode_with_targets", "enlarge",
    "ensemble_templates", "fill_templates", "hardest_panel", "hits_at", "image_weights", "images_panel", "item_digest",
    "label_ranks", "load_encoder", "logit_scale", "nearest", "open_writer", "pca_sheet", "read_embeddings",
    "report_models", "result_from_ranks", "result_from_scores", "retrieval_ranks", "side_by_side", "write_report",
    "zero_shot_classifier",
]  # fmt: skip
