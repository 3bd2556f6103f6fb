"""MetaCLIP data curation. Texts are matched against metadata, counted, and balanced. Needs no torch.

The names here are configurations: the stages, and the slots `Filter`, `EntrySource` and `Tokenizer` for plugins. Each
configuration gives the address of the code that does the work, which is imported when a stage runs. The mathematics is
usable without a recipe: `counts.probabilities`, `matching`, `match.token_table` and `metadata`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
