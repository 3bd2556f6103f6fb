"""Configurations with readable errors, parts, and text for people. All other packages use them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
