from .clip.clip import (
    ClipModel as ClipModel,
    blueprint as blueprint,
    build_clip as build_clip,
    load_clip as load_clip,
    open_clip_incompatibility as open_clip_incompatibility,
    save_clip as save_clip,
)
from .clip.clip_config import (
    clip_weights_file as clip_weights_file,
    get_clip_config as get_clip_config,
    read_clip_config as read_clip_config,
)
from .clip.model_sources import (
    hub_record as hub_record,
    is_vision_source as is_vision_source,
    model_folder as model_folder,
)
from .clip.text import (
    PROBES as PROBES,
    WordTokenizer as WordTokenizer,
    encode_text as encode_text,
    used_length as used_length,
)
from .custom_code import without_custom_code as without_custom_code
from .encoders import (
    EncoderPrecision as EncoderPrecision,
    ImageEncoder as ImageEncoder,
    PooledVision as PooledVision,
    TextImageEncoder as TextImageEncoder,
    eval_mode as eval_mode,
)
from .generator.generator_import import import_generator as import_generator
from .generator.generator_parts import (
    check_encoder_classes as check_encoder_classes,
    denoiser_folder as denoiser_folder,
)
from .interchange.clip_import import import_clip as import_clip
from .interchange.eva_layouts import to_timm as to_timm
from .interchange.export_formats import (
    find_format as find_format,
    open_model as open_model,
    transformers_config as transformers_config,
)
from .interchange.onnx_graph import GraphExport as GraphExport, random_images as random_images
from .interchange.vision_import import import_vision as import_vision
from .low_rank import LowRank as LowRank, change_matrices as change_matrices
from .preprocess import Preprocess as Preprocess
from .vision.architectures import (
    check_vision_transformer as check_vision_transformer,
    has_patch_tokens as has_patch_tokens,
)
from .vision.attention_maps import attention_map as attention_map, attention_weights as attention_weights
from .vision.planned import (
    known_checkpoint as known_checkpoint,
    planned_checkpoint as planned_checkpoint,
    planned_clip as planned_clip,
    planned_clip_config as planned_clip_config,
    planned_encoder as planned_encoder,
)
from .vision.tower_layers import (
    TowerName as TowerName,
    first_blocks as first_blocks,
    is_of_block as is_of_block,
    named_layers as named_layers,
    tower_blocks as tower_blocks,
    tower_layers as tower_layers,
    tower_of as tower_of,
)
from .vision.vision import (
    VISION_WEIGHTS_FILE as VISION_WEIGHTS_FILE,
    build_vision as build_vision,
    class_names_of as class_names_of,
    load_vision as load_vision,
    read_masked_modelling as read_masked_modelling,
    save_vision as save_vision,
    save_vision_config as save_vision_config,
    set_class_names as set_class_names,
    vision_preprocess as vision_preprocess,
)
from .vision.vision_features import (
    ImageTokens as ImageTokens,
    cls_and_patch_tokens as cls_and_patch_tokens,
    feature_width as feature_width,
    grid_size as grid_size,
    image_tokens as image_tokens,
    patch_features as patch_features,
    vision_features as vision_features,
)
from .vision.vision_tower_init import (
    check_normalization as check_normalization,
    check_same_computation as check_same_computation,
    init_vision_tower as init_vision_tower,
)
from .vision.vision_towers import BlockTokens as BlockTokens, VisionTower as VisionTower, vision_tower as vision_tower
from .weight_transfer import (
    KeyReport as KeyReport,
    TransferRules as TransferRules,
    transfer_weights as transfer_weights,
)
from .weights import load_state_dict as load_state_dict, save_state_dict as save_state_dict
