from .clip.clip import (
    ClipModel as ClipModel,
)
from .clip.clip import (
    blueprint as blueprint,
)
from .clip.clip import (
    build_clip as build_clip,
)
from .clip.clip import (
    load_clip as load_clip,
)
from .clip.clip import (
    open_clip_incompatibility as open_clip_incompatibility,
)
from .clip.clip import (
    save_clip as save_clip,
)
from .clip.clip_config import (
    clip_weights_file as clip_weights_file,
)
from .clip.clip_config import (
    get_clip_config as get_clip_config,
)
from .clip.clip_config import (
    read_clip_config as read_clip_config,
)
from .clip.model_sources import is_vision_source as is_vision_source
from .clip.text import (
    PROBES as PROBES,
)
from .clip.text import (
    WordTokenizer as WordTokenizer,
)
from .clip.text import (
    encode_text as encode_text,
)
from .clip.text import (
    used_length as used_length,
)
from .clip.tower_layers import (
    TowerName as TowerName,
)
from .clip.tower_layers import (
    first_blocks as first_blocks,
)
from .clip.tower_layers import (
    is_of_block as is_of_block,
)
from .clip.tower_layers import (
    named_layers as named_layers,
)
from .clip.tower_layers import (
    tower_blocks as tower_blocks,
)
from .clip.tower_layers import (
    tower_layers as tower_layers,
)
from .clip.tower_layers import (
    tower_of as tower_of,
)
from .custom_code import without_custom_code as without_custom_code
from .encoders import (
    EncoderPrecision as EncoderPrecision,
)
from .encoders import (
    ImageEncoder as ImageEncoder,
)
from .encoders import (
    PooledVision as PooledVision,
)
from .encoders import (
    TextImageEncoder as TextImageEncoder,
)
from .encoders import (
    eval_mode as eval_mode,
)
from .generator.generator_import import import_generator as import_generator
from .generator.generator_parts import (
    check_encoder_classes as check_encoder_classes,
)
from .generator.generator_parts import (
    denoiser_folder as denoiser_folder,
)
from .interchange.clip_import import import_clip as import_clip
from .interchange.eva_layouts import to_timm as to_timm
from .interchange.export_formats import (
    find_format as find_format,
)
from .interchange.export_formats import (
    open_model as open_model,
)
from .interchange.export_formats import (
    transformers_config as transformers_config,
)
from .interchange.vision_import import import_vision as import_vision
from .low_rank import LowRank as LowRank
from .preprocess import Preprocess as Preprocess
from .vision.attention_maps import attention_map as attention_map
from .vision.attention_maps import attention_weights as attention_weights
from .vision.planned import (
    planned_checkpoint as planned_checkpoint,
)
from .vision.planned import (
    planned_clip as planned_clip,
)
from .vision.planned import (
    planned_clip_config as planned_clip_config,
)
from .vision.planned import (
    planned_encoder as planned_encoder,
)
from .vision.vision import (
    VISION_WEIGHTS_FILE as VISION_WEIGHTS_FILE,
)
from .vision.vision import (
    build_vision as build_vision,
)
from .vision.vision import (
    class_names_of as class_names_of,
)
from .vision.vision import (
    load_vision as load_vision,
)
from .vision.vision import (
    read_masked_modelling as read_masked_modelling,
)
from .vision.vision import (
    save_vision as save_vision,
)
from .vision.vision import (
    save_vision_config as save_vision_config,
)
from .vision.vision import (
    set_class_names as set_class_names,
)
from .vision.vision import (
    vision_preprocess as vision_preprocess,
)
from .vision.vision_features import (
    ImageTokens as ImageTokens,
)
from .vision.vision_features import (
    cls_and_patch_tokens as cls_and_patch_tokens,
)
from .vision.vision_features import (
    feature_width as feature_width,
)
from .vision.vision_features import (
    grid_size as grid_size,
)
from .vision.vision_features import (
    image_tokens as image_tokens,
)
from .vision.vision_features import (
    patch_features as patch_features,
)
from .vision.vision_features import (
    vision_features as vision_features,
)
from .vision.vision_tower_init import (
    check_normalization as check_normalization,
)
from .vision.vision_tower_init import (
    check_same_computation as check_same_computation,
)
from .vision.vision_tower_init import (
    init_vision_tower as init_vision_tower,
)
from .vision.vision_towers import BlockTokens as BlockTokens
from .vision.vision_towers import VisionTower as VisionTower
from .vision.vision_towers import vision_tower as vision_tower
from .weight_transfer import (
    KeyReport as KeyReport,
)
from .weight_transfer import (
    TransferRules as TransferRules,
)
from .weight_transfer import (
    transfer_weights as transfer_weights,
)
from .weights import load_state_dict as load_state_dict
from .weights import save_state_dict as save_state_dict
