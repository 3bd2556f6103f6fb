from .choices.choices import Choice as Choice
from .choices.choices import load_choices as load_choices
from .choices.choices import write_choices as write_choices
from .choices.questions import (
    Question as Question,
)
from .choices.questions import (
    Questions as Questions,
)
from .choices.questions import (
    pairs_of as pairs_of,
)
from .choices.questions import (
    write_questions as write_questions,
)
from .index.index import BadRow as BadRow
from .index.index import read_index as read_index
from .index.index import write_index as write_index
from .index.mixture import Mixture as Mixture
from .index.source import (
    Source as Source,
)
from .index.source import (
    check_balanced as check_balanced,
)
from .index.source import (
    open_balanced as open_balanced,
)
from .index.source import (
    open_dataset as open_dataset,
)
from .index.subset_files import (
    SUBSET_FOLDER as SUBSET_FOLDER,
)
from .index.subset_files import (
    SUBSET_INDEX as SUBSET_INDEX,
)
from .index.subset_files import (
    packed_uids as packed_uids,
)
from .index.subset_files import (
    read_subset as read_subset,
)
from .index.subset_files import (
    read_subset_index as read_subset_index,
)
from .index.subset_files import (
    read_subset_shard as read_subset_shard,
)
from .index.subset_files import (
    stored_subset as stored_subset,
)
from .index.subset_files import (
    subset_file as subset_file,
)
from .index.subset_files import (
    subset_index_rows as subset_index_rows,
)
from .index.subset_files import (
    subset_schema as subset_schema,
)
from .index.subset_files import (
    unpacked_uids as unpacked_uids,
)
from .index.subset_files import (
    write_subset as write_subset,
)
from .index.subset_files import (
    write_subset_index as write_subset_index,
)
from .labeled.tags import read_tags as read_tags
from .loading.batch import (
    Batch as Batch,
)
from .loading.batch import (
    Make as Make,
)
from .loading.batch import (
    Ragged as Ragged,
)
from .loading.batch import (
    SampleDraw as SampleDraw,
)
from .loading.batch import (
    map_tensors as map_tensors,
)
from .loading.cache_filling import Crops as Crops
from .loading.cache_filling import MakeCrops as MakeCrops
from .loading.cache_filling import fill_cache as fill_cache
from .loading.eval_loader import eval_batches as eval_batches
from .loading.eval_loader import ordered_batches as ordered_batches
from .loading.loader import TrainingData as TrainingData
from .loading.loader import prefetch as prefetch
from .loading.sample_cache import (
    CACHE_FOLDER as CACHE_FOLDER,
)
from .loading.sample_cache import (
    CachedTensors as CachedTensors,
)
from .loading.sample_cache import (
    CacheWriter as CacheWriter,
)
from .loading.transforms import ImageTransform as ImageTransform
from .loading.transforms import to_tensor as to_tensor
from .prompts.templates import check_templates as check_templates
from .samples.captions import clean_captions as clean_captions
from .samples.captions import field_of as field_of
from .samples.draws import (
    drawn as drawn,
)
from .samples.draws import (
    hash_strings as hash_strings,
)
from .samples.draws import (
    splitmix64 as splitmix64,
)
from .samples.draws import (
    text_key as text_key,
)
from .samples.draws import (
    text_keys as text_keys,
)
from .samples.draws import (
    uniform as uniform,
)
from .samples.images import (
    FILTERS as FILTERS,
)
from .samples.images import (
    IMAGE_EXTENSIONS as IMAGE_EXTENSIONS,
)
from .samples.images import (
    Interpolation as Interpolation,
)
from .samples.images import (
    ResizeMode as ResizeMode,
)
from .samples.images import (
    decode_image as decode_image,
)
from .samples.images import (
    open_image as open_image,
)
from .samples.order import SameEpochs as SameEpochs
from .samples.order import SampleOrder as SampleOrder
from .samples.sample import REASONS as REASONS
from .samples.sample import BadSample as BadSample
from .samples.sample import Sample as Sample
from .samples.sample import uid_of as uid_of
from .samples.shards import Shard as Shard
from .samples.shards import ShardReader as ShardReader
from .samples.spec import DatasetSpec as DatasetSpec
from .samples.texts import is_text as is_text
from .samples.texts import texts_schema as texts_schema
from .tables.parquet import ParquetShard as ParquetShard
from .tables.parquet import open_parquet as open_parquet
from .tar.writer import write_tar as write_tar
