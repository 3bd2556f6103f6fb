"""Evaluation of vision and CLIP models, and the parts to write a new evaluation with.

An evaluation subclasses `vfm.plugin.ModelEvaluation`: it encodes a dataset (`encode_dataset`, `encode_labeled`) and
returns an `Evaluated` with a `ModelResult` per model, whose scores are `Accuracy`, `MeanAveragePrecision` or
`ResampledScore`. A model with a dense head is a `DensePredictor`, whose methods return `Instances` and `PanopticMap`.
Importing this package imports torch; configurations are in each topic's `stages`, statistics in `vfm.statistics`,
without it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
