"""Data: an index over the shards of a user's files, and random access to their samples.

Nothing here imports torch, so that planning and curation work without it. What turns samples into tensors
(`TrainingData`, `ImageTransform`, ...) is exported by `vfm.train`.
"""

from vfm import files
from vfm.data.captions import clean_captions, field_of
from vfm.data.choices import Choice, load_choices, write_choices
from vfm.data.draws import drawn, hash_strings, splitmix64, text_key, text_keys, uniform
from vfm.data.images import FILTERS, Interpolation, ResizeMode, decode_image, open_image
from vfm.data.index import BadRow, read_index, write_index
from vfm.data.mixture import Mixture
from vfm.data.order import SameEpochs, SampleOrder
from vfm.data.parquet import ParquetShard, open_parquet
from vfm.data.questions import Question, Questions, pairs_of, write_questions
from vfm.data.sample import REASONS, BadSample, Sample, uid_of
from vfm.data.sample_cache import CACHE_FOLDER, CachedTensors, CacheWriter
from vfm.data.shards import Shard, ShardReader
from vfm.data.source import Source, check_balanced, open_balanced, open_dataset
from vfm.data.spec import DatasetSpec
from vfm.data.subset_files import (
    SUBSET_FOLDER,
    SUBSET_INDEX,
    packed_uids,
    read_subset,
    read_subset_index,
    read_subset_shard,
    stored_subset,
    subset_file,
    subset_index_rows,
    subset_schema,
    unpacked_uids,
    write_subset,
    write_subset_index,
)
from vfm.data.tags import read_tags
from vfm.data.tar_writer import write_tar
from vfm.data.texts import is_text, texts_schema
from vfm.data.webdataset import IMAGE_EXTENSIONS
from vfm.templates import check_templates

__all__ = [
    "CACHE_FOLDER", "FILTERS", "IMAGE_EXTENSIONS", "REASONS", "SUBSET_FOLDER", "SUBSET_INDEX", "BadRow", "BadSample",
    "CacheWriter", "CachedTensors", "Choice", "DatasetSpec", "Interpolation", "Mixture", "ParquetShard", "Question",
    "Questions", "ResizeMode", "SameEpochs", "Sample", "SampleOrder", "Shard", "ShardReader", "Source",
    "check_balanced", "check_templates", "clean_captions", "decode_image", "drawn", "field_of", "files", "hash_strings",
    "is_text", "load_choices", "open_balanced", "open_dataset", "open_image", "open_parquet", "packed_uids", "pairs_of",
    "read_index", "read_subset", "read_subset_index", "read_subset_shard", "read_tags", "splitmix64", "stored_subset",
    "subset_file", "subset_index_rows", "subset_schema", "text_key", "text_keys", "texts_schema", "uid_of", "uniform",
    "unpacked_uids", "write_choices", "write_index", "write_questions", "write_subset", "write_subset_index",
    "write_tar",
]  # fmt: skip
