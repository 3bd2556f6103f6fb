"""Read videos with one class each in many layouts, index them, and decode clips by frame number.

Needs `vfm-core[video]` (PyAV, which includes FFmpeg). `VideoSource` opens an artifact.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
