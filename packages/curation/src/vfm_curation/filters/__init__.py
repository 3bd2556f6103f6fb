"""Filters of `curation.filter`: their functions, and the run that takes a pool through them.

The configurations are in `vfm_curation`. A plugin's filter may use `vfm_curation.filters.run.FilterRun` and
`vfm_curation.filters.copies.buckets`.
"""
