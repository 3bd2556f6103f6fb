"""Train a method. It implements a `Task`, and `fit` trains it on `TrainingData`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
