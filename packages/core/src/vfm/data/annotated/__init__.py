"""Read images with boxes, masks and label maps in many formats, and store them in a common one.

Needs `vfm-core[dense]` (faster-coco-eval for masks as run lengths, ijson for large files). `AnnotatedSource` opens an
artifact.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
