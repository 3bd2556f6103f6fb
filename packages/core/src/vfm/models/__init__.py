"""Build, load, import, save and export timm's vision encoders and open_clip's CLIP models.

Importing this package imports torch, timm and open_clip, and registers the small architectures of
`vfm.models.small_models` with both. Stages that only describe models are in `vfm.models.stages`, without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
