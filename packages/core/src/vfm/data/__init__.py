"""Read samples of a user's files at random, by an index over their shards.

Nothing here imports torch, so that planning and curation work without it. `vfm.train` exports the classes that turn
samples into tensors (`TrainingData`, `ImageTransform`, ...).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
