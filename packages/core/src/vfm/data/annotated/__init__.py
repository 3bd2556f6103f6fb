"""Images with boxes, masks and label maps: readers of many formats, one form on disk, and random access to it.

Needs `vfm-core[dense]` (faster-coco-eval for masks as run lengths, ijson for large files). `AnnotatedSource` opens an
artifact.
"""

from vfm.data.annotated.masks import as_rle, decode_mask, encode_mask, mask_area, mask_box
from vfm.data.annotated.records import IGNORED
from vfm.data.annotated.source import AnnotatedSource
from vfm.data.annotated.tables import Objects

__all__ = [
    "IGNORED", "AnnotatedSource", "Objects", "as_rle", "decode_mask", "encode_mask", "mask_area", "mask_box",
]  # fmt: skip
