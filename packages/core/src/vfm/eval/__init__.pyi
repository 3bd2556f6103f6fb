from .classify.attentive_probe import AttentiveHead as AttentiveHead
from .classify.classification import (
    encode_with_targets as encode_with_targets,
)
from .classify.classification import (
    result_from_ranks as result_from_ranks,
)
from .classify.classification import (
    result_from_scores as result_from_scores,
)
from .classify.classification_panels import hardest_panel as hardest_panel
from .classify.zero_shot import (
    ensemble_templates as ensemble_templates,
)
from .classify.zero_shot import (
    fill_templates as fill_templates,
)
from .classify.zero_shot import (
    zero_shot_classifier as zero_shot_classifier,
)
from .encode.embeddings import (
    embed_dataset as embed_dataset,
)
from .encode.embeddings import (
    open_writer as open_writer,
)
from .encode.embeddings import (
    read_embeddings as read_embeddings,
)
from .encode.encoders import encode_texts as encode_texts
from .encode.encoders import load_encoder as load_encoder
from .encode.encoders import logit_scale as logit_scale
from .encode.evaluation import report_models as report_models
from .encode.evaluation import write_report as write_report
from .encode.features import Encoded as Encoded
from .encode.features import encode_dataset as encode_dataset
from .encode.features import encode_labeled as encode_labeled
from .encode.finite import check_finite as check_finite
from .encode.hashes import checkpoint_hash as checkpoint_hash
from .encode.hashes import data_hash as data_hash
from .encode.hashes import item_digest as item_digest
from .encode.image_panels import CaptionedImage as CaptionedImage
from .encode.image_panels import images_panel as images_panel
from .encode.patch_maps import (
    MAP_GAP as MAP_GAP,
)
from .encode.patch_maps import (
    MAP_SIDE as MAP_SIDE,
)
from .encode.patch_maps import (
    NUM_PICTURES as NUM_PICTURES,
)
from .encode.patch_maps import (
    compute_patch_maps as compute_patch_maps,
)
from .encode.patch_maps import (
    enlarge as enlarge,
)
from .encode.patch_maps import (
    pca_sheet as pca_sheet,
)
from .encode.patch_maps import (
    side_by_side as side_by_side,
)
from .encode.ranking import best_ranks as best_ranks
from .encode.ranking import hits_at as hits_at
from .encode.ranking import label_ranks as label_ranks
from .retrieval.retrieval_ranks import nearest as nearest
from .retrieval.retrieval_ranks import retrieval_ranks as retrieval_ranks
