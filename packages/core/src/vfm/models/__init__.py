"""Models: timm's vision encoders and open_clip's CLIP models, built, loaded, imported, saved and exported.

Importing this package imports torch, timm and open_clip, and registers the small architectures of
`vfm.models.small_models` with both. Stages that only describe models are in `vfm.stages.models`, without torch.
"""

from vfm.models.attention_maps import attention_map, attention_weights
from vfm.models.clip import (
    ClipModel,
    blueprint,
    build_clip,
    load_clip,
    open_clip_incompatibility,
    save_clip,
)
from vfm.models.clip_config import clip_weights_file, get_clip_config, read_clip_config
from vfm.models.clip_import import import_clip
from vfm.models.encoders import EncoderPrecision, ImageEncoder, PooledVision, TextImageEncoder, eval_mode
from vfm.models.eva_layouts import to_timm
from vfm.models.export_formats import find_format, open_model, transformers_config
from vfm.models.generator_import import import_generator
from vfm.models.generator_parts import denoiser_folder
from vfm.models.low_rank import LowRank, check_low_rank, linear_layers
from vfm.models.model_sources import is_vision_source
from vfm.models.planned import planned_checkpoint, planned_clip, planned_clip_config, planned_encoder
from vfm.models.preprocess import Preprocess
from vfm.models.text import PROBES, WordTokenizer, encode_text, used_length
from vfm.models.vision import (
    VISION_WEIGHTS_FILE,
    build_vision,
    class_names_of,
    load_vision,
    read_masked_modelling,
    save_vision,
    save_vision_config,
    set_class_names,
    vision_preprocess,
)
from vfm.models.vision_features import (
    ImageTokens,
    cls_and_patch_tokens,
    feature_width,
    grid_size,
    image_tokens,
    patch_features,
    vision_features,
)
from vfm.models.vision_import import import_vision
from vfm.models.vision_tower_init import check_normalization, check_same_computation, init_vision_tower
from vfm.models.vision_towers import BlockTokens, VisionTower, vision_tower
from vfm.models.weight_transfer import KeyReport, TransferRules, transfer_weights
from vfm.models.weights import load_state_dict, save_state_dict

__all__ = [
    "PROBES", "VISION_WEIGHTS_FILE", "BlockTokens", "ClipModel", "EncoderPrecision", "ImageEncoder", "ImageTokens",
    "KeyReport", "LowRank", "PooledVision", "Preprocess", "TextImageEncoder", "TransferRules", "VisionTower",
    "WordTokenizer", "attention_map", "attention_weights", "blueprint", "build_clip", "build_vision",
    "check_low_rank", "check_normalization", "check_same_computation", "class_names_of", "clip_weights_file",
    "cls_and_patch_tokens", "denoiser_folder", "encode_text", "eval_mode", "feature_width", "find_format",
    "get_clip_config", "grid_size", "image_tokens", "import_clip", "import_generator", "import_vision",
    "init_vision_tower", "is_vision_source", "linear_layers", "load_clip", "load_state_dict", "load_vision",
    "open_clip_incompatibility", "open_model", "patch_features", "planned_checkpoint", "planned_clip",
    "planned_clip_config", "planned_encoder", "read_clip_config", "read_masked_modelling", "save_clip",
    "save_state_dict", "save_vision", "save_vision_config", "set_class_names", "to_timm", "transfer_weights",
    "transformers_config", "used_length", "vision_features", "vision_preprocess", "vision_tower",
]  # fmt: skip
