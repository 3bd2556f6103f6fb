from .choices.choices import score_mmvp_vlm as score_mmvp_vlm
from .classify.attentive_probe import AttentiveHead as AttentiveHead
from .classify.classification import (
    encode_with_targets as encode_with_targets,
    result_from_ranks as result_from_ranks,
    result_from_scores as result_from_scores,
)
from .classify.classification_panels import hardest_panel as hardest_panel
from .classify.zero_shot import (
    ensemble_templates as ensemble_templates,
    fill_templates as fill_templates,
    zero_shot_classifier as zero_shot_classifier,
)
from .dense.predictor import (
    DensePredictor as DensePredictor,
    DenseTask as DenseTask,
    Instances as Instances,
    ObjectPredictor as ObjectPredictor,
    PanopticMap as PanopticMap,
    PanopticPredictor as PanopticPredictor,
    SemanticPredictor as SemanticPredictor,
)
from .encode.embeddings import (
    embed_dataset as embed_dataset,
    open_writer as open_writer,
    read_embeddings as read_embeddings,
)
from .encode.encoders import encode_texts as encode_texts, load_encoder as load_encoder, logit_scale as logit_scale
from .encode.evaluation import report_models as report_models, write_report as write_report
from .encode.features import Encoded as Encoded, encode_dataset as encode_dataset, encode_labeled as encode_labeled
from .encode.finite import check_finite as check_finite
from .encode.hashes import checkpoint_hash as checkpoint_hash, data_hash as data_hash, item_digest as item_digest
from .encode.image_panels import CaptionedImage as CaptionedImage, images_panel as images_panel
from .encode.patch_maps import (
    MAP_GAP as MAP_GAP,
    MAP_SIDE as MAP_SIDE,
    NUM_IMAGES as NUM_IMAGES,
    compute_patch_maps as compute_patch_maps,
    enlarge as enlarge,
    pca_sheet as pca_sheet,
    side_by_side as side_by_side,
)
from .encode.ranking import best_ranks as best_ranks, hits_at as hits_at, label_ranks as label_ranks
from .retrieval.retrieval_ranks import nearest as nearest, retrieval_ranks as retrieval_ranks
from .video.predictor import VideoPredictor as VideoPredictor
