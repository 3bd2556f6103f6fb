"""Data: an index over the shards of a user's files, and random access to their samples.

Nothing here imports torch, so that planning and curation work without it. `vfm.train` exports the classes that turn
samples into tensors (`TrainingData`, `ImageTransform`, ...).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
