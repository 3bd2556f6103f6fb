"""An ordered list of entries for each language, from captions, files, WordNet and Wikipedia."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
