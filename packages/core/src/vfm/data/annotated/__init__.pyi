from .masks import (
    as_rle as as_rle,
)
from .masks import (
    decode_mask as decode_mask,
)
from .masks import (
    encode_mask as encode_mask,
)
from .masks import (
    mask_area as mask_area,
)
from .masks import (
    mask_box as mask_box,
)
from .records import IGNORED as IGNORED
from .source import AnnotatedSource as AnnotatedSource
from .tables import Objects as Objects
