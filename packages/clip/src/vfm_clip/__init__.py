"""The stage `clip.train` for vfm, and the losses that it can minimise.

The classes here are configurations and import no torch. As a library: `vfm_clip.task` has the contrastive task
and `vfm_clip.losses` the losses.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
