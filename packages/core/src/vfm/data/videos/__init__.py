"""Videos with one class each: readers of many layouts, an index on disk, and decoding of clips by frame number.

Needs `vfm-core[video]` (PyAV, which includes FFmpeg). `VideoSource` opens an artifact.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
