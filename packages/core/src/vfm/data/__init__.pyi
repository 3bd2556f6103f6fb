from .choices.choices import Choice as Choice, load_choices as load_choices, write_choices as write_choices
from .choices.questions import (
    Question as Question,
    Questions as Questions,
    pairs_of as pairs_of,
    write_questions as write_questions,
)
from .index.index import BadRow as BadRow, read_index as read_index, write_index as write_index
from .index.mixture import Mixture as Mixture
from .index.repeated import RepeatedEpochs as RepeatedEpochs
from .index.source import (
    Source as Source,
    check_balanced as check_balanced,
    open_balanced as open_balanced,
    open_dataset as open_dataset,
)
from .index.subset_files import (
    SUBSET_FOLDER as SUBSET_FOLDER,
    SUBSET_INDEX as SUBSET_INDEX,
    num_distinct as num_distinct,
    packed_uids as packed_uids,
    read_subset as read_subset,
    read_subset_index as read_subset_index,
    read_subset_shard as read_subset_shard,
    stored_subset as stored_subset,
    subset_file as subset_file,
    subset_index_rows as subset_index_rows,
    subset_schema as subset_schema,
    unpacked_uids as unpacked_uids,
    write_subset as write_subset,
    write_subset_index as write_subset_index,
)
from .labeled.tags import read_tags as read_tags
from .loading.batch import (
    Batch as Batch,
    Make as Make,
    Ragged as Ragged,
    SampleDraw as SampleDraw,
    map_tensors as map_tensors,
    stacked as stacked,
)
from .loading.batch_make import BatchMake as BatchMake
from .loading.cache_filling import MakeCrops as MakeCrops, SampleCrops as SampleCrops, fill_cache as fill_cache
from .loading.eval_loader import eval_batches as eval_batches, ordered_batches as ordered_batches
from .loading.loader import TrainingData as TrainingData, prefetch as prefetch
from .loading.sample_cache import (
    CACHE_FOLDER as CACHE_FOLDER,
    CachedTensors as CachedTensors,
    CacheWriter as CacheWriter,
)
from .loading.transforms import ImageTransform as ImageTransform, to_tensor as to_tensor
from .prompts.templates import check_templates as check_templates
from .samples.arrays import one_array as one_array
from .samples.captions import clean_captions as clean_captions, field_of as field_of
from .samples.columns import require_column as require_column, weight_of as weight_of
from .samples.draws import (
    drawn as drawn,
    hash_strings as hash_strings,
    splitmix64 as splitmix64,
    text_key as text_key,
    text_keys as text_keys,
    uniform as uniform,
)
from .samples.images import (
    FILTERS as FILTERS,
    IMAGE_EXTENSIONS as IMAGE_EXTENSIONS,
    Interpolation as Interpolation,
    ResizeMode as ResizeMode,
    decode_image as decode_image,
    open_image as open_image,
)
from .samples.order import SameEpochs as SameEpochs, SampleOrder as SampleOrder
from .samples.sample import (
    REASONS as REASONS,
    BadSample as BadSample,
    Sample as Sample,
    raise_if_unreachable as raise_if_unreachable,
    uid_of as uid_of,
)
from .samples.shards import Shard as Shard, ShardReader as ShardReader
from .samples.spec import DatasetSpec as DatasetSpec
from .samples.texts import is_text as is_text, texts_schema as texts_schema
from .streaming.source import (
    TarStream as TarStream,
    open_head as open_head,
    open_samples as open_samples,
    open_stream as open_stream,
    warn_of_readers as warn_of_readers,
)
from .tables.parquet import ParquetShard as ParquetShard
from .tables.parquet_files import open_parquet as open_parquet
from .tar.writer import write_tar as write_tar
