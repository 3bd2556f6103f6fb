"""MetaCLIP data curation: match texts against metadata, count, and balance the long tail. Needs no torch.

Configurations are in `vfm_curation.stages`, which is light. The mathematics is in `vfm_curation.probabilities`,
`vfm_curation.matching`, `vfm_curation.token_table` and `vfm_curation.metadata`, and may be used without a recipe.
"""

__all__: list[str] = []  # importing the package stays quick: `vfm plan` and `vfm stages` need only its configurations
