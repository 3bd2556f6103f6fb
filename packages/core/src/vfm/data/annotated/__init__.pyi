from .masks import (
    as_rle as as_rle,
    decode_mask as decode_mask,
    encode_mask as encode_mask,
    mask_area as mask_area,
    mask_box as mask_box,
)
from .records import IGNORED as IGNORED
from .source import AnnotatedSource as AnnotatedSource
from .tables import ObjectArrays as ObjectArrays
