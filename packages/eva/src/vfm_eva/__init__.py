"""Masked pre-training, precomputed targets, and fine-tuning of the encoder, as in EVA.

The classes here are configurations and import no torch. To use the package as a library, see `pretrain.task` for the
pre-training task, `targets.teacher` for its targets, `pretrain.masks` for the masks, and `finetune.classifier` for the
fine-tuning task.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
